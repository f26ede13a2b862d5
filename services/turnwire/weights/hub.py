"""Files from the maker's hub, over HTTPS with resume, at a pinned revision."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from turnwire.weights.cache import BLOCK
from turnwire.weights.download import Download
from turnwire.weights.errors import SourceFailed
from turnwire.weights.manifest import HubFile

# A machine without a way to the hub must not keep a newcomer waiting; once connected, patience.
CONNECT_SECONDS = 3.0
READ_SECONDS = 30.0
# Tries in a row that bring no new byte.
TRIES = 5
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 20.0

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class HubUnreachable(SourceFailed):
    """No connection to the hub at all: asking it again for the next file would only wait again."""


def hub_endpoint() -> str:
    """Where the hub is: `HF_ENDPOINT` as its own tools read it, else the public one."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def hub_switched_off() -> bool:
    """Whether the user told the hub's tools to stay offline."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in {"1", "true", "yes", "on"}


def fetch_from_hub(place: HubFile, download: Download) -> None:
    """Bring `download` to its last byte, going on where it stands; SourceFailed says why not."""
    endpoint = hub_endpoint()
    source = urllib.parse.urlsplit(endpoint).netloc
    if hub_switched_off():
        raise HubUnreachable(source, "not asked, since HF_HUB_OFFLINE is set")
    path = urllib.parse.quote(f"{place.repository}/resolve/{place.revision}/{place.path}")
    url = f"{endpoint}/{path}"
    connected = False
    failures = 0
    while download.missing:
        before = download.offset
        pause: float | None = None
        try:
            _read(url, download, source)
            why = "the connection ended early"
            connected = True
        except urllib.error.HTTPError as error:
            with error:
                why = f"HTTP {error.code} for {place.repository}/{place.path} at revision {place.revision[:12]}"
                if error.code == 416:
                    # The server has fewer bytes than we kept: what we kept is not of this file.
                    download.restart()
                elif error.code not in _PASSING:
                    raise SourceFailed(source, why) from error
                pause = _seconds(error.headers.get("Retry-After"))
            connected = True
        except (OSError, http.client.HTTPException) as error:
            why = _reason(error)
            connected = connected or download.offset > before
            if not connected:
                raise HubUnreachable(source, f"not reachable ({why})") from error
        failures = 0 if download.offset > before else failures + 1
        if download.missing and failures >= TRIES:
            raise SourceFailed(source, f"{why}, {failures} times in a row")
        if download.missing and failures:
            time.sleep(min(pause if pause is not None else FIRST_PAUSE * 2 ** (failures - 1), LONGEST_PAUSE))
    download.finish(source)


def _read(url: str, download: Download, source: str) -> None:
    headers = {"User-Agent": "turnwire", "Accept-Encoding": "identity"}
    if download.offset:
        headers["Range"] = f"bytes={download.offset}-"
    # The scheme is the endpoint's, which the user set or is https.
    with _opener().open(urllib.request.Request(url, headers=headers)) as response:
        if download.offset and not _continues(response, download.offset):
            download.restart()
        while block := response.read(BLOCK):
            download.write(block, source)


def _continues(response: Any, offset: int) -> bool:
    return response.status == 206 and str(response.headers.get("Content-Range", "")).startswith(f"bytes {offset}-")


def _seconds(retry_after: str | None) -> float | None:
    try:
        return None if retry_after is None else max(0.0, float(retry_after))
    except ValueError:  # a date: the usual pause will do
        return None


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, socket.gaierror):
        return "its name does not resolve"
    if isinstance(cause, TimeoutError):
        return str(cause) or "it did not answer in time"
    return str(cause) or type(cause).__name__


def _resolved_in_time(host: str, port: int) -> None:
    # getaddrinfo takes no timeout and waits long when the resolver's packets are dropped.
    outcome: list[Exception] = []

    def resolve() -> None:
        try:
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=resolve, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if thread.is_alive():
        raise TimeoutError(f"its name did not resolve within {CONNECT_SECONDS:.0f} s")
    if outcome:
        raise outcome[0]


def _connect(connection: http.client.HTTPConnection, connect: Any) -> None:
    _resolved_in_time(connection.host, connection.port)
    connection.timeout = CONNECT_SECONDS
    connect()
    connection.sock.settimeout(READ_SECONDS)


class _PlainConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        _connect(self, super().connect)


class _SecureConnection(http.client.HTTPSConnection):
    def connect(self) -> None:
        _connect(self, super().connect)


class _PlainHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_PlainConnection, req)


class _SecureHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureConnection, req, context=ssl.create_default_context())


def _opener() -> urllib.request.OpenerDirector:
    # The default handlers come along: redirects to the hub's storage, and the proxies of the environment.
    return urllib.request.build_opener(_PlainHandler, _SecureHandler)
