"""TLS of the API server: what uvicorn is told of it, tried before a front process needs it."""

from __future__ import annotations

import ssl
from typing import Any

from adapter.exceptions import blaming
from adapter.settings import SSL


def arguments(settings: SSL) -> dict[str, Any]:
    """The arguments of `uvicorn.Config` for TLS; none where there is no TLS."""
    if not settings.enabled:
        return {}
    return {
        "ssl_certfile": settings.certfile,
        "ssl_keyfile": settings.keyfile,
        "ssl_keyfile_password": _password(settings),
        "ssl_version": settings.version,
        "ssl_cert_reqs": settings.cert_reqs,
        "ssl_ca_certs": settings.ca_certs,
        "ssl_ciphers": settings.ciphers or "",  # none are named, so Python's own stay
    }


def check(settings: SSL) -> None:
    """Read certificate and key as a front process will; ConfigException with what is wrong with them."""
    if not settings.enabled or settings.certfile is None:
        return
    files = {"certfile": settings.certfile, "keyfile": settings.keyfile, "ca_certs": settings.ca_certs}
    for name, file in files.items():
        with blaming(f"api_server.ssl.{name} is {str(file)!r}, which cannot be read"):
            if file is not None:
                file.read_bytes()
    context = ssl.SSLContext(settings.version)
    key = f"the key in {str(settings.keyfile or settings.certfile)!r}"
    password = f"with{'' if settings.keyfile_password else 'out'} a password"
    with blaming(f"The certificate in {str(settings.certfile)!r} and {key}, {password}, cannot be used"):
        context.load_cert_chain(settings.certfile, settings.keyfile, _password(settings))
    with blaming(f"api_server.ssl.ciphers is {settings.ciphers!r}, of which OpenSSL knows none"):
        if settings.ciphers is not None:
            context.set_ciphers(settings.ciphers)
    with blaming(f"api_server.ssl.ca_certs is {str(settings.ca_certs)!r}, which holds no certificate"):
        if settings.ca_certs is not None:
            context.load_verify_locations(settings.ca_certs)


def _password(settings: SSL) -> str:
    # OpenSSL asks the terminal for one where there is none; a text that no key has makes it an error
    return settings.keyfile_password or "\0"
