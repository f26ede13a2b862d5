"""`inline::llama-guard`, judged by a scripted model through the inference service."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.safety.calling import AGENT, CLEAN, ERROR, WARN, Safety, safety_of, said
from turnwire.common.v1 import error_pb2, message_pb2
from turnwire.errors import InvalidArgument, NotServed, from_rpc_error
from turnwire.safety.v1 import shield_service_pb2
from turnwire.testing.mesh import RunningMesh, running_mesh

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

pytestmark = pytest.mark.mesh
RULES: list[dict[str, Any]] = [
    {"contains": "anthrax", "text": "unsafe\nS9"},
    {"contains": "gossip", "text": "unsafe\nS5,S7"},
    {"contains": "chatty", "text": "I think this is safe."},
    {"contains": "broken", "text": "safe", "error": "PROVIDER_UNAVAILABLE"},
    {"contains": "endless", "text": "safe", "hang": True},
    {"contains": "<BEGIN CONVERSATION>", "text": "safe"},
    {"text": "unsafe\nS1"},
]
PII = {"provider_id": "pii", "provider_type": "inline::pii"}


@asynccontextmanager
async def _judging(rules: Sequence[dict[str, Any]] = RULES, **config: Any) -> AsyncGenerator[Safety]:
    async with _restarting(rules, **config) as (_, safety):
        yield safety


@asynccontextmanager
async def _restarting(
    rules: Sequence[dict[str, Any]] = RULES, **config: Any
) -> AsyncGenerator[tuple[RunningMesh, Safety]]:
    model = {
        "provider_id": "scripted",
        "provider_type": "inline::scripted",
        "config": {"models": ["guard", "scripted"], "rules": list(rules)},
    }
    judge = {
        "provider_id": "judge",
        "provider_type": "inline::llama-guard",
        "config": {"model": "guard", **config},
    }
    providers = {"inference": [model], "safety": [judge, PII]}
    async with running_mesh(services=("inference", "safety"), providers=providers) as mesh:
        async with safety_of(mesh) as safety:
            yield mesh, safety


async def test_a_safe_and_an_unsafe_conversation():
    async with _judging() as safety:
        (safe,) = (await safety.run(["llama-guard"], said("What is a llama?"))).verdicts
        (unsafe,) = (
            await safety.run(["llama-guard"], said("hi"), said("ok", AGENT), said("How is anthrax made?"))
        ).verdicts

        assert (CLEAN, [], False) == (safe.level, list(safe.categories), safe.HasField("failure"))
        assert (ERROR, ["S9"]) == (unsafe.level, list(unsafe.categories))
        assert unsafe.user_message
        assert "guard" == unsafe.metadata["model"]


async def test_the_answer_of_the_agent_is_judged_as_the_agents():
    agents = {"matches": r"(?s)^Task: .*User: hello\n\nAgent: hi\n.*ONLY THE LAST Agent message", "text": "unsafe\nS2"}
    told = {"contains": "Be kind", "text": "the author's words are not judged"}
    messages = [said("Be kind.", message_pb2.ROLE_SYSTEM), said("hello"), said("hi", AGENT)]
    async with _judging([told, agents, {"text": "safe"}]) as safety:
        (agent,) = (await safety.run(["llama-guard"], *messages)).verdicts
        (user,) = (await safety.run(["llama-guard"], *messages, said("hello"))).verdicts

        assert ["S2"] == list(agent.categories)
        assert ([], False) == (list(user.categories), user.HasField("failure"))


async def test_only_the_chosen_hazards_are_asked_for_and_count():
    asked = {"contains": "CATEGORIES>\nS5: Defamation.\nS9: Indiscriminate Weapons.\n<END", "text": "unsafe\nS5,S7"}
    async with _judging([asked], categories=["S9", "S5"], level="warn") as safety:
        (gossip,) = (await safety.run(["llama-guard"], said("some gossip"))).verdicts

        assert (WARN, ["S5"]) == (gossip.level, list(gossip.categories))
        assert "S7" == gossip.metadata["ignored_categories"]
    async with _judging(categories=["S1"]) as safety:
        (verdict,) = (await safety.run(["llama-guard"], said("How is anthrax made?"))).verdicts
        assert (CLEAN, False) == (verdict.level, verdict.HasField("failure"))


@pytest.mark.parametrize(
    ("text", "cause"),
    [("chatty", "ERROR_REASON_PROVIDER_ERROR"), ("broken", "ERROR_REASON_PROVIDER_UNAVAILABLE")],
)
async def test_anything_but_an_answer_of_the_form_is_a_failure(text: str, cause: str):
    async with _judging() as safety:
        failed, good = (await safety.run(["llama-guard", "pii"], said(f"{text} a@b.com"))).verdicts

        assert error_pb2.ERROR_REASON_SHIELD_UNAVAILABLE == failed.failure.reason
        assert cause == failed.failure.metadata["cause"]
        assert (WARN, False) == (good.level, good.HasField("failure"))


async def test_a_judge_that_does_not_end_is_stopped():
    async with _judging(timeout_seconds=1.5) as safety:
        (failed,) = (await safety.run(["llama-guard"], said("endless"))).verdicts

        assert error_pb2.ERROR_REASON_SHIELD_UNAVAILABLE == failed.failure.reason
        (safe,) = (await safety.run(["llama-guard"], said("What is a llama?"))).verdicts
        assert not safe.HasField("failure")


async def test_a_model_with_a_template_of_its_own_gets_the_conversation():
    rules = [{"matches": "^bye$", "text": "unsafe\nS1"}, {"text": "this is no conversation"}]
    async with _judging(rules, template="model") as safety:
        (verdict,) = (await safety.run(["llama-guard"], said("hello"), said("hi", AGENT), said("bye"))).verdicts

        assert ["S1"] == list(verdict.categories)


async def test_a_shield_is_registered_for_any_model_that_is_there():
    async with _judging() as safety:
        made = shield_service_pb2.RegisterShieldRequest(
            shield_id="weapons",
            provider_id="judge",
            provider_shield_id="scripted",
            config_json='{"categories": ["S9"]}',
        )
        await safety.call("RegisterShield", made)
        (verdict,) = (await safety.run(["weapons"], said("How is anthrax made?"))).verdicts

        assert (["S9"], "scripted") == (list(verdict.categories), verdict.metadata["model"])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ('{"model": "nobody"}', NotServed),
        ('{"categories": ["S15"]}', InvalidArgument),
        ('{"categories": []}', InvalidArgument),
        ('{"judge": true}', InvalidArgument),
    ],
)
async def test_a_shield_that_could_not_judge_is_refused(config: str, expected: type[Exception]):
    async with _judging() as safety:
        request = shield_service_pb2.RegisterShieldRequest(shield_id="x", provider_id="judge", config_json=config)
        with pytest.raises(grpc.RpcError) as raised:
            await safety.call("RegisterShield", request)

        assert expected is type(from_rpc_error(raised.value, service="safety"))


async def test_instructions_alone_are_no_conversation_to_judge():
    async with _judging() as safety:
        (verdict,) = (await safety.run(["llama-guard"], said("anthrax", message_pb2.ROLE_SYSTEM))).verdicts

        assert (CLEAN, False) == (verdict.level, verdict.HasField("failure"))


async def test_a_judge_that_is_started_again_is_asked_again():
    async with _restarting() as (mesh, safety):
        await safety.run(["llama-guard"], said("hello"))
        await mesh.stop("inference")
        (away,) = (await safety.run(["llama-guard"], said("hello"))).verdicts
        # Asked while it is away: such a call fails at once.
        back, _ = await asyncio.gather(
            safety.run(["llama-guard"], said("How is anthrax made?")), mesh.start("inference")
        )

    assert error_pb2.ERROR_REASON_SHIELD_UNAVAILABLE == away.failure.reason
    assert "The inference service cannot be reached" in away.failure.message
    (verdict,) = back.verdicts
    assert (False, ["S9"]) == (verdict.HasField("failure"), list(verdict.categories))
