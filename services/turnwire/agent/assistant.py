"""The ready-made agent `assistant`: there in every tenant, until somebody changes it to their liking."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from turnwire.agent.v1 import agent_pb2
from turnwire.common.v1 import generation_pb2

if TYPE_CHECKING:
    from turnwire.runtime.settings import AssistantSettings

AGENT_ID = "assistant"


def assistant(settings: AssistantSettings, model: str) -> agent_pb2.Agent:
    """Returns the agent with a model: the configured one, or the first that is served."""
    config = agent_pb2.AgentConfig(
        model=model,
        instructions=settings.instructions,
        sampling_parameters=_sampling(settings.temperature),
        max_iterations=settings.max_iterations,
        input_shields=settings.input_shields,
        output_shields=settings.output_shields,
        tools=[agent_pb2.AgentTool(registered=agent_pb2.RegisteredTool(tool_id=tool)) for tool in settings.tools],
    )
    if settings.banks:
        config.retrieval.CopyFrom(
            agent_pb2.RetrievalConfig(
                bank_ids=settings.banks,
                max_chunks=settings.max_chunks,
                max_tokens_in_context=settings.max_tokens_in_context,
                min_score=settings.min_score,
            )
        )
    body = config.SerializeToString(deterministic=True)
    return agent_pb2.Agent(
        agent_id=AGENT_ID,
        name="Assistant",
        description="The ready-made agent.",
        config=config,
        version=1,
        etag=hashlib.sha256(body).hexdigest()[:16],
        create_time=Timestamp(),
        update_time=Timestamp(),
    )


def _sampling(temperature: float) -> generation_pb2.SamplingParameters:
    if temperature == 0:
        return generation_pb2.SamplingParameters(greedy=generation_pb2.GreedySampling())
    return generation_pb2.SamplingParameters(top_p=generation_pb2.TopPSampling(temperature=temperature))
