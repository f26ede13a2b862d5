"""The mesh that runs: its services, the caller's key, the time to a first token."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

from turnwire.cli.checks.finding import Finding
from turnwire.client.finding import address_of
from turnwire.errors import PermissionDenied, TurnwireError, Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from turnwire.agent.v1 import agent_pb2
    from turnwire.client import Client, TurnStream

SLOW_SECONDS = 8.0
"""A first token that comes later than this is worth a word."""
_ANSWER_SECONDS = 120.0
_QUESTION = "Say hi."


async def services(client: Client, names: Sequence[str]) -> Finding:
    """Checks that the services answer; one that refuses the key is up all the same."""

    async def away(name: str) -> str:
        try:
            await client.server_info(name)
        except (Unauthenticated, PermissionDenied):
            return ""
        except TurnwireError:
            return f"{name} at {address_of(name)}"
        return ""

    down = [told for told in await asyncio.gather(*(away(name) for name in names)) if told]
    if down:
        return Finding(
            "services",
            "problem",
            f"no answer from {', '.join(down)}",
            "look into `logs` of the data directory; `turnwire down` and `turnwire up` start them anew",
        )
    return Finding("services", "ok", f"{', '.join(names)} up")


def switched_off(off: Mapping[str, str]) -> Iterator[Finding]:
    """Yields a note for each service that this machine cannot run."""
    for name, why in off.items():
        said, _, todo = why.partition(". To do: ")
        # An error ends with where to read more: that is here.
        yield Finding(name, "note", f"off: {said}", todo.partition(". `turnwire doctor`")[0])


async def key(client: Client) -> Finding:
    """Checks that the mesh takes the key of `TURNWIRE_API_KEY`, or needs none."""
    from turnwire.access.v1 import access_service_pb2
    from turnwire.access.v1.access_service_pb2_grpc import AccessServiceStub
    from turnwire.client.answers import answered

    try:
        stub = AccessServiceStub(client._channel("agent"))
        who = await answered(stub.WhoAmI(access_service_pb2.WhoAmIRequest(), timeout=5.0), service="agent")
    except Unauthenticated:
        if os.environ.get("TURNWIRE_API_KEY"):
            return Finding(
                "key",
                "problem",
                "the mesh does not know the key in TURNWIRE_API_KEY",
                "set it to a key of `access.api_keys` of the mesh's settings",
            )
        return Finding(
            "key", "problem", "the mesh wants a key and there is none", "set TURNWIRE_API_KEY to one of its keys"
        )
    except TurnwireError as error:
        return Finding("key", "note", f"not checked: {error.message}")
    return Finding("key", "ok", f"{who.subject}, tenant {who.tenant}, {', '.join(who.roles)}")


async def providers(client: Client) -> Finding:
    """Checks that the providers of the inference service can serve."""
    from turnwire.common.v1 import inspect_service_pb2

    try:
        found = await client.list_providers("inference")
    except TurnwireError as error:
        return Finding("providers", "note", f"not checked: {error.message}")
    away = [
        f"{each.provider_id}: {each.detail}"
        for each in found
        if each.state == inspect_service_pb2.Provider.STATE_UNAVAILABLE
    ]
    if away:
        return Finding("providers", "problem", "; ".join(away), "`turnwire providers` shows them all")
    if not found:
        return Finding("providers", "problem", "none is configured", "name one under `providers.inference`")
    return Finding("providers", "ok", f"{', '.join(each.provider_id for each in found)} can serve")


async def first_token(client: Client, agent_id: str = "assistant") -> tuple[Finding, dict[str, float]]:
    """Asks an agent one short question; tells, and returns, the time to its first token and its prompt's tokens."""
    from turnwire.agent.v1 import agent_pb2 as messages
    from turnwire.agent.v1 import turn_pb2

    overrides = messages.AgentConfig()
    overrides.sampling_parameters.greedy.SetInParent()
    overrides.sampling_parameters.max_tokens = 8
    try:
        session = (await client.create_session(agent_id)).session_id
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                seconds, stream = await _until_first(client, session, overrides)
        finally:
            await client.delete_session(session, force=True)
    except TurnwireError as error:
        return Finding("first token", "problem", f"{agent_id} does not answer: {error.message}"), {}
    except TimeoutError:
        return Finding(
            "first token", "problem", f"{agent_id} has not answered in {_ANSWER_SECONDS:.0f} s", "`turnwire status`"
        ), {}
    if stream.turn.status != turn_pb2.TURN_STATUS_COMPLETED:
        return Finding("first token", "problem", f"{agent_id} does not answer: {stream.turn.failure.message}"), {}
    tokens = stream.turn.usage.prompt_tokens
    figures = {"first_token_seconds": round(seconds, 3), "prompt_tokens": tokens}
    said = f"after {seconds:.2f} s, for a prompt of {tokens} tokens"
    if seconds > SLOW_SECONDS:
        return Finding("first token", "note", f"{said}: that is slow", "end other programs, or use a smaller model"), (
            figures
        )
    return Finding("first token", "ok", said), figures


async def _until_first(client: Client, session_id: str, overrides: agent_pb2.AgentConfig) -> tuple[float, TurnStream]:
    """Runs a turn to its end; returns the seconds to its first delta, and the turn."""
    begun = time.monotonic()
    first: float | None = None
    stream = client.run_turn(session_id, _QUESTION, overrides=overrides, resume_timeout=5.0)
    async with stream:
        async for event in stream:
            if first is None and event.WhichOneof("payload") == "step_delta":
                first = time.monotonic() - begun
    return first if first is not None else time.monotonic() - begun, stream
