"""Artifacts over HTTP: `PUT /v1/artifacts?name=…`, and `GET /v1/artifacts/{id}` with ranges."""

from __future__ import annotations

import re
import urllib.parse
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from turnwire.errors import FieldViolation, InvalidArgument, Unimplemented
from turnwire.runtime.channels import upstream
from turnwire.tool_executor.v1 import artifact_service_pb2
from turnwire.tool_executor.v1.artifact_service_pb2_grpc import ArtifactServiceStub
from turnwire_gateway.bodies import Streamed, answered, body_pieces
from turnwire_gateway.event_json import message_json
from turnwire_gateway.failures import told
from turnwire_gateway.upstream import Caller

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from turnwire.tool_executor.v1 import artifact_pb2

_PIECE = 256 * 1024
_RANGE = re.compile("bytes=([0-9]{0,15})-([0-9]{0,15})")
_SHOWN = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
"""What a browser may show in place. Anything else is a download: it was made by models and strangers."""
_SERVICE = "tool_executor"
_UPLOAD_FIELDS = frozenset({"name", "mime_type", "session_id", "sha256", "request_id"})


@told(_SERVICE)
async def put_artifact(request: Request) -> ASGIApp:
    """Keeps the body as an artifact, and answers what is known of it."""
    opened = _opened(request)
    stub = _stub(request)
    caller = Caller.of(request.headers)

    async def payloads() -> AsyncGenerator[artifact_service_pb2.UploadArtifactRequest]:
        yield artifact_service_pb2.UploadArtifactRequest(open=opened)
        async with aclosing(body_pieces(request.receive)) as pieces:
            async for piece in pieces:
                for start in range(0, len(piece), _PIECE):
                    yield artifact_service_pb2.UploadArtifactRequest(data=piece[start : start + _PIECE])

    sending = _Sending(payloads())
    async with upstream(stub.UploadArtifact(sending.requests(), metadata=caller.metadata)) as call:
        try:
            answer = await call
        except BaseException as error:
            raise sending.failure or error from None
    return Response(message_json(answer.artifact), 201, media_type="application/json")


class _Sending:
    """The requests of an upload; keeps what cut them, which gRPC would report as its own failure."""

    def __init__(self, payloads: AsyncGenerator[artifact_service_pb2.UploadArtifactRequest]) -> None:
        self._payloads = payloads
        self.failure: Exception | None = None

    async def requests(self) -> AsyncGenerator[artifact_service_pb2.UploadArtifactRequest]:
        async with aclosing(self._payloads) as payloads:
            try:
                async for payload in payloads:
                    yield payload
            except Exception as error:
                self.failure = error
                raise


@told(_SERVICE)
async def get_artifact(request: Request) -> ASGIApp:
    """Streams an artifact, or the range of it that is asked for. HEAD tells its size and type."""
    stub = _stub(request)
    caller = Caller.of(request.headers)
    artifact_id: str = request.path_params["artifact_id"]
    asked = artifact_service_pb2.GetArtifactRequest(artifact_id=artifact_id)
    known = (await answered(request.receive, _got(stub, asked, caller))).artifact
    headers = _headers(known)
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers={"etag": headers["etag"]})
    ranged = _ranged(request, headers["etag"])
    span = _span(ranged, known.size_bytes)
    if span is None:
        return Response(status_code=416, headers={"content-range": f"bytes */{known.size_bytes}"})
    start, end = span
    headers["content-length"] = str(end - start)
    status = 200
    if ranged is not None:
        status = 206
        headers["content-range"] = f"bytes {start}-{end - 1}/{known.size_bytes}"
    if request.method == "HEAD" or start == end:
        return Response(status_code=status, headers=headers)
    call = stub.DownloadArtifact(
        artifact_service_pb2.DownloadArtifactRequest(artifact_id=artifact_id, start_byte=start, end_byte=end),
        metadata=caller.metadata,
    )
    return Streamed(_bytes(call), [(name.encode(), value.encode()) for name, value in headers.items()], status)


async def _got(stub: Any, asked: artifact_service_pb2.GetArtifactRequest, caller: Caller) -> Any:
    async with upstream(stub.GetArtifact(asked, metadata=caller.metadata)) as call:
        return await call


async def _bytes(call: Any) -> AsyncGenerator[bytes]:
    async with upstream(call):
        async for piece in call:
            yield piece.data


def _stub(request: Request) -> Any:
    return ArtifactServiceStub(request.app.state.upstreams.channel(_SERVICE))


def _opened(request: Request) -> artifact_service_pb2.OpenUpload:
    violations = [
        FieldViolation(name[:100], "is no parameter of this route")
        for name in request.query_params.keys() - _UPLOAD_FIELDS
    ]
    name = request.query_params.get("name", "")
    if not name:
        violations.append(FieldViolation("name", "is required"))
    if violations:
        raise InvalidArgument(violations)
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Unimplemented("uploads with a content-encoding", "Send the file as it is.")
    sent = request.headers.get("content-type", "").partition(";")[0].strip()
    # What programs send that were told no type; the service looks at the bytes instead.
    unsaid = {"", "application/octet-stream", "application/x-www-form-urlencoded"}
    mime_type = request.query_params.get("mime_type", "" if sent in unsaid else sent)
    return artifact_service_pb2.OpenUpload(
        name=name,
        mime_type=mime_type,
        session_id=request.query_params.get("session_id", ""),
        sha256=request.query_params.get("sha256", ""),
        request_id=request.query_params.get("request_id", ""),
    )


def _headers(artifact: artifact_pb2.Artifact) -> dict[str, str]:
    shown = artifact.mime_type in _SHOWN
    name = urllib.parse.quote(artifact.name or artifact.artifact_id, safe="")
    return {
        "content-type": artifact.mime_type if _is_media_type(artifact.mime_type) else "application/octet-stream",
        "content-disposition": f"{'inline' if shown else 'attachment'}; filename*=UTF-8''{name}",
        "etag": f'"{artifact.sha256 or artifact.artifact_id}"',
        "accept-ranges": "bytes",
        "cache-control": "private, max-age=3600",
        "x-content-type-options": "nosniff",
        "content-security-policy": "sandbox; default-src 'none'",
    }


def _is_media_type(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9.+-]{1,100}/[A-Za-z0-9.+-]{1,100}", text) is not None


def _ranged(request: Request, etag: str) -> tuple[str, str] | None:
    """Returns the ends of the range that is asked for, one of them perhaps empty; None: the whole is.

    Several ranges, those of other units, and those of another version are answered with the whole (RFC 9110).
    """
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    if match is None or request.headers.get("if-range", etag) != etag:
        return None
    first, last = match[1], match[2]
    if not (first or last) or (first and last and int(last) < int(first)):
        return None
    return first, last


def _span(ranged: tuple[str, str] | None, size: int) -> tuple[int, int] | None:
    """Returns the bytes to send, the end exclusive; None when the range lies beyond them."""
    if ranged is None:
        return 0, size
    first, last = ranged
    if not first:
        return (max(0, size - int(last)), size) if int(last) and size else None
    end = min(int(last) + 1, size) if last else size
    return (int(first), end) if int(first) < size else None
