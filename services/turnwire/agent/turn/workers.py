"""Those who do what is outside the log, one a kind of step, for one turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from turnwire.agent.turn.held import held_input, held_results
from turnwire.agent.turn.inference import InferenceStep
from turnwire.agent.turn.input_shields import InputShieldStep
from turnwire.agent.turn.retrieval import RetrievalStep
from turnwire.agent.turn.screening import Screening
from turnwire.agent.turn.shields import Shields
from turnwire.agent.turn.tools import ToolStep

if TYPE_CHECKING:
    from turnwire.agent.log.writer import TurnWriter
    from turnwire.agent.store.turns import TurnRow
    from turnwire.agent.turn.config import TurnConfig
    from turnwire.agent.turn.stopping import Stopping
    from turnwire.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
    from turnwire.memory.v1.memory_bank_service_pb2_grpc import MemoryBankServiceStub
    from turnwire.memory.v1.memory_service_pb2_grpc import MemoryServiceStub
    from turnwire.safety.v1.safety_service_pb2_grpc import SafetyServiceStub
    from turnwire.tool_executor.v1.tool_executor_service_pb2_grpc import ToolExecutorServiceStub


@dataclass(frozen=True, slots=True)
class Stubs:
    """The services that a turn is made with."""

    inference: InferenceServiceStub
    safety: SafetyServiceStub
    memory: MemoryServiceStub
    banks: MemoryBankServiceStub
    tool_executor: ToolExecutorServiceStub


@dataclass(frozen=True, slots=True)
class Workers:
    """One for each kind of step."""

    input_shields: InputShieldStep
    retrieval: RetrievalStep
    inference: InferenceStep
    tools: ToolStep


def workers(
    stubs: Stubs, writer: TurnWriter, config: TurnConfig, row: TurnRow, stopping: Stopping, *, inference_seconds: float
) -> Workers:
    """Returns the workers of a turn; an attempt of a model takes at most `inference_seconds`."""
    shields = Shields(stubs.safety, config.config.shield_failure_policy)
    screening = Screening(shields, config, writer.commit)
    retrieval = RetrievalStep(stubs.memory, stubs.banks, stubs.inference, config)
    return Workers(
        input_shields=InputShieldStep(shields, held_input(row.held_input)),
        retrieval=retrieval,
        inference=InferenceStep(stubs.inference, writer, config, screening, timeout_seconds=inference_seconds),
        tools=ToolStep(
            stubs.tool_executor,
            retrieval,
            writer,
            config,
            screening,
            writer.commit,
            stopping,
            epoch=row.epoch,
            given=held_results(row.held_input),
        ),
    )
