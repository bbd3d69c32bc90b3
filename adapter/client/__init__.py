"""HTTP clients of a service, made from the OpenAPI document that it serves at `/docs.json`."""

from adapter.client.asynchronous import AsyncHTTPClient, Options
from adapter.client.synchronous import SyncHTTPClient

__all__ = ["AsyncHTTPClient", "HTTPClient", "Options", "SyncHTTPClient"]

HTTPClient = SyncHTTPClient
