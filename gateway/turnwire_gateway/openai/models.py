"""Chat completions by a model, and the models there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnwire.agent.v1 import agent_service_pb2
from turnwire.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from turnwire.errors import TurnwireError
from turnwire.ids import new_id
from turnwire.inference.v1 import inference_service_pb2, model_service_pb2
from turnwire.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from turnwire.inference.v1.model_service_pb2_grpc import ModelServiceStub
from turnwire.runtime.channels import upstream
from turnwire_gateway.openai.pieces import Begun, CallArguments, CallBegun, Ended, Piece, Text, finish_reason

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from turnwire_gateway.openai.asked import Asked
    from turnwire_gateway.upstream import Caller, Upstreams

AGENT_PREFIX = "agent:"
_PAGE = 200


async def model_pieces(asked: Asked, upstreams: Upstreams, caller: Caller) -> AsyncGenerator[Piece]:
    """Gives what a model answers."""
    stub = InferenceServiceStub(upstreams.channel("inference", streams=True))
    request = inference_service_pb2.ChatCompletionRequest(
        model=asked.model,
        messages=asked.messages,
        sampling_parameters=asked.sampling,
        tools=asked.tools,
        tool_choice=asked.tool_choice,
        response_format=asked.response_format,
    )
    called = False
    async with upstream(stub.ChatCompletion(request, metadata=caller.metadata)) as call:
        async for piece in call:
            match piece.WhichOneof("payload"):
                case "started":
                    yield Begun()
                case "text":
                    yield Text(piece.text.text)
                case "tool_call_started":
                    called = True
                    begun = piece.tool_call_started
                    yield CallBegun(begun.index, begun.model_call_id or new_id("call"), begun.name)
                case "tool_call_delta":
                    yield CallArguments(piece.tool_call_delta.index, piece.tool_call_delta.arguments_json)
                case "completed":
                    reason = finish_reason(piece.completed.stop_reason, called=called)
                    yield Ended(reason, piece.completed.usage)
                    return
                case _:
                    pass  # reasoning has no place in OpenAI's schema; newer kinds are skipped
    raise TurnwireError.cut("inference")


async def listed(upstreams: Upstreams, caller: Caller) -> list[dict[str, Any]]:
    """Returns the models, and the agents as `agent:ID`, in OpenAI's form."""
    models: list[Any] = []
    stub = ModelServiceStub(upstreams.channel("inference"))
    token = ""
    while True:
        page = await stub.ListModels(
            model_service_pb2.ListModelsRequest(page_size=_PAGE, page_token=token), metadata=caller.metadata
        )
        models += page.models
        token = page.next_page_token
        if not token:
            break
    ids = [model.model_id for model in models]
    found = [
        _entry(
            model.model_id if ids.count(model.model_id) == 1 else f"{model.provider_id}/{model.model_id}",
            model.create_time.seconds,
            model.provider_id,
        )
        for model in models
    ]
    agents = AgentServiceStub(upstreams.channel("agent"))
    while True:
        request = agent_service_pb2.ListAgentsRequest(page_size=_PAGE, page_token=token)
        answer = await agents.ListAgents(request, metadata=caller.metadata)
        found += [
            _entry(f"{AGENT_PREFIX}{agent.agent_id}", agent.create_time.seconds, "turnwire") for agent in answer.agents
        ]
        token = answer.next_page_token
        if not token:
            return found


def _entry(id: str, created: int, owner: str) -> dict[str, Any]:
    return {"id": id, "object": "model", "created": created, "owned_by": owner}
