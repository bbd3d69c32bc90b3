"""The yardstick: Starlette that sends back the body it was sent."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def echo(request: Request) -> Response:
    """Return the body."""
    return Response(await request.body(), media_type="application/json")


async def ready(request: Request) -> Response:
    """Tell that it runs."""
    return Response()


app = Starlette(routes=[Route("/echo", echo, methods=["POST"]), Route("/", ready)])
