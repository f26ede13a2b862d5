"""Services made within a test, hosted as the real ones are."""

from __future__ import annotations

import itertools
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Any

import grpc
from google.rpc import error_details_pb2

from turnwire.errors import from_rpc_error
from turnwire.inference.v1 import inference_service_pb2 as messages
from turnwire.inference.v1.inference_service_pb2_grpc import (
    InferenceServiceServicer,
    InferenceServiceStub,
    add_InferenceServiceServicer_to_server,
)
from turnwire.runtime.hosting import Host, hosting
from turnwire.runtime.settings import Settings
from turnwire.testing.mesh import free_port_offset

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from turnwire.errors import TurnwireError
    from turnwire.runtime.context import ServiceContext
    from turnwire.runtime.directory import Directory

    Add = Callable[[grpc.aio.Server, Directory], None]

_modules = itertools.count()


@dataclass
class Hosted:
    """Services of a test, while they are served."""

    settings: Settings
    host: Host

    def address(self, service: str = "inference") -> str:
        """Returns where a service is."""
        return self.settings.address(service)


@asynccontextmanager
async def hosted(
    services: Mapping[str, Add], *, environ: Mapping[str, str] | None = None, **sections: Any
) -> AsyncGenerator[Hosted]:
    """Serves what `services` add to their servers; `sections` are sections of the settings."""
    table: dict[str, str] = {}
    with TemporaryDirectory() as folder:
        values: dict[str, Any] = {
            "listen": {"port_offset": free_port_offset(services)},
            "data_dir": folder,
            "agent": {"drain_seconds": 5},
            **sections,
        }
        settings = Settings.model_validate(values)
        for name, add in services.items():
            table[name] = _module(add)
        try:
            async with hosting(list(services), settings, table, environ=environ or {}) as host:
                yield Hosted(settings, host)
        finally:
            for module in table.values():
                del sys.modules[module]


def _module(add: Add) -> str:
    """Returns the name of a module that mounts a service, as hosting imports it."""
    module: Any = ModuleType(f"service_of_a_test_{next(_modules)}")

    @asynccontextmanager
    async def mount(server: grpc.aio.Server, directory: Directory, context: ServiceContext) -> AsyncGenerator[None]:
        add(server, directory)
        yield

    module.mount = mount
    sys.modules[module.__name__] = module
    return module.__name__


def inference(servicer: InferenceServiceServicer | None = None) -> Add:
    """Returns what adds an inference service; by default it answers each question."""
    return lambda server, _: add_InferenceServiceServicer_to_server(servicer or Answering(), server)


class Answering(InferenceServiceServicer):
    """Answers at once: counts a token, and says one word."""

    async def CountTokens(self, request: Any, context: Any) -> messages.CountTokensResponse:
        return messages.CountTokensResponse(prompt_tokens=1)

    async def ChatCompletion(self, request: Any, context: Any) -> AsyncGenerator[messages.ChatCompletionResponse, None]:
        yield word("hello")

    async def Completion(self, request: Any, context: Any) -> AsyncGenerator[messages.CompletionResponse, None]:
        yield messages.CompletionResponse(text=messages.TextDelta(text="hello"))

    async def Embed(self, request: Any, context: Any) -> messages.EmbedResponse:
        return messages.EmbedResponse()


def word(text: str) -> messages.ChatCompletionResponse:
    """Returns a piece of an answer."""
    return messages.ChatCompletionResponse(text=messages.TextDelta(text=text))


@asynccontextmanager
async def stub_of(address: str, options: Any = None) -> AsyncGenerator[InferenceServiceStub]:
    """Gives a stub on a plain channel: what any program in any language would send."""
    async with grpc.aio.insecure_channel(address, options=options or [("grpc.use_local_subchannel_pool", 1)]) as plain:
        yield InferenceServiceStub(plain)


async def failure(call: Any) -> TurnwireError:
    """Awaits a call that fails and returns its typed error."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error, service="inference")
    raise AssertionError("the call did not fail")


def details(error: grpc.aio.AioRpcError) -> list[Any]:
    """Returns the google.rpc details in the trailers of a failed call."""
    from grpc_status import rpc_status

    status = rpc_status.from_call(error)  # pyright: ignore[reportArgumentType] - has what it asks for
    found: list[Any] = []
    for detail in status.details if status is not None else ():
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo, error_details_pb2.BadRequest):
            message = kind()
            if detail.Unpack(message):
                found.append(message)
    return found


ROOT = Path(__file__).resolve().parents[2]
"""Of the checkout."""
