"""A hub and a package index on this machine, which can be told to misbehave."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from turnwire.weights.manifest import HubFile, Mirror, Part, WeightFile


@dataclass(frozen=True)
class Request:
    path: str
    range: str | None


@dataclass
class Fault:
    """What one answer does wrong."""

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    cut_after: int | None = None  # so many bytes, then the connection is closed
    hold_after: int | None = None  # so many bytes, then nothing until the server ends
    ignore_range: bool = False


class Server:
    """Serves bytes by path, with ranges; faults are used up one an answer."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self.always: dict[str, Fault] = {}
        self.requests: list[Request] = []
        self.holding = threading.Event()
        self._released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    @property
    def index_url(self) -> str:
        return f"{self.url}/simple/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def release(self) -> None:
        """Close the connections that are held."""
        self._released.set()

    def asked(self, ending: str) -> list[Request]:
        """The requests for paths that end so."""
        return [request for request in self.requests if request.path.endswith(ending)]

    def put_on_hub(self, file: WeightFile, content: bytes) -> str:
        path = f"/{file.hub.repository}/resolve/{file.hub.revision}/{file.hub.path}"
        self.files[path] = content
        return path

    def put_package(self, name: str, version: str, members: Mapping[str, bytes]) -> str:
        wheel = f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        content = wheel_of(name, version, members)
        self.files[f"/files/{wheel}"] = content
        digest = hashlib.sha256(content).hexdigest()
        page = f'<!DOCTYPE html><html><body><a href="/files/{wheel}#sha256={digest}">{wheel}</a></body></html>'
        self.files[f"/simple/{name}/"] = page.encode()
        return f"/files/{wheel}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path
        wanted = handler.headers.get("Range")
        self.requests.append(Request(path, wanted))
        queue = self.faults[path]
        fault = queue.popleft() if queue else self.always.get(path, Fault())
        if path not in self.files and fault.status is None:
            fault = Fault(status=404)
        if fault.status is not None:
            handler.send_response(fault.status)
            for name, value in fault.headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        content = self.files[path]
        start = 0
        if wanted is not None and not fault.ignore_range:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                handler.send_response(416)
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            handler.send_response(200)
        body = content[start:]
        handler.send_header("Content-Type", "text/html" if path.startswith("/simple/") else "application/octet-stream")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if fault.cut_after is not None:
            handler.wfile.write(body[: fault.cut_after])
            handler.close_connection = True
        elif fault.hold_after is not None:
            handler.wfile.write(body[: fault.hold_after])
            handler.wfile.flush()
            self.holding.set()
            self._released.wait()
            handler.close_connection = True
        else:
            handler.wfile.write(body)


def wheel_of(name: str, version: str, members: Mapping[str, bytes]) -> bytes:
    """A wheel that pip accepts, with these files in it."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    files = {
        **members,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return stream.getvalue()


def file_of(content: bytes, name: str = "weights.bin", mirror: Mirror | None = None) -> WeightFile:
    """A manifest entry for these bytes."""
    return WeightFile(
        name=name,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        hub=HubFile("maker/model", "0123456789abcdef", name),
        mirror=mirror,
    )


def parts_of(count: int, part_size: int) -> Mirror:
    """A mirror of so many packages, `shelf-part1` and on."""
    return Mirror(
        tuple(Part(f"shelf-part{number}==1.0", f"shelf_part{number}/data.bin") for number in range(1, count + 1)),
        part_size,
    )
