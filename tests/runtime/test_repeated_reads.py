"""Which calls a channel repeats by itself when no answer came: all that only read, and nothing else."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from turnwire.runtime.channels import channel_options
from turnwire_gateway.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Iterator

# They change nothing and keep nothing, although their names do not say so.
ALSO_READING = {"CountTokens", "Embed", "RunShields", "Query"}


def _reads() -> Iterator[tuple[str, bool]]:
    """Gives each unary call of the contract, and whether it only reads."""
    for name, method in METHODS.items():
        if not method.streams_out and not method.streams_in:
            verb = name.rpartition("/")[2]
            yield name, verb.startswith(("Get", "List")) or verb in ALSO_READING


class _Away(grpc.GenericRpcHandler):
    """Counts calls and answers none."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        async def refused(request: bytes, context: Any) -> bytes:
            self.calls[handler_call_details.method.removeprefix("/")] += 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
            return b""

        return grpc.unary_unary_rpc_method_handler(refused)


async def test_reads_are_repeated_and_what_changes_something_is_not():
    away = _Away()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((away,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    # A channel repeats less when much fails: one of its own for each call.
    for name, _ in _reads():
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", channel_options()) as channel:
            call: Any = channel.unary_unary(f"/{name}")
            with pytest.raises(grpc.aio.AioRpcError, match="away"):
                await call(b"", timeout=10)
    await server.stop(None)

    assert {name: 3 if reading else 1 for name, reading in _reads()} == dict(away.calls)
