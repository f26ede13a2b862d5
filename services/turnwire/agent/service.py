"""The RPCs of the agent service: requests are checked here, the work is done by the nouns."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from turnwire.agent import validation
from turnwire.agent.log.cursor import Cursor
from turnwire.agent.log.turn_log import LogReplaced
from turnwire.agent.v1 import agent_service_pb2 as messages
from turnwire.agent.v1 import turn_pb2
from turnwire.agent.v1.agent_service_pb2_grpc import AgentServiceServicer
from turnwire.errors import SequenceOutOfRange
from turnwire.runtime.failpoints import declare_methods
from turnwire.runtime.identity import current
from turnwire.runtime.unimplemented import unimplemented
from turnwire.runtime.validation import Violations

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    import grpc

    from turnwire.agent.agents import Agents
    from turnwire.agent.live.acceptance import Acceptance
    from turnwire.agent.live.control import TurnControl
    from turnwire.agent.live.registry import LiveTurns
    from turnwire.agent.sessions import Sessions
    from turnwire.agent.transfer import Transfer
    from turnwire.agent.turns import Turns
    from turnwire.agent.v1 import event_pb2

    Context = grpc.aio.ServicerContext[Any, Any]

declare_methods(
    messages.DESCRIPTOR.services_by_name["AgentService"], "RunTurn", "WatchTurn", "CancelTurn", "SubmitTurnInput"
)


@dataclass(frozen=True, slots=True)
class Nouns:
    """What the service is made of."""

    agents: Agents
    sessions: Sessions
    turns: Turns
    live: LiveTurns
    acceptance: Acceptance
    control: TurnControl
    transfer: Transfer
    heartbeat_seconds: float


class AgentServicer(AgentServiceServicer):
    """Serves `turnwire.agent.v1.AgentService`; every method works for the tenant of its caller."""

    def __init__(self, nouns: Nouns) -> None:
        """Works on these nouns."""
        self._nouns = nouns

    # Agents

    async def CreateAgent(self, request: messages.CreateAgentRequest, context: Context) -> messages.CreateAgentResponse:
        """Makes an agent."""
        violations = Violations()
        validation.check_agent_texts(violations, "", request.name, request.description)
        validation.check_metadata(violations, "metadata", request.metadata)
        validation.check_length(violations, "request_id", request.request_id, 200)
        violations.raise_if_any()
        agent = await self._nouns.agents.create(current().tenant, request)
        return messages.CreateAgentResponse(agent=agent)

    async def GetAgent(self, request: messages.GetAgentRequest, context: Context) -> messages.GetAgentResponse:
        """Gets an agent in a version."""
        violations = Violations()
        validation.check_id(violations, "agent_id", request.agent_id)
        _check_version(violations, "version", request.version)
        violations.raise_if_any()
        agent = await self._nouns.agents.get(current().tenant, request.agent_id, request.version)
        return messages.GetAgentResponse(agent=agent)

    async def ListAgents(self, request: messages.ListAgentsRequest, context: Context) -> messages.ListAgentsResponse:
        """Lists agents."""
        agents, token = await self._nouns.agents.page(current().tenant, request.page_size, request.page_token)
        return messages.ListAgentsResponse(agents=agents, next_page_token=token)

    async def ListAgentVersions(
        self, request: messages.ListAgentVersionsRequest, context: Context
    ) -> messages.ListAgentVersionsResponse:
        """Lists the versions of an agent."""
        _require_id("agent_id", request.agent_id)
        agents, token = await self._nouns.agents.versions(
            current().tenant, request.agent_id, request.page_size, request.page_token
        )
        return messages.ListAgentVersionsResponse(agents=agents, next_page_token=token)

    async def UpdateAgent(self, request: messages.UpdateAgentRequest, context: Context) -> messages.UpdateAgentResponse:
        """Changes an agent."""
        violations = Violations()
        validation.check_id(violations, "agent.agent_id", request.agent.agent_id)
        validation.check_agent_mask(violations, request.update_mask)
        validation.check_agent_texts(violations, "agent.", request.agent.name, request.agent.description)
        validation.check_metadata(violations, "agent.metadata", request.agent.metadata)
        violations.raise_if_any()
        return messages.UpdateAgentResponse(agent=await self._nouns.agents.update(current().tenant, request))

    async def DeleteAgent(self, request: messages.DeleteAgentRequest, context: Context) -> messages.DeleteAgentResponse:
        """Deletes an agent."""
        _require_id("agent_id", request.agent_id)
        await self._nouns.agents.delete(
            current().tenant, request.agent_id, request.etag, force=request.force, owned=self._nouns.sessions
        )
        return messages.DeleteAgentResponse()

    # Sessions

    async def CreateSession(
        self, request: messages.CreateSessionRequest, context: Context
    ) -> messages.CreateSessionResponse:
        """Begins a session."""
        violations = Violations()
        validation.check_id(violations, "agent_id", request.agent_id)
        _check_version(violations, "agent_version", request.agent_version)
        _check_session_texts(violations, "", request.title, request.request_id)
        validation.check_metadata(violations, "metadata", request.metadata)
        violations.raise_if_any()
        return messages.CreateSessionResponse(session=await self._nouns.sessions.create(current().tenant, request))

    async def GetSession(self, request: messages.GetSessionRequest, context: Context) -> messages.GetSessionResponse:
        """Gets a session."""
        _require_id("session_id", request.session_id)
        return messages.GetSessionResponse(session=await self._nouns.sessions.get(current().tenant, request.session_id))

    async def ListSessions(
        self, request: messages.ListSessionsRequest, context: Context
    ) -> messages.ListSessionsResponse:
        """Lists sessions."""
        sessions, token = await self._nouns.sessions.page(
            current().tenant, request.agent_id, request.page_size, request.page_token
        )
        return messages.ListSessionsResponse(sessions=sessions, next_page_token=token)

    async def UpdateSession(
        self, request: messages.UpdateSessionRequest, context: Context
    ) -> messages.UpdateSessionResponse:
        """Changes a session."""
        violations = Violations()
        validation.check_id(violations, "session.session_id", request.session.session_id)
        validation.check_session_mask(violations, request.update_mask)
        _check_version(violations, "session.agent_version", request.session.agent_version)
        _check_session_texts(violations, "session.", request.session.title, "")
        validation.check_metadata(violations, "session.metadata", request.session.metadata)
        violations.raise_if_any()
        return messages.UpdateSessionResponse(session=await self._nouns.sessions.update(current().tenant, request))

    async def DeleteSession(
        self, request: messages.DeleteSessionRequest, context: Context
    ) -> messages.DeleteSessionResponse:
        """Deletes a session and its turns."""
        _require_id("session_id", request.session_id)
        await self._nouns.sessions.delete(current().tenant, request.session_id, force=request.force)
        return messages.DeleteSessionResponse()

    async def ForkSession(self, request: messages.ForkSessionRequest, context: Context) -> messages.ForkSessionResponse:
        """Forks a session at a turn."""
        violations = Violations()
        validation.check_id(violations, "session_id", request.session_id)
        _check_session_texts(violations, "", request.title, request.request_id)
        validation.check_metadata(violations, "metadata", request.metadata)
        violations.raise_if_any()
        return messages.ForkSessionResponse(session=await self._nouns.sessions.fork(current().tenant, request))

    # Turns

    async def RunTurn(self, request: messages.RunTurnRequest, context: Context) -> AsyncIterator[event_pb2.StepEvent]:
        """Accepts a turn, or attaches to it, and streams its events."""
        validation.check_run_turn(request)
        tenant = current().tenant
        turn_id = await self._nouns.acceptance.accept(tenant, request)
        async with aclosing(self._stream(tenant, turn_id, 0, follow_pauses=request.follow_pauses)) as events:
            async for event in events:
                yield event

    async def WatchTurn(
        self, request: messages.WatchTurnRequest, context: Context
    ) -> AsyncIterator[event_pb2.StepEvent]:
        """Streams the events of a turn after a position."""
        validation.check_position(request)
        events = self._stream(
            current().tenant, request.turn_id, request.after_sequence, follow_pauses=request.follow_pauses
        )
        async with aclosing(events):
            async for event in events:
                yield event

    async def GetTurn(self, request: messages.GetTurnRequest, context: Context) -> messages.GetTurnResponse:
        """Gets a turn with its steps."""
        _require_id("turn_id", request.turn_id)
        return messages.GetTurnResponse(turn=await self._nouns.turns.get(current().tenant, request.turn_id))

    async def ListTurns(self, request: messages.ListTurnsRequest, context: Context) -> messages.ListTurnsResponse:
        """Lists turns."""
        violations = Violations()
        for index, status in enumerate(request.statuses):
            if status not in turn_pb2.TurnStatus.values() or status == turn_pb2.TURN_STATUS_UNSPECIFIED:
                violations.add(f"statuses[{index}]", f"{status} is no status of a turn")
        violations.raise_if_any()
        turns, token = await self._nouns.turns.page(
            current().tenant, request.session_id, request.statuses, request.page_size, request.page_token
        )
        return messages.ListTurnsResponse(turns=turns, next_page_token=token)

    async def UpdateTurn(self, request: messages.UpdateTurnRequest, context: Context) -> messages.UpdateTurnResponse:
        """Changes the labels of a turn."""
        violations = Violations()
        validation.check_id(violations, "turn_id", request.turn_id)
        validation.check_metadata(violations, "metadata", request.metadata)
        violations.raise_if_any()
        turn = await self._nouns.turns.relabel(current().tenant, request.turn_id, dict(request.metadata))
        return messages.UpdateTurnResponse(turn=turn)

    async def DeleteTurn(self, request: messages.DeleteTurnRequest, context: Context) -> messages.DeleteTurnResponse:
        """Deletes a turn that has ended."""
        _require_id("turn_id", request.turn_id)
        await self._nouns.turns.delete(current().tenant, request.turn_id)
        return messages.DeleteTurnResponse()

    async def CancelTurn(self, request: messages.CancelTurnRequest, context: Context) -> messages.CancelTurnResponse:
        """Cancels a turn."""
        violations = Violations()
        validation.check_id(violations, "turn_id", request.turn_id)
        validation.check_length(violations, "reason", request.reason, 500)
        violations.raise_if_any()
        return await self._nouns.control.cancel(current().tenant, request)

    async def SubmitTurnInput(
        self, request: messages.SubmitTurnInputRequest, context: Context
    ) -> messages.SubmitTurnInputResponse:
        """Takes answers to what a turn waits for."""
        validation.check_submit(request)
        return await self._nouns.control.submit(current().tenant, request)

    @unimplemented("AgentService/SteerTurn", "Cancel the turn, or wait for its end and run another.")
    async def SteerTurn(self, request: messages.SteerTurnRequest, context: Context) -> messages.SteerTurnResponse:
        """Is not built yet."""
        raise NotImplementedError

    async def GetStep(self, request: messages.GetStepRequest, context: Context) -> messages.GetStepResponse:
        """Gets one step."""
        violations = Violations()
        validation.check_id(violations, "turn_id", request.turn_id)
        validation.check_id(violations, "step_id", request.step_id)
        violations.raise_if_any()
        step = await self._nouns.turns.step(current().tenant, request.turn_id, request.step_id)
        return messages.GetStepResponse(step=step)

    async def ListSteps(self, request: messages.ListStepsRequest, context: Context) -> messages.ListStepsResponse:
        """Lists the steps of a turn."""
        _require_id("turn_id", request.turn_id)
        steps, token = await self._nouns.turns.steps(
            current().tenant, request.turn_id, request.page_size, request.page_token
        )
        return messages.ListStepsResponse(steps=steps, next_page_token=token)

    async def ExportTurn(
        self, request: messages.ExportTurnRequest, context: Context
    ) -> AsyncIterator[messages.ExportTurnResponse]:
        """Streams the records of a turn that has ended."""
        _require_id("turn_id", request.turn_id)
        for record in await self._nouns.transfer.exported(current().tenant, request.turn_id):
            yield messages.ExportTurnResponse(record=record)

    async def ImportTurn(
        self, request_iterator: AsyncIterator[messages.ImportTurnRequest], context: Context
    ) -> messages.ImportTurnResponse:
        """Takes the records of a turn in."""
        turn = await self._nouns.transfer.imported(current().tenant, request_iterator)
        return messages.ImportTurnResponse(turn=turn)

    async def _stream(
        self, tenant: str, turn_id: str, after: int, *, follow_pauses: bool
    ) -> AsyncGenerator[event_pb2.StepEvent]:
        while True:
            try:
                async with aclosing(self._shown(tenant, turn_id, after, follow_pauses=follow_pauses)) as events:
                    async for event in events:
                        yield event
                        after = event.sequence
            except LogReplaced:
                continue  # another replica has taken the turn over, or this one has: the stream goes on
            return

    async def _shown(
        self, tenant: str, turn_id: str, after: int, *, follow_pauses: bool
    ) -> AsyncGenerator[event_pb2.StepEvent]:
        live = self._nouns.live
        async with live.opened(tenant, turn_id) as turn:
            if turn.task is None and not turn.log.fold.finished and not live.lease.exclusive:
                await live.refresh(turn)
            highest = turn.log.last_sequence if turn.log.fold.finished else turn.log.ceiling
            if after > highest:
                raise SequenceOutOfRange(turn_id, after_sequence=after, last_sequence=turn.log.last_sequence)
            cursor = Cursor(
                turn.log, after, follow_pauses=follow_pauses, heartbeat_seconds=self._nouns.heartbeat_seconds
            )
            async with live.watched(turn), aclosing(cursor.events()) as events:
                async for event in events:
                    yield event


def _require_id(field: str, value: str) -> None:
    violations = Violations()
    validation.check_id(violations, field, value)
    violations.raise_if_any()


def _check_version(violations: Violations, field: str, version: int) -> None:
    if version < 0:
        violations.add(field, f"must not be negative; it is {version}")


def _check_session_texts(violations: Violations, prefix: str, title: str, request_id: str) -> None:
    validation.check_length(violations, f"{prefix}title", title, 200)
    validation.check_length(violations, "request_id", request_id, 200)
