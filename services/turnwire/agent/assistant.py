"""The ready-made agent `assistant`: there in every tenant, until somebody changes it to their liking."""

from __future__ import annotations

import hashlib

from google.protobuf.timestamp_pb2 import Timestamp

from turnwire.agent.v1 import agent_pb2

AGENT_ID = "assistant"

# Short on purpose: a small model on two cores reads some hundred tokens a second.
_INSTRUCTIONS = "You are a helpful assistant. Answer briefly and plainly."


def assistant(model: str) -> agent_pb2.Agent:
    """Returns the agent with a model: the configured one, or the first that is served."""
    config = agent_pb2.AgentConfig(model=model, instructions=_INSTRUCTIONS)
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
