"""Chat completions by an agent: one turn in a session of its own, which is deleted with the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import structlog

from turnwire.agent.v1 import agent_pb2, agent_service_pb2
from turnwire.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from turnwire.agent.v1.event_pb2 import DELTA_PART_ANSWER
from turnwire.common.v1 import message_pb2
from turnwire.errors import Cancelled, Unavailable, from_failure
from turnwire.runtime.channels import upstream
from turnwire_gateway.openai.failures import Refused
from turnwire_gateway.openai.pieces import Beat, Begun, Ended, Piece, Text, finish_reason

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from turnwire.agent.v1 import event_pb2
    from turnwire_gateway.openai.asked import Asked
    from turnwire_gateway.upstream import Caller, Upstreams

_log = structlog.get_logger(__name__)
_SECONDS = 15.0


async def agent_pieces(agent_id: str, asked: Asked, upstreams: Upstreams, caller: Caller) -> AsyncGenerator[Piece]:
    """Gives what an agent answers.

    Raises:
        Refused: an agent cannot honour something that is asked.
    """
    said = _said(asked)
    stub = AgentServiceStub(upstreams.channel("agent"))
    streams = AgentServiceStub(upstreams.channel("agent", streams=True))
    found = await stub.GetAgent(
        agent_service_pb2.GetAgentRequest(agent_id=agent_id), metadata=caller.metadata, timeout=_SECONDS
    )
    begun = await stub.CreateSession(
        agent_service_pb2.CreateSessionRequest(agent_id=agent_id, agent_version=found.agent.version),
        metadata=caller.metadata,
        timeout=_SECONDS,
    )
    session_id = begun.session.session_id
    try:
        request = agent_service_pb2.RunTurnRequest(session_id=session_id, messages=said, metadata=asked.labels)
        _override(request, found.agent.config, asked)
        async with upstream(streams.RunTurn(request, metadata=caller.metadata)) as call:
            answer = _Answer()
            async for event in call:
                for piece in answer.pieces(event):
                    yield piece
            if not answer.ended:
                raise Unavailable.cut("agent")
    finally:
        # A turn that still runs is cancelled with it: nobody could read its answer any more.
        await _delete(stub, session_id, caller)


async def _delete(stub: AgentServiceStub, session_id: str, caller: Caller) -> None:
    try:
        await stub.DeleteSession(
            agent_service_pb2.DeleteSessionRequest(session_id=session_id, force=True),
            metadata=caller.metadata,
            timeout=_SECONDS,
        )
    except grpc.RpcError as error:
        _log.warning("session_left", session_id=session_id, error=str(error))


def _said(asked: Asked) -> list[message_pb2.Message]:
    """Returns the messages of the turn: instructions go another way, and calls of tools are the agent's own."""
    if asked.tools:
        raise Refused("tools", "An agent has tools of its own: leave tools out, or give them to the agent.")
    said: list[message_pb2.Message] = []
    for index, message in enumerate(asked.messages):
        if message.role == message_pb2.ROLE_TOOL or message.tool_calls:
            raise Refused(f"messages[{index}]", "An agent takes no calls of tools from outside: leave them out.")
        if message.role != message_pb2.ROLE_SYSTEM:
            said.append(message)
    if not said or said[-1].role != message_pb2.ROLE_USER:
        raise Refused("messages", "The last message to an agent is the user's.")
    return said


def _override(request: agent_service_pb2.RunTurnRequest, config: agent_pb2.AgentConfig, asked: Asked) -> None:
    """Lets the request change what the agent was told, for this turn; what it does not name stays the agent's."""
    changed, mask = request.overrides.config, request.overrides.mask
    told = [
        part.text for message in asked.messages if message.role == message_pb2.ROLE_SYSTEM for part in message.parts
    ]
    if told:
        changed.instructions = "\n\n".join(text for text in (config.instructions, *told) if text)
        mask.paths.append("instructions")
    if asked.sampling.ByteSize():
        changed.sampling_parameters.CopyFrom(config.sampling_parameters)
        if asked.sampling.stop_sequences:
            changed.sampling_parameters.ClearField("stop_sequences")
        changed.sampling_parameters.MergeFrom(asked.sampling)
        mask.paths.append("sampling_parameters")
    if asked.tool_choice is not None:
        changed.tool_choice.CopyFrom(asked.tool_choice)
        mask.paths.append("tool_choice")
    if asked.response_format is not None:
        changed.response_format.CopyFrom(asked.response_format)
        mask.paths.append("response_format")
    if not mask.paths:
        request.ClearField("overrides")


class _Answer:
    """The answer within a turn's events."""

    def __init__(self) -> None:
        self.ended = False
        self._step = ""
        self._texts: dict[str, str] = {}

    def pieces(self, event: event_pb2.StepEvent) -> list[Piece]:
        match event.WhichOneof("payload"):
            case "turn_started":
                return [Begun()]
            case "step_delta" if event.step_delta.part == DELTA_PART_ANSWER:
                return self._text(event.step_id, event.step_delta.text)
            case "step_restarted" if self._texts.pop(event.step_id, ""):
                # What was sent cannot be taken back, and the new attempt says something else.
                raise Unavailable("inference", detail="its answer was cut in the middle; ask again")
            case "heartbeat":
                return [Beat()]
            case "turn_completed":
                return self._completed(event.turn_completed)
            case "turn_failed":
                raise from_failure(event.turn_failed.failure)
            case "turn_cancelled":
                raise Cancelled(f"The turn was cancelled: {event.turn_cancelled.reason or 'no reason was given'}.")
            case "turn_awaiting_input":
                raise Refused(
                    "model", "This agent waits for an answer of its caller: run it with RunTurn and SubmitTurnInput."
                )
            case _:
                return []

    def _text(self, step_id: str, text: str) -> list[Piece]:
        if not text:
            return []
        # An agent may speak before it calls a tool, and again after.
        before: list[Piece] = [Text("\n\n")] if self._texts and step_id != self._step else []
        self._step = step_id
        self._texts[step_id] = self._texts.get(step_id, "") + text
        return [*before, Text(text)]

    def _completed(self, completed: event_pb2.TurnCompleted) -> list[Piece]:
        self.ended = True
        said: list[Piece] = []
        if not self._texts.get(completed.output_step_id):
            # Nobody has seen it yet: what a shield says instead of an answer.
            said = self._text("output", "".join(part.text for part in completed.output.parts))
        return [*said, Ended(finish_reason(completed.output.stop_reason, called=False), completed.usage)]
