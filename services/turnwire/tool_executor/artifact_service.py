"""The RPCs of `turnwire.tool_executor.v1.ArtifactService`."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from turnwire.errors import InvalidArgument
from turnwire.runtime.failpoints import declare_methods
from turnwire.runtime.identity import current
from turnwire.runtime.paging import decode_position, encode_position, page_size
from turnwire.tool_executor import validation
from turnwire.tool_executor.v1 import artifact_service_pb2 as messages
from turnwire.tool_executor.v1.artifact_service_pb2_grpc import ArtifactServiceServicer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from turnwire.tool_executor.artifacts import Artifacts

    Context = grpc.aio.ServicerContext[Any, Any]

declare_methods(messages.DESCRIPTOR.services_by_name["ArtifactService"], "UploadArtifact")

_AFTER_ALL = (2**62, "")


class ArtifactServicer(ArtifactServiceServicer):
    """Serves the files of the caller's tenant."""

    def __init__(self, artifacts: Artifacts) -> None:
        """Works on `artifacts`."""
        self._artifacts = artifacts

    async def UploadArtifact(
        self, request_iterator: AsyncIterator[messages.UploadArtifactRequest], context: Context
    ) -> messages.UploadArtifactResponse:
        """Takes a file in."""
        first = await anext(request_iterator, messages.UploadArtifactRequest())
        validation.check_open(first)
        async with self._artifacts.draft(first.open.name) as draft:
            async for request in request_iterator:
                validation.check_piece(request)
                await draft.write(request.data)
            artifact = await draft.keep(current().tenant, first.open)
        return messages.UploadArtifactResponse(artifact=artifact)

    async def DownloadArtifact(
        self, request: messages.DownloadArtifactRequest, context: Context
    ) -> AsyncIterator[messages.DownloadArtifactResponse]:
        """Streams a file, or a range of it."""
        validation.check_download(request)
        pieces = self._artifacts.read(
            current().tenant, request.artifact_id, request.start_byte, request.end_byte or None
        )
        async with aclosing(pieces):
            async for piece in pieces:
                yield messages.DownloadArtifactResponse(data=piece)

    async def GetArtifact(self, request: messages.GetArtifactRequest, context: Context) -> messages.GetArtifactResponse:
        """Gets what is known of a file."""
        validation.check_name("artifact_id", request.artifact_id)
        return messages.GetArtifactResponse(artifact=await self._artifacts.get(current().tenant, request.artifact_id))

    async def ListArtifacts(
        self, request: messages.ListArtifactsRequest, context: Context
    ) -> messages.ListArtifactsResponse:
        """Lists files, newest first."""
        limit = page_size(request.page_size)
        time, artifact_id = decode_position(request.page_token, _AFTER_ALL)
        if len(request.session_id) > validation.MAX_NAME:
            raise InvalidArgument.one("session_id", f"is longer than {validation.MAX_NAME} characters")
        found = await self._artifacts.page(
            current().tenant, request.session_id, (int(time), str(artifact_id)), limit + 1
        )
        page = found[:limit]
        token = ""
        if len(found) > limit:
            token = encode_position(page[-1].create_time.ToMicroseconds(), page[-1].artifact_id)
        return messages.ListArtifactsResponse(artifacts=page, next_page_token=token)

    async def DeleteArtifact(
        self, request: messages.DeleteArtifactRequest, context: Context
    ) -> messages.DeleteArtifactResponse:
        """Removes a file."""
        validation.check_name("artifact_id", request.artifact_id)
        await self._artifacts.delete(current().tenant, request.artifact_id)
        return messages.DeleteArtifactResponse()
