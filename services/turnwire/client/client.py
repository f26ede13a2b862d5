"""A connection to a mesh."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from turnwire import __version__
from turnwire.agent.v1 import agent_pb2, agent_service_pb2, session_pb2, turn_pb2
from turnwire.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from turnwire.client.finding import address_of
from turnwire.client.turn_stream import TurnStream
from turnwire.common.v1 import inspect_service_pb2, message_pb2
from turnwire.common.v1.inspect_service_pb2_grpc import InspectServiceStub
from turnwire.errors import from_rpc_error
from turnwire.ids import new_id
from turnwire.inference.v1 import model_pb2, model_service_pb2
from turnwire.inference.v1.model_service_pb2_grpc import ModelServiceStub
from turnwire.runtime.channels import Metadata, PreparedChannel, channel_options
from turnwire.runtime.directory import open_channel
from turnwire.runtime.settings import TlsSettings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

T = TypeVar("T")
_SECONDS = 15.0
_KEEPALIVE_MS = 30_000


class Client:
    """Agents, sessions, turns and models of a mesh, for one caller.

    Methods take plain values and return messages of the contract; failures are errors of `turnwire.errors`.
    """

    def __init__(self, channels: Callable[[str], PreparedChannel]) -> None:
        """Use `Client.connect`."""
        self._channels = channels
        agent: Any = channels("agent")
        inference: Any = channels("inference")
        self.agent_stub = AgentServiceStub(agent)
        """The stub of AgentService, for what has no method here."""
        self.model_stub = ModelServiceStub(inference)
        """The stub of ModelService."""

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        address: str | None = None,
        *,
        api_key: str | None = None,
        inference_address: str | None = None,
        tls: TlsSettings | None = None,
    ) -> AsyncGenerator[Client]:
        """Gives a client of the mesh at `address`; closed on exit.

        Without an address: `TURNWIRE_AGENT_ADDRESS`, the mesh that `turnwire up` started, or 127.0.0.1:50051. Without
        a key: `TURNWIRE_API_KEY`.
        """
        key = api_key or os.environ.get("TURNWIRE_API_KEY", "")
        addresses = {"agent": address, "inference": inference_address}
        opened: dict[str, PreparedChannel] = {}

        def prepare(timeout: float | None, metadata: Metadata | None) -> tuple[float | None, Metadata]:
            sent = [*(metadata or ()), ("turnwire-client", f"turnwire-python/{__version__}")]
            if key:
                sent.append(("authorization", f"Bearer {key}"))
            return timeout, tuple(sent)

        def channel(service: str) -> PreparedChannel:
            if service not in opened:
                where = addresses.get(service) or address_of(service)
                options = channel_options(keepalive_ms=_KEEPALIVE_MS)
                opened[service] = PreparedChannel(open_channel(where, tls or TlsSettings(), options), prepare)
            return opened[service]

        try:
            yield cls(channel)
        finally:
            for each in opened.values():
                await each.close()

    # Turns

    def run_turn(
        self,
        session_id: str,
        messages: str | Sequence[message_pb2.Message],
        *,
        turn_id: str = "",
        overrides: agent_pb2.AgentConfig | None = None,
        metadata: Mapping[str, str] | None = None,
        tools: Mapping[str, Callable[..., Any]] | None = None,
        follow_pauses: bool = False,
        heartbeats: bool = False,
        disconnect_policy: agent_service_pb2.DisconnectPolicy.ValueType = (
            agent_service_pb2.DISCONNECT_POLICY_UNSPECIFIED
        ),
        resume_timeout: float = 60.0,
    ) -> TurnStream:
        """Returns the events of a new turn. The turn begins when they are first asked for.

        `tools` maps names of the caller's functions to functions: the turn's calls of them are answered, and it goes
        on by itself.
        """
        request = agent_service_pb2.RunTurnRequest(
            session_id=session_id,
            turn_id=turn_id or new_id("turn"),
            messages=[user_message(messages)] if isinstance(messages, str) else messages,
            metadata=metadata or {},
            follow_pauses=follow_pauses,
            disconnect_policy=disconnect_policy,
        )
        if overrides is not None:
            request.overrides.config.CopyFrom(overrides)
        return TurnStream(
            self.agent_stub,
            request=request,
            tools=tools,
            follow_pauses=follow_pauses,
            heartbeats=heartbeats,
            resume_timeout=resume_timeout,
        )

    def watch_turn(
        self, turn_id: str, *, after_sequence: int = 0, follow_pauses: bool = False, resume_timeout: float = 60.0
    ) -> TurnStream:
        """Returns the events of a turn after a number."""
        return TurnStream(
            self.agent_stub,
            turn_id=turn_id,
            after_sequence=after_sequence,
            follow_pauses=follow_pauses,
            resume_timeout=resume_timeout,
        )

    async def get_turn(self, turn_id: str) -> turn_pb2.Turn:
        """Returns a turn with its steps."""
        request = agent_service_pb2.GetTurnRequest(turn_id=turn_id)
        return (await _done(self.agent_stub.GetTurn(request, timeout=_SECONDS))).turn

    async def list_turns(self, **fields: Any) -> agent_service_pb2.ListTurnsResponse:
        """Returns a page of turns; fields are those of ListTurnsRequest."""
        request = agent_service_pb2.ListTurnsRequest(**fields)
        return await _done(self.agent_stub.ListTurns(request, timeout=_SECONDS))

    async def cancel_turn(
        self, turn_id: str, *, reason: str = "", allow_missing: bool = False
    ) -> agent_service_pb2.CancelTurnResponse:
        """Cancels a turn; returns when it has ended."""
        request = agent_service_pb2.CancelTurnRequest(turn_id=turn_id, reason=reason, allow_missing=allow_missing)
        return await _done(self.agent_stub.CancelTurn(request, timeout=_SECONDS))

    async def submit_turn_input(
        self, turn_id: str, results: Sequence[message_pb2.ToolResult], *, request_id: str = ""
    ) -> agent_service_pb2.SubmitTurnInputResponse:
        """Gives a waiting turn the results of the caller's functions."""
        inputs = [turn_pb2.TurnInput(tool_result=result) for result in results]
        request = agent_service_pb2.SubmitTurnInputRequest(turn_id=turn_id, inputs=inputs, request_id=request_id)
        return await _done(self.agent_stub.SubmitTurnInput(request, timeout=_SECONDS))

    async def delete_turn(self, turn_id: str) -> None:
        """Deletes a turn that has ended."""
        await _done(self.agent_stub.DeleteTurn(agent_service_pb2.DeleteTurnRequest(turn_id=turn_id), timeout=_SECONDS))

    # Sessions

    async def create_session(self, agent_id: str = "assistant", **fields: Any) -> session_pb2.Session:
        """Begins a session; further fields are those of CreateSessionRequest."""
        request = agent_service_pb2.CreateSessionRequest(agent_id=agent_id, **fields)
        return (await _done(self.agent_stub.CreateSession(request, timeout=_SECONDS))).session

    async def get_session(self, session_id: str) -> session_pb2.Session:
        """Returns a session."""
        request = agent_service_pb2.GetSessionRequest(session_id=session_id)
        return (await _done(self.agent_stub.GetSession(request, timeout=_SECONDS))).session

    async def list_sessions(self, **fields: Any) -> agent_service_pb2.ListSessionsResponse:
        """Returns a page of sessions, newest first; fields are those of ListSessionsRequest."""
        request = agent_service_pb2.ListSessionsRequest(**fields)
        return await _done(self.agent_stub.ListSessions(request, timeout=_SECONDS))

    async def fork_session(self, session_id: str, *, turn_id: str = "", title: str = "") -> session_pb2.Session:
        """Begins a session with the history of another one up to a turn."""
        request = agent_service_pb2.ForkSessionRequest(session_id=session_id, turn_id=turn_id, title=title)
        return (await _done(self.agent_stub.ForkSession(request, timeout=_SECONDS))).session

    async def delete_session(self, session_id: str, *, force: bool = False) -> None:
        """Deletes a session and its turns."""
        request = agent_service_pb2.DeleteSessionRequest(session_id=session_id, force=force)
        await _done(self.agent_stub.DeleteSession(request, timeout=_SECONDS))

    # Agents

    async def create_agent(self, config: agent_pb2.AgentConfig, **fields: Any) -> agent_pb2.Agent:
        """Makes an agent; further fields are those of CreateAgentRequest."""
        request = agent_service_pb2.CreateAgentRequest(config=config, **fields)
        return (await _done(self.agent_stub.CreateAgent(request, timeout=_SECONDS))).agent

    async def get_agent(self, agent_id: str, *, version: int = 0) -> agent_pb2.Agent:
        """Returns an agent in a version; 0 is the newest."""
        request = agent_service_pb2.GetAgentRequest(agent_id=agent_id, version=version)
        return (await _done(self.agent_stub.GetAgent(request, timeout=_SECONDS))).agent

    async def list_agents(self, **fields: Any) -> agent_service_pb2.ListAgentsResponse:
        """Returns a page of agents; fields are those of ListAgentsRequest."""
        return await _done(self.agent_stub.ListAgents(agent_service_pb2.ListAgentsRequest(**fields), timeout=_SECONDS))

    async def update_agent(self, agent: agent_pb2.Agent, paths: Sequence[str] = ()) -> agent_pb2.Agent:
        """Changes the fields `paths` of an agent."""
        request = agent_service_pb2.UpdateAgentRequest(agent=agent)
        request.update_mask.paths.extend(paths)
        return (await _done(self.agent_stub.UpdateAgent(request, timeout=_SECONDS))).agent

    async def delete_agent(self, agent_id: str, *, force: bool = False) -> None:
        """Deletes an agent; with `force` its sessions too."""
        request = agent_service_pb2.DeleteAgentRequest(agent_id=agent_id, force=force)
        await _done(self.agent_stub.DeleteAgent(request, timeout=_SECONDS))

    # Models and processes

    async def list_models(self, **fields: Any) -> model_service_pb2.ListModelsResponse:
        """Returns a page of models; fields are those of ListModelsRequest."""
        request = model_service_pb2.ListModelsRequest(**fields)
        return await _done(self.model_stub.ListModels(request, timeout=_SECONDS), service="inference")

    async def get_model(self, model_id: str) -> model_pb2.Model:
        """Returns a model."""
        request = model_service_pb2.GetModelRequest(model_id=model_id)
        return (await _done(self.model_stub.GetModel(request, timeout=_SECONDS), service="inference")).model

    async def register_model(self, model_id: str, **fields: Any) -> model_pb2.Model:
        """Registers a model; further fields are those of RegisterModelRequest."""
        request = model_service_pb2.RegisterModelRequest(model_id=model_id, **fields)
        return (await _done(self.model_stub.RegisterModel(request, timeout=_SECONDS), service="inference")).model

    async def unregister_model(self, model_id: str) -> None:
        """Takes a registration back."""
        request = model_service_pb2.UnregisterModelRequest(model_id=model_id)
        await _done(self.model_stub.UnregisterModel(request, timeout=_SECONDS), service="inference")

    async def server_info(self, service: str, *, seconds: float = 2.0) -> inspect_service_pb2.GetServerInfoResponse:
        """Returns what a service's process is."""
        stub = InspectServiceStub(self._channel(service))
        request = inspect_service_pb2.GetServerInfoRequest()
        return await _done(stub.GetServerInfo(request, timeout=seconds), service=service)

    async def list_providers(
        self, service: str = "inference", *, seconds: float = 10.0
    ) -> Sequence[inspect_service_pb2.Provider]:
        """Returns the providers of a service and their state."""
        stub = InspectServiceStub(self._channel(service))
        request = inspect_service_pb2.ListProvidersRequest(service=service)
        return (await _done(stub.ListProviders(request, timeout=seconds), service=service)).providers

    def _channel(self, service: str) -> Any:
        return self._channels(service)


def user_message(text: str) -> message_pb2.Message:
    """Returns what a user says."""
    part = message_pb2.ContentPart(text=text, provenance=message_pb2.PROVENANCE_USER)
    return message_pb2.Message(role=message_pb2.ROLE_USER, parts=[part])


async def _done(call: Any, *, service: str = "agent") -> Any:
    try:
        return await call
    except grpc.RpcError as error:
        raise from_rpc_error(error, service=service) from error
