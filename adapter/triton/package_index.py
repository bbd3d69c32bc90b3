"""Fetch one file from the Python package index that this machine's pip is configured for, without pip.

Many machines reach only a mirror, and a virtual environment may have no pip. So this reads pip's environment variables
and configuration files, and speaks the simple repository API: https://packaging.python.org/specifications/simple-repository-api/.
"""

from __future__ import annotations

import base64
import configparser
import http.client
import importlib.util
import json
import os
import re
import shutil
import ssl
import sys
import sysconfig
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit
from urllib.response import addinfourl

from adapter.exceptions import EngineError

# where pip says which index it uses by default, and how
_PIPS_FILE = "_internal/models/index.py"
_PIPS_INDEX = re.compile(r'^PyPI = PackageIndex\(\s*"([^"]+)"', re.MULTILINE)
_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_OPTIONS = ("index-url", "extra-index-url", "no-index", "find-links", "cert", "proxy", "timeout")
_SECTIONS = ("global", "install", "download")
_DEFAULT_TIMEOUT_S = 15.0
_ATTEMPTS = 3
_CHUNK = 1 << 18

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PackageIndex:
    """Where packages come from, in the order in which to look."""

    folders: tuple[Path, ...] = ()
    urls: tuple[str, ...] = ()
    cert: str | None = None
    proxy: str | None = None
    timeout_s: float = _DEFAULT_TIMEOUT_S

    @classmethod
    def configured(cls, env: Mapping[str, str]) -> PackageIndex:
        """Read what pip would: its variables (PIP_INDEX_URL, …), before its configuration files, before defaults."""
        options = _from_files(env)
        options.update({o: v for o in _OPTIONS if (v := env.get("PIP_" + o.replace("-", "_").upper()))})
        urls = [options.get("index-url") or default_index(), *options.get("extra-index-url", "").split()]
        if options.get("no-index", "").lower() in ("1", "true", "yes", "on"):
            urls = []
        links = [_local(link) for link in options.get("find-links", "").split()]
        cert = options.get("cert") or env.get("SSL_CERT_FILE") or env.get("REQUESTS_CA_BUNDLE")
        try:
            timeout_s = float(options.get("timeout", _DEFAULT_TIMEOUT_S))
        except ValueError:
            timeout_s = _DEFAULT_TIMEOUT_S
        return cls(tuple(p for p in links if p), tuple(u for u in urls if u), cert, options.get("proxy"), timeout_s)

    def fetch(self, project: str, filename: str, to: Path, size: int, progress: Progress | None = None) -> None:
        """Write the file `filename` of `project` to `to`; the caller checks its hash, whatever the index says of it.

        `progress` is told the bytes that are here and `size`, the bytes expected. Raises EngineError where no index has
        the file or none can be reached.
        """
        for folder in self.folders:
            if (folder / filename).is_file():
                shutil.copyfile(folder / filename, to)
                return
        failures = []
        for url in self.urls:
            try:
                found = self._find(url, project, filename)
                if found is not None:
                    self._download(found, url, to, size, progress)
                    return
                failures.append(f"{_without_password(url)} does not have it")
            except (OSError, ValueError, LookupError, http.client.HTTPException) as error:
                failures.append(f"{_without_password(url)}: {_reason(error)}")
        why = "; ".join(failures) or "pip is configured to use no index, or there is no pip to tell the usual one"
        raise EngineError(
            f"{filename} cannot be downloaded ({why}): set pip's "
            "index-url to an index that has it, or fetch the file elsewhere and set ADAPTER_ENGINE_WHEEL to its path."
        )

    def _find(self, index: str, project: str, filename: str) -> str | None:
        page = f"{index.rstrip('/')}/{project}/"
        if page.startswith("file:"):
            page += "index.html"
        try:
            with self._open(page, index, accept=_ACCEPT) as response:
                base, kind, text = response.geturl(), response.headers.get_content_type(), response.read().decode()
        except urllib.error.HTTPError as error:
            if error.code in (404, 410):
                return None
            raise
        except FileNotFoundError:
            return None
        if kind.endswith("json"):
            links: list[str] = [file["url"] for file in json.loads(text)["files"]]
        else:
            parser = _Links()
            parser.feed(text)
            base, links = urljoin(base, parser.base), parser.links
        for link in links:
            if unquote(urlsplit(link).path).rpartition("/")[2] == filename:
                return urljoin(base, link)
        return None

    def _download(self, url: str, index: str, to: Path, size: int, progress: Progress | None) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._download_once(url, index, to, size, progress)
                return
            except urllib.error.HTTPError:
                raise
            except (OSError, http.client.HTTPException):
                if attempt == _ATTEMPTS:
                    raise

    def _download_once(self, url: str, index: str, to: Path, size: int, progress: Progress | None) -> None:
        done = 0
        with self._open(url, index) as response, to.open("wb") as file:
            while chunk := response.read(_CHUNK):
                done += len(chunk)
                if done > size:
                    raise ValueError(f"the file is longer than the {size} bytes expected")
                file.write(chunk)
                if progress is not None:
                    progress(done, size)
        if done < size:
            raise ConnectionError(f"the connection ended after {done} of {size} bytes")

    def _open(self, url: str, index: str, *, accept: str = "*/*") -> addinfourl:
        plain, credentials = _split_credentials(url)
        host, index_credentials = urlsplit(url).hostname, _split_credentials(index)[1]
        if credentials is None and host == urlsplit(index).hostname:
            credentials = index_credentials
        request = urllib.request.Request(plain, headers={"Accept": accept, "User-Agent": "adapter"})
        if credentials is not None:  # unredirected: a redirect to another host must not see them
            token = base64.b64encode(credentials.encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {token}")
        handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=self._tls())]
        if self.proxy:
            handlers.append(urllib.request.ProxyHandler({"http": self.proxy, "https": self.proxy}))
        try:
            response: addinfourl = urllib.request.build_opener(*handlers).open(request, timeout=self.timeout_s)
        except urllib.error.HTTPError as error:
            error.close()
            raise
        return response

    def _tls(self) -> ssl.SSLContext:
        if self.cert and Path(self.cert).is_dir():
            return ssl.create_default_context(capath=self.cert)
        return ssl.create_default_context(cafile=self.cert)


def default_index() -> str | None:
    """The package index that pip uses where none is configured, as pip says; None where there is no pip.

    Asked are the pip that is installed here, and those that Python carries to make virtual environments.
    """
    for text in _texts_of_pip():
        found = _PIPS_INDEX.search(text)
        if found is not None:
            return urljoin(found[1], "simple")
    return None


def _texts_of_pip() -> Iterator[str]:
    installed = importlib.util.find_spec("pip")
    if installed is not None and installed.origin:
        file = Path(installed.origin).parent / _PIPS_FILE
        if file.is_file():
            yield file.read_text(encoding="utf-8")
    bundler = importlib.util.find_spec("ensurepip")
    folders = [Path(bundler.origin).parent / "_bundled"] if bundler is not None and bundler.origin else []
    if packaged := sysconfig.get_config_var("WHEEL_PKG_DIR"):  # where a distribution keeps them
        folders.append(Path(packaged))
    for wheel in (w for folder in folders for w in folder.glob("pip-*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            yield archive.read(f"pip/{_PIPS_FILE}").decode()


class _Links(HTMLParser):
    """The hrefs of a page, and the <base> that they count from."""

    def __init__(self) -> None:
        super().__init__()
        self.base = ""
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if href and tag == "base":
            self.base = href
        elif href and tag == "a":
            self.links.append(href)


def _config_files(env: Mapping[str, str]) -> Iterator[Path]:
    """pip's configuration files, weakest first: https://pip.pypa.io/en/stable/topics/configuration/."""
    named = env.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return
    home = Path(env.get("HOME") or Path.home())
    yield from (Path(d) / "pip" / "pip.conf" for d in env.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":") if d)
    yield Path("/etc/pip.conf")
    yield home / ".pip" / "pip.conf"
    yield Path(env.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf"
    yield Path(sys.prefix) / "pip.conf"
    if named:
        yield Path(named)


def _from_files(env: Mapping[str, str]) -> dict[str, str]:
    found: dict[tuple[str, str], str] = {}
    for path in _config_files(env):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError) as error:
            raise EngineError(f"pip's configuration file {path} cannot be read: {_reason(error)}.") from error
        for section in _SECTIONS:
            if parser.has_section(section):
                found.update({(section, name.replace("_", "-")): text for name, text in parser.items(section)})
    return {o: found[s, o] for s in _SECTIONS for o in _OPTIONS if (s, o) in found}


def _local(link: str) -> Path | None:
    if link.startswith("file:"):
        return Path(unquote(urlsplit(link).path))
    return None if "://" in link else Path(link).expanduser()


def _split_credentials(url: str) -> tuple[str, str | None]:
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    return (urlunsplit(parts._replace(netloc=host)), unquote(user)) if at else (url, None)


def _without_password(url: str) -> str:
    return _split_credentials(url)[0]


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return " ".join(str(reason).split())
