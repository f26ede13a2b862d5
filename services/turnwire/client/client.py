"""A connection to a mesh."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc

from turnwire import __version__
from turnwire.agent.v1 import agent_pb2, agent_service_pb2, session_pb2, step_pb2, turn_pb2
from turnwire.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from turnwire.client.answers import answered
from turnwire.client.finding import address_of
from turnwire.client.turn_stream import TurnStream
from turnwire.common.v1 import inspect_service_pb2, message_pb2
from turnwire.common.v1.inspect_service_pb2_grpc import InspectServiceStub
from turnwire.ids import new_id
from turnwire.inference.v1 import inference_service_pb2, model_pb2, model_service_pb2
from turnwire.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from turnwire.inference.v1.model_service_pb2_grpc import ModelServiceStub
from turnwire.runtime.channels import Metadata, PreparedChannel, channel_options
from turnwire.runtime.directory import open_channel

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from turnwire.client.banks import Banks
    from turnwire.client.shields import Shields
    from turnwire.client.tools import Tools
    from turnwire.common.v1 import generation_pb2
    from turnwire.runtime.settings import TlsSettings


class Client:
    """Agents, sessions, turns and models of a mesh, for one caller.

    Methods take plain values and return messages of the contract; failures are errors of `turnwire.errors`. One client
    serves any number of tasks of an event loop at once.
    """

    def __init__(self, channels: Callable[[str], PreparedChannel], *, call_timeout: float) -> None:
        """Use `Client.connect`."""
        self._channels = channels
        self._timeout = call_timeout
        agent: Any = channels("agent")
        inference: Any = channels("inference")
        self.agent_stub = AgentServiceStub(agent)
        """The stub of AgentService, for what has no method here."""
        self.model_stub = ModelServiceStub(inference)
        """The stub of ModelService."""
        self.inference_stub = InferenceServiceStub(inference)
        """The stub of InferenceService: models without an agent."""

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        address: str | None = None,
        *,
        api_key: str | None = None,
        inference_address: str | None = None,
        memory_address: str | None = None,
        tls: TlsSettings | None = None,
        call_timeout: float = 15.0,
        keepalive_seconds: float = 30.0,
    ) -> AsyncGenerator[Client]:
        """Gives a client of the mesh at `address`; closed on exit.

        Without an address: `TURNWIRE_AGENT_ADDRESS`, the mesh that `turnwire up` started, or 127.0.0.1:50051. Without
        a key: `TURNWIRE_API_KEY`. Every call but the streams has `call_timeout` seconds. A connection silent for
        `keepalive_seconds` is asked for a sign of life, and given up without one.
        """
        key = api_key or os.environ.get("TURNWIRE_API_KEY", "")
        addresses = {"agent": address, "inference": inference_address, "memory": memory_address}
        opened: dict[str, PreparedChannel] = {}

        def prepare(timeout: float | None, metadata: Metadata | None) -> tuple[float | None, Metadata]:
            sent = [*(metadata or ()), ("turnwire-client", f"turnwire-python/{__version__}")]
            if key:
                sent.append(("authorization", f"Bearer {key}"))
            return timeout, tuple(sent)

        def channel(service: str) -> PreparedChannel:
            if service not in opened:
                where = addresses.get(service) or address_of(service)
                options = channel_options(keepalive_ms=int(keepalive_seconds * 1000))
                # Without TLS no settings are needed, and loading them takes longer than all the rest.
                plain = grpc.aio.insecure_channel(where, options) if tls is None else open_channel(where, tls, options)
                opened[service] = PreparedChannel(plain, prepare)
            return opened[service]

        try:
            yield cls(channel, call_timeout=call_timeout)
        finally:
            for each in opened.values():
                await each.close()

    @property
    def banks(self) -> Banks:
        """Memory banks: documents, and what fits a question."""
        from turnwire.client.banks import Banks  # the contract of the memory service is only for who uses banks

        return Banks(self._channels, self._timeout)

    @property
    def shields(self) -> Shields:
        """Shields: the registry, and their verdicts."""
        from turnwire.client.shields import Shields

        return Shields(self._channels, self._timeout)

    @property
    def tools(self) -> Tools:
        """The registry of tools."""
        from turnwire.client.tools import Tools

        return Tools(self._channels, self._timeout)

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
        busy_policy: agent_service_pb2.BusyPolicy.ValueType = agent_service_pb2.BUSY_POLICY_UNSPECIFIED,
        disconnect_policy: agent_service_pb2.DisconnectPolicy.ValueType = (
            agent_service_pb2.DISCONNECT_POLICY_UNSPECIFIED
        ),
        resume_timeout: float = 60.0,
        stall_timeout: float | None = 60.0,
    ) -> TurnStream:
        """Returns the events of a new turn. The turn begins when they are first asked for.

        `tools` maps names of the caller's functions to functions: the turn's calls of them are answered, and it goes
        on by itself. A pause with a call of something else is left to the caller as a whole. `busy_policy` says what
        happens while another turn of the session runs or waits: refused, queued, or that one interrupted.
        `resume_timeout` is how long a cut stream is tried again, `stall_timeout` how much silence, without a heartbeat,
        counts as cut.
        """
        request = agent_service_pb2.RunTurnRequest(
            session_id=session_id,
            turn_id=turn_id or new_id("turn"),
            messages=_said(messages),
            metadata=metadata or {},
            follow_pauses=follow_pauses,
            busy_policy=busy_policy,
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
            stall_timeout=stall_timeout,
        )

    def watch_turn(
        self,
        turn_id: str,
        *,
        after_sequence: int = 0,
        tools: Mapping[str, Callable[..., Any]] | None = None,
        follow_pauses: bool = False,
        heartbeats: bool = False,
        resume_timeout: float = 60.0,
        stall_timeout: float | None = 60.0,
    ) -> TurnStream:
        """Returns the events of a turn after a number; further arguments are those of `run_turn`.

        With `tools` a program that was started again answers what its turn waits for.
        """
        return TurnStream(
            self.agent_stub,
            turn_id=turn_id,
            after_sequence=after_sequence,
            tools=tools,
            follow_pauses=follow_pauses,
            heartbeats=heartbeats,
            resume_timeout=resume_timeout,
            stall_timeout=stall_timeout,
        )

    async def get_turn(self, turn_id: str) -> turn_pb2.Turn:
        """Returns a turn with its steps."""
        request = agent_service_pb2.GetTurnRequest(turn_id=turn_id)
        return (await answered(self.agent_stub.GetTurn(request, timeout=self._timeout), service="agent")).turn

    async def list_turns(self, **fields: Any) -> agent_service_pb2.ListTurnsResponse:
        """Returns a page of turns; fields are those of ListTurnsRequest."""
        request = agent_service_pb2.ListTurnsRequest(**fields)
        return await answered(self.agent_stub.ListTurns(request, timeout=self._timeout), service="agent")

    async def cancel_turn(
        self, turn_id: str, *, reason: str = "", allow_missing: bool = False
    ) -> agent_service_pb2.CancelTurnResponse:
        """Cancels a turn; returns when it has ended."""
        request = agent_service_pb2.CancelTurnRequest(turn_id=turn_id, reason=reason, allow_missing=allow_missing)
        return await answered(self.agent_stub.CancelTurn(request, timeout=self._timeout), service="agent")

    async def submit_turn_input(
        self, turn_id: str, results: Sequence[message_pb2.ToolResult], *, request_id: str = ""
    ) -> agent_service_pb2.SubmitTurnInputResponse:
        """Gives a waiting turn the results of the caller's functions."""
        inputs = [turn_pb2.TurnInput(tool_result=result) for result in results]
        request = agent_service_pb2.SubmitTurnInputRequest(turn_id=turn_id, inputs=inputs, request_id=request_id)
        return await answered(self.agent_stub.SubmitTurnInput(request, timeout=self._timeout), service="agent")

    async def resolve_turn_call(
        self,
        turn_id: str,
        call_id: str,
        choice: turn_pb2.OutcomeDecision.Choice.ValueType,
        *,
        result: message_pb2.ToolResult | None = None,
        request_id: str = "",
    ) -> agent_service_pb2.SubmitTurnInputResponse:
        """Decides about a call whose outcome was lost; CHOICE_PROVIDE goes with its `result`."""
        decision = turn_pb2.OutcomeDecision(call_id=call_id, choice=choice, result=result)
        inputs = [turn_pb2.TurnInput(outcome_decision=decision)]
        request = agent_service_pb2.SubmitTurnInputRequest(turn_id=turn_id, inputs=inputs, request_id=request_id)
        return await answered(self.agent_stub.SubmitTurnInput(request, timeout=self._timeout), service="agent")

    async def update_turn(self, turn_id: str, metadata: Mapping[str, str]) -> turn_pb2.Turn:
        """Gives a turn other labels; returns it without its steps."""
        request = agent_service_pb2.UpdateTurnRequest(turn_id=turn_id, metadata=metadata)
        return (await answered(self.agent_stub.UpdateTurn(request, timeout=self._timeout), service="agent")).turn

    async def delete_turn(self, turn_id: str) -> None:
        """Deletes a turn that has ended."""
        await answered(
            self.agent_stub.DeleteTurn(agent_service_pb2.DeleteTurnRequest(turn_id=turn_id), timeout=self._timeout),
            service="agent",
        )

    async def export_turn(self, turn_id: str) -> list[agent_service_pb2.TurnRecord]:
        """Returns the records of a turn that has ended."""
        call = self.agent_stub.ExportTurn(agent_service_pb2.ExportTurnRequest(turn_id=turn_id), timeout=self._timeout)
        return [response.record for response in await answered(_all(call), service="agent")]

    async def import_turn(
        self, session_id: str, records: Sequence[agent_service_pb2.TurnRecord], *, turn_id: str = ""
    ) -> turn_pb2.Turn:
        """Takes the records of a turn into a session, under the id it had or another one; returns it without steps."""
        requests = [agent_service_pb2.ImportTurnRequest(record=record) for record in records]
        if requests:
            requests[0].session_id, requests[0].turn_id = session_id, turn_id
        return (await answered(self.agent_stub.ImportTurn(iter(requests), timeout=self._timeout), service="agent")).turn

    async def get_step(self, turn_id: str, step_id: str) -> step_pb2.Step:
        """Returns a step of a turn."""
        request = agent_service_pb2.GetStepRequest(turn_id=turn_id, step_id=step_id)
        return (await answered(self.agent_stub.GetStep(request, timeout=self._timeout), service="agent")).step

    async def list_steps(self, turn_id: str, **fields: Any) -> agent_service_pb2.ListStepsResponse:
        """Returns a page of the steps of a turn; further fields are those of ListStepsRequest."""
        request = agent_service_pb2.ListStepsRequest(turn_id=turn_id, **fields)
        return await answered(self.agent_stub.ListSteps(request, timeout=self._timeout), service="agent")

    # Sessions

    async def create_session(self, agent_id: str = "assistant", **fields: Any) -> session_pb2.Session:
        """Begins a session; further fields are those of CreateSessionRequest."""
        request = agent_service_pb2.CreateSessionRequest(agent_id=agent_id, **fields)
        return (await answered(self.agent_stub.CreateSession(request, timeout=self._timeout), service="agent")).session

    async def get_session(self, session_id: str) -> session_pb2.Session:
        """Returns a session."""
        request = agent_service_pb2.GetSessionRequest(session_id=session_id)
        return (await answered(self.agent_stub.GetSession(request, timeout=self._timeout), service="agent")).session

    async def list_sessions(self, **fields: Any) -> agent_service_pb2.ListSessionsResponse:
        """Returns a page of sessions, newest first; fields are those of ListSessionsRequest."""
        request = agent_service_pb2.ListSessionsRequest(**fields)
        return await answered(self.agent_stub.ListSessions(request, timeout=self._timeout), service="agent")

    async def update_session(self, session: session_pb2.Session, paths: Sequence[str] = ()) -> session_pb2.Session:
        """Changes the fields `paths` of a session: `title`, `metadata`, `agent_version`; without any, all three."""
        request = agent_service_pb2.UpdateSessionRequest(session=session)
        request.update_mask.paths.extend(paths)
        return (await answered(self.agent_stub.UpdateSession(request, timeout=self._timeout), service="agent")).session

    async def fork_session(self, session_id: str, *, turn_id: str = "", **fields: Any) -> session_pb2.Session:
        """Begins a session with the history of another one up to a turn; fields are those of ForkSessionRequest."""
        request = agent_service_pb2.ForkSessionRequest(session_id=session_id, turn_id=turn_id, **fields)
        return (await answered(self.agent_stub.ForkSession(request, timeout=self._timeout), service="agent")).session

    async def delete_session(self, session_id: str, *, force: bool = False) -> None:
        """Deletes a session and its turns."""
        request = agent_service_pb2.DeleteSessionRequest(session_id=session_id, force=force)
        await answered(self.agent_stub.DeleteSession(request, timeout=self._timeout), service="agent")

    # Agents

    async def create_agent(self, config: agent_pb2.AgentConfig, **fields: Any) -> agent_pb2.Agent:
        """Makes an agent; further fields are those of CreateAgentRequest."""
        request = agent_service_pb2.CreateAgentRequest(config=config, **fields)
        return (await answered(self.agent_stub.CreateAgent(request, timeout=self._timeout), service="agent")).agent

    async def get_agent(self, agent_id: str, *, version: int = 0) -> agent_pb2.Agent:
        """Returns an agent in a version; 0 is the newest."""
        request = agent_service_pb2.GetAgentRequest(agent_id=agent_id, version=version)
        return (await answered(self.agent_stub.GetAgent(request, timeout=self._timeout), service="agent")).agent

    async def list_agents(self, **fields: Any) -> agent_service_pb2.ListAgentsResponse:
        """Returns a page of agents; fields are those of ListAgentsRequest."""
        return await answered(
            self.agent_stub.ListAgents(agent_service_pb2.ListAgentsRequest(**fields), timeout=self._timeout),
            service="agent",
        )

    async def list_agent_versions(self, agent_id: str, **fields: Any) -> agent_service_pb2.ListAgentVersionsResponse:
        """Returns a page of the versions of an agent, newest first; fields are those of ListAgentVersionsRequest."""
        request = agent_service_pb2.ListAgentVersionsRequest(agent_id=agent_id, **fields)
        return await answered(self.agent_stub.ListAgentVersions(request, timeout=self._timeout), service="agent")

    async def update_agent(self, agent: agent_pb2.Agent, paths: Sequence[str] = ()) -> agent_pb2.Agent:
        """Changes the fields `paths` of an agent; without any, all. Its `etag` has to be the one that was read."""
        request = agent_service_pb2.UpdateAgentRequest(agent=agent)
        request.update_mask.paths.extend(paths)
        return (await answered(self.agent_stub.UpdateAgent(request, timeout=self._timeout), service="agent")).agent

    async def delete_agent(self, agent_id: str, *, etag: str = "", force: bool = False) -> None:
        """Deletes an agent; with `force` its sessions too."""
        request = agent_service_pb2.DeleteAgentRequest(agent_id=agent_id, etag=etag, force=force)
        await answered(self.agent_stub.DeleteAgent(request, timeout=self._timeout), service="agent")

    # Models and processes

    async def list_models(self, **fields: Any) -> model_service_pb2.ListModelsResponse:
        """Returns a page of models; fields are those of ListModelsRequest."""
        request = model_service_pb2.ListModelsRequest(**fields)
        return await answered(self.model_stub.ListModels(request, timeout=self._timeout), service="inference")

    async def get_model(self, model_id: str) -> model_pb2.Model:
        """Returns a model."""
        request = model_service_pb2.GetModelRequest(model_id=model_id)
        return (await answered(self.model_stub.GetModel(request, timeout=self._timeout), service="inference")).model

    async def register_model(self, model_id: str, **fields: Any) -> model_pb2.Model:
        """Registers a model; further fields are those of RegisterModelRequest."""
        request = model_service_pb2.RegisterModelRequest(model_id=model_id, **fields)
        return (
            await answered(self.model_stub.RegisterModel(request, timeout=self._timeout), service="inference")
        ).model

    async def unregister_model(self, model_id: str) -> None:
        """Takes a registration back."""
        request = model_service_pb2.UnregisterModelRequest(model_id=model_id)
        await answered(self.model_stub.UnregisterModel(request, timeout=self._timeout), service="inference")

    async def embed(self, model: str, texts: Sequence[str]) -> inference_service_pb2.EmbedResponse:
        """Returns a vector of length 1 for each text."""
        request = inference_service_pb2.EmbedRequest(model=model, texts=texts)
        return await answered(self.inference_stub.Embed(request, timeout=self._timeout), service="inference")

    async def count_tokens(
        self,
        model: str,
        messages: str | Sequence[message_pb2.Message],
        tools: Sequence[generation_pb2.ToolDefinition] = (),
    ) -> inference_service_pb2.CountTokensResponse:
        """Returns how many tokens a conversation has as the model would read it."""
        request = inference_service_pb2.CountTokensRequest(model=model, messages=_said(messages), tools=tools)
        return await answered(self.inference_stub.CountTokens(request, timeout=self._timeout), service="inference")

    async def server_info(self, service: str, *, seconds: float = 2.0) -> inspect_service_pb2.GetServerInfoResponse:
        """Returns what a service's process is."""
        stub = InspectServiceStub(self._channel(service))
        request = inspect_service_pb2.GetServerInfoRequest()
        return await answered(stub.GetServerInfo(request, timeout=seconds), service=service)

    async def list_providers(
        self, service: str = "inference", *, seconds: float = 10.0
    ) -> Sequence[inspect_service_pb2.Provider]:
        """Returns the providers of a service and their state."""
        stub = InspectServiceStub(self._channel(service))
        request = inspect_service_pb2.ListProvidersRequest(service=service)
        return (await answered(stub.ListProviders(request, timeout=seconds), service=service)).providers

    def _channel(self, service: str) -> Any:
        return self._channels(service)


def user_message(text: str) -> message_pb2.Message:
    """Returns what a user says."""
    part = message_pb2.ContentPart(text=text, provenance=message_pb2.PROVENANCE_USER)
    return message_pb2.Message(role=message_pb2.ROLE_USER, parts=[part])


def _said(messages: str | Sequence[message_pb2.Message]) -> Sequence[message_pb2.Message]:
    return [user_message(messages)] if isinstance(messages, str) else messages


async def _all(call: Any) -> list[Any]:
    return [response async for response in call]
