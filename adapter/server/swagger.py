"""The page at `/`: Swagger UI over the service's OpenAPI document, with all of its files served from here."""

from __future__ import annotations

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
_SCRIPT = """SwaggerUIBundle({
  url: "docs.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  validatorUrl: null,
});
"""
# Swagger UI sets styles of elements, and shows icons that are written in its style sheet
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILES = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")


def routes(service: Service) -> list[BaseRoute]:
    """The page and its files."""
    page = _PAGE.format(title=html.escape(service.name))
    files = StaticFiles(packages=[("fastapi_swagger", "resources")])

    async def index(request: Request) -> Response:
        return HTMLResponse(page, headers={"content-security-policy": _POLICY, "x-content-type-options": "nosniff"})

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
