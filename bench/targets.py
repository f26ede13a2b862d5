"""What is measured: the mesh, the bare relay, and the upstream by itself. Each runs a turn and says how it went."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import grpc

from bench import verification
from bench.sse import tokens
from turnwire.agent.v1 import agent_pb2, agent_service_pb2
from turnwire.client.client import user_message
from turnwire.common.v1 import generation_pb2
from turnwire.inference.v1 import inference_service_pb2
from turnwire.runtime.channels import upstream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable

    import aiohttp

    from bench.script import Script
    from turnwire.agent.v1 import event_pb2
    from turnwire.client import Client
    from turnwire.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One turn, as the caller saw it."""

    first_seconds: float
    """From the call to the first token."""
    seconds: float
    """From the call to the end of the stream."""
    verify: Callable[[], None]
    """Raises `BadTurn` when the turn was not right; called after the clock has stopped."""
    stored: Callable[[], Awaitable[None]] | None = None
    """Raises `BadTurn` when what is stored is not what was streamed; where something is stored."""


class Target(Protocol):
    """Something that streams an answer."""

    name: str
    processes: Mapping[str, int]
    """The processes that do it, by name: those whose CPU time it costs."""

    async def prepare(self, count: int, tokens: int) -> list[str]:
        """Returns places for so many turns, made before the clock starts."""
        ...

    async def turn(self, place: str, script: Script) -> Answer:
        """Runs a turn to its end."""
        ...


class Mesh:
    """`RunTurn` of the agent service, each turn in a session of its own."""

    def __init__(self, client: Client, processes: Mapping[str, int], label: str | None, name: str = "mesh") -> None:
        """Runs turns through `client`; `label` is that of every answer, where the upstream knows only one."""
        self.name = name
        self.processes = processes
        self._client = client
        self._label = label
        self._agents: dict[int, str] = {}

    async def prepare(self, count: int, tokens: int) -> list[str]:
        if tokens not in self._agents:
            sampling = generation_pb2.SamplingParameters(max_tokens=tokens)
            config = agent_pb2.AgentConfig(model="scripted", sampling_parameters=sampling)
            self._agents[tokens] = (await self._client.create_agent(config)).agent_id
        return [(await self._client.create_session(self._agents[tokens])).session_id for _ in range(count)]

    async def turn(self, place: str, script: Script) -> Answer:
        request = agent_service_pb2.RunTurnRequest(session_id=place, messages=[user_message(script.prompt)])
        events: list[event_pb2.StepEvent] = []
        first = 0.0
        begun = time.perf_counter()
        call: Any = self._client.agent_stub.RunTurn(request, timeout=_SECONDS)
        async with _whole(script, call):
            async for event in call:
                if not first and event.WhichOneof("payload") == "step_delta":
                    first = time.perf_counter()
                events.append(event)
        ended = time.perf_counter()
        expected = _labelled(script, self._label).text

        def verify() -> None:
            verification.check_turn(events, expected, script.tokens)

        async def stored() -> None:
            folded = verification.check_turn(events, expected, script.tokens)
            if folded != await self._client.get_turn(folded.turn_id):
                raise verification.BadTurn(folded.turn_id, "GetTurn has another turn than its events fold to")

        return Answer(first - begun, ended - begun, verify, stored)


class Stream:
    """`ChatCompletion` of whatever serves it: the relay, or the inference service by itself."""

    def __init__(
        self, name: str, stub: InferenceServiceStub, processes: Mapping[str, int], label: str | None = None
    ) -> None:
        """Calls `stub`."""
        self.name = name
        self.processes = processes
        self._stub = stub
        self._label = label

    async def prepare(self, count: int, tokens: int) -> list[str]:
        return [""] * count

    async def turn(self, place: str, script: Script) -> Answer:
        request = inference_service_pb2.ChatCompletionRequest(model="scripted", messages=[user_message(script.prompt)])
        request.sampling_parameters.max_tokens = script.tokens
        pieces: list[inference_service_pb2.ChatCompletionResponse] = []
        first = 0.0
        begun = time.perf_counter()
        call: Any = self._stub.ChatCompletion(request, timeout=_SECONDS)
        async with _whole(script, call):
            async for piece in call:
                if not first and piece.WhichOneof("payload") == "text":
                    first = time.perf_counter()
                pieces.append(piece)
        ended = time.perf_counter()
        expected = _labelled(script, self._label).words
        return Answer(first - begun, ended - begun, lambda: verification.check_pieces(pieces, script.label, expected))


class Direct:
    """The upstream's own HTTP interface, over a connection that is kept."""

    name = "upstream"

    def __init__(self, session: aiohttp.ClientSession, base_url: str) -> None:
        """Calls `base_url`."""
        self.processes: Mapping[str, int] = {}
        self._session = session
        self._base_url = base_url

    async def prepare(self, count: int, tokens: int) -> list[str]:
        return [""] * count

    async def turn(self, place: str, script: Script) -> Answer:
        words: list[str] = []
        first = 0.0
        begun = time.perf_counter()
        async for word in tokens(self._session, self._base_url, script.prompt, script.tokens):
            first = first or time.perf_counter()
            words.append(word)
        ended = time.perf_counter()
        return Answer(first - begun, ended - begun, lambda: verification.check_words(script.label, script.words, words))


@asynccontextmanager
async def _whole(script: Script, call: Any) -> AsyncGenerator[None]:
    """Closes a call, however it ends; one that fails is a bad turn."""
    try:
        async with upstream(call):
            yield
    except grpc.RpcError as error:
        raise verification.BadTurn(script.label, f"its stream failed: {error}") from error


def _labelled(script: Script, label: str | None) -> Script:
    return script if label is None else type(script)(label, script.tokens, paced=script.paced)
