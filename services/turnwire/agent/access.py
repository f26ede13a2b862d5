"""The RPCs of `turnwire.access.v1.AccessService`, hosted by the agent service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnwire.access.v1 import access_service_pb2 as messages
from turnwire.access.v1.access_service_pb2_grpc import AccessServiceServicer
from turnwire.runtime.identity import current
from turnwire.runtime.unimplemented import unimplemented

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

_INSTEAD = "Keys are configured under `access.api_keys`."


class AccessServicer(AccessServiceServicer):
    """Tells callers who they are; keys are made by the configuration only."""

    async def WhoAmI(self, request: messages.WhoAmIRequest, context: Context) -> messages.WhoAmIResponse:
        """Tells who the caller is to the mesh."""
        caller = current()
        return messages.WhoAmIResponse(
            subject=caller.subject, tenant=caller.tenant, roles=sorted(caller.roles), kind=caller.kind
        )

    @unimplemented("AccessService/CreateApiKey", _INSTEAD)
    async def CreateApiKey(
        self, request: messages.CreateApiKeyRequest, context: Context
    ) -> messages.CreateApiKeyResponse:
        """Is not served yet."""
        raise NotImplementedError

    @unimplemented("AccessService/ListApiKeys", _INSTEAD)
    async def ListApiKeys(self, request: messages.ListApiKeysRequest, context: Context) -> messages.ListApiKeysResponse:
        """Is not served yet."""
        raise NotImplementedError

    @unimplemented("AccessService/RevokeApiKey", _INSTEAD)
    async def RevokeApiKey(
        self, request: messages.RevokeApiKeyRequest, context: Context
    ) -> messages.RevokeApiKeyResponse:
        """Is not served yet."""
        raise NotImplementedError
