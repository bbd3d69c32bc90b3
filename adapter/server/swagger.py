"""The page at `/`: Swagger UI over the service's OpenAPI document, with all of its files served from here."""

from __future__ import annotations

import base64
import hashlib
import html

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.staticfiles import StaticFiles

from adapter.services import Service

# all addresses are relative, so that the page works below any prefix that a proxy gives it
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" type="image/png" href="static_content/favicon-32x32.png">
<link rel="stylesheet" href="static_content/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="static_content/swagger-ui-bundle.js"></script>
<script src="static_content/swagger-initializer.js"></script>
</body>
</html>
"""
_OPTIONS = """url: "docs.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  validatorUrl: null,"""
_SCRIPT = f"SwaggerUIBundle({{\n  {_OPTIONS}\n}});\n"
# Swagger UI sets styles of elements, and shows icons that are written in its style sheet
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# without a token there is this page alone: the page above, its files and the document come with it
_SIGN_IN = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Token</title>
<link rel="icon" href="data:,">
</head>
<body>
<form style="font-family: sans-serif; margin: 2em">
<label>Token <input name="token" type="password" autocomplete="off" required autofocus></label>
<button>Open</button>
<output></output>
</form>
<div id="swagger-ui"></div>
<script>%s</script>
</body>
</html>
"""
_OPEN = (
    f"const options = {{\n  {_OPTIONS}\n}};\n"
    + """
const form = document.querySelector("form");
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const token = form.elements.token.value.trim();
  const authorization = "Bearer " + token;
  const file = async (path) => {
    const answer = await fetch(path, {headers: {authorization}});
    if (!answer.ok) throw new Error((await answer.json()).error);
    return answer.blob();
  };
  try {
    const style = document.createElement("style");
    style.textContent = await (await file("static_content/swagger-ui.css")).text();
    const script = document.createElement("script");
    script.src = URL.createObjectURL(await file("static_content/swagger-ui-bundle.js"));
    script.addEventListener("load", () => {
      form.remove();
      const ui = SwaggerUIBundle({
        ...options,
        requestInterceptor: (request) => {
          if (request.loadSpec) request.headers.authorization = authorization;
          return request;
        },
        onComplete: () => ui.preauthorizeApiKey("bearer", token),
      });
    });
    document.head.append(style, script);
  } catch (error) {
    form.querySelector("output").textContent = error.message;
  }
});
"""
)
_SIGN_IN_POLICY = (
    "default-src 'none'; script-src 'sha256-%s' blob:; style-src 'unsafe-inline'; img-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_NO_SNIFF = {"x-content-type-options": "nosniff"}
_FILES = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")


def sign_in() -> Response:
    """What a browser gets in place of the page: it asks for a token, with which it opens the page."""
    digest = base64.b64encode(hashlib.sha256(_OPEN.encode()).digest()).decode()
    headers = {**_NO_SNIFF, "content-security-policy": _SIGN_IN_POLICY % digest, "www-authenticate": "Bearer"}
    return HTMLResponse(_SIGN_IN % _OPEN, 401, headers)


def routes(service: Service) -> list[BaseRoute]:
    """The page and its files."""
    page = _PAGE.format(title=html.escape(service.name))
    files = StaticFiles(packages=[("fastapi_swagger", "resources")])

    async def index(request: Request) -> Response:
        return HTMLResponse(page, headers={**_NO_SNIFF, "content-security-policy": _POLICY})

    async def initializer(request: Request) -> Response:
        return Response(_SCRIPT, media_type="text/javascript")

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _FILES:
            raise HTTPException(404)
        return await files.get_response(name, request.scope)

    return [
        Route("/", index),
        Route("/static_content/swagger-initializer.js", initializer),
        Route("/static_content/{name}", static),
    ]
