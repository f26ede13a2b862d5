"""The registry of models: what can be used, under which names, also after a restart and with providers away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.fakes.openai_server import fake_openai
from turnwire.common.v1 import inspect_service_pb2
from turnwire.errors import (
    AlreadyExists,
    Ambiguous,
    IdempotencyConflict,
    InvalidArgument,
    ModelCapability,
    NotFound,
    NotServed,
    ProviderUnavailable,
    ResourceInUse,
    WeightsMissing,
    from_rpc_error,
)
from turnwire.inference import providers
from turnwire.inference.v1 import inference_service_pb2, model_pb2
from turnwire.testing.mesh import running_mesh

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from turnwire.testing.mesh import RunningMesh

pytestmark = pytest.mark.mesh
CHAT, EMBEDDING = model_pb2.MODEL_TYPE_CHAT, model_pb2.MODEL_TYPE_EMBEDDING


def _scripted(provider_id: str, *models: str, **config: Any) -> dict[str, Any]:
    return {
        "provider_id": provider_id,
        "provider_type": "inline::scripted",
        "config": {"models": list(models), **config},
    }


def _openai(base_url: str, **config: Any) -> dict[str, Any]:
    return {
        "provider_id": "gpu",
        "provider_type": "remote::openai",
        "config": {"base_url": base_url, "connect_seconds": 0.3, **config},
    }


def _mesh(*inference: dict[str, Any], folder: Path | None = None) -> AbstractAsyncContextManager[RunningMesh]:
    return running_mesh(services=("inference",), providers={"inference": list(inference)}, folder=folder)


async def test_registrations_outlive_a_restart_and_follow_their_provider(tmp_path: Path):
    async with _mesh(_scripted("one", "a", context_tokens=100), folder=tmp_path) as mesh, mesh.client() as client:
        model = await client.register_model("mine", provider_model_id="a", metadata={"team": "blue"})
        assert ("one", "a", False, 100) == (
            model.provider_id,
            model.provider_model_id,
            model.built_in,
            model.context_tokens,
        )
        assert model.create_time.seconds > 0

    async with _mesh(_scripted("one", "a", context_tokens=200), folder=tmp_path) as mesh, mesh.client() as client:
        again = await client.get_model("mine")
        assert model.create_time == again.create_time
        assert {"team": "blue"} == dict(again.metadata)
        # How much a model takes is its provider's to say, now.
        assert 200 == again.context_tokens
        assert ["a", "mine"] == [each.model_id for each in (await client.list_models()).models]
        await client.unregister_model("mine")
        with pytest.raises(NotFound):
            await client.get_model("mine")


async def test_a_registered_model_answers():
    rule = {"text": "It works."}
    async with _mesh(_scripted("one", "a", rules=[rule])) as mesh, mesh.client() as client:
        await client.register_model("team/mine:1.0", provider_model_id="a")
        assert "It works." == await _completed(client, "team/mine:1.0")


async def test_a_request_id_makes_a_repeat_safe():
    async with _mesh(_scripted("one", "a", "b")) as mesh, mesh.client() as client:
        first = await client.register_model("mine", provider_model_id="a", request_id="r1")
        assert first == await client.register_model("mine", provider_model_id="a", request_id="r1")
        with pytest.raises(IdempotencyConflict):
            await client.register_model("mine", provider_model_id="b", request_id="r1")
        with pytest.raises(AlreadyExists):
            await client.register_model("mine", provider_model_id="a", request_id="r2")
        with pytest.raises(AlreadyExists):
            await client.register_model("a", provider_model_id="b")


async def test_only_what_is_served_can_be_used_and_the_error_names_it():
    async with _mesh(_scripted("one", "a", "b")) as mesh, mesh.client() as client:
        with pytest.raises(NotFound) as unknown:
            await client.get_model("c")
        with pytest.raises(NotServed) as unserved:
            await client.register_model("mine", provider_model_id="c")
        with pytest.raises(NotFound) as nowhere:
            await client.register_model("mine", provider_id="two", provider_model_id="a")
        with pytest.raises(ResourceInUse):
            await client.unregister_model("a")
        with pytest.raises(NotFound):
            await client.unregister_model("c")

    assert "a, b" == unknown.value.metadata["available"]
    assert "a, b" == unserved.value.metadata["available"]
    assert "one" == nowhere.value.metadata["available"]


async def test_one_id_at_two_providers_is_addressed_with_its_provider():
    async with _mesh(_scripted("one", "a"), _scripted("two", "a", "b")) as mesh, mesh.client() as client:
        with pytest.raises(Ambiguous) as doubtful:
            await client.get_model("a")
        assert "one/a, two/a" == doubtful.value.metadata["available"]
        assert "two" == (await client.get_model("two/a")).provider_id
        assert "two" == (await client.get_model("b")).provider_id
        with pytest.raises(NotFound) as unknown:
            await client.get_model("c")
        assert "one/a, two/a, b" == unknown.value.metadata["available"]

        # An address is beyond doubt, also where a registered id looks like it.
        await client.register_model("two/a", provider_id="one", provider_model_id="a")
        found = await client.get_model("two/a")
        assert ("two", "a") == (found.provider_id, found.model_id)
        await client.register_model("same", provider_id="one", provider_model_id="a")
        await client.register_model("same", provider_id="two", provider_model_id="a")
        with pytest.raises(Ambiguous):
            await client.unregister_model("same")
        await client.unregister_model("two/same")
        assert "one" == (await client.get_model("same")).provider_id


async def test_a_registration_whose_provider_has_gone_is_hidden_and_can_be_taken_back(tmp_path: Path):
    async with _mesh(_scripted("one", "a"), _scripted("two", "b"), folder=tmp_path) as mesh, mesh.client() as client:
        await client.register_model("mine", provider_id="two", provider_model_id="b")
    async with _mesh(_scripted("one", "a"), folder=tmp_path) as mesh, mesh.client() as client:
        with pytest.raises(NotFound) as gone:
            await client.get_model("mine")
        assert "a" == gone.value.metadata["available"]
        await client.unregister_model("two/mine")
    async with _mesh(_scripted("one", "a"), _scripted("two", "b"), folder=tmp_path) as mesh, mesh.client() as client:
        assert ["a", "b"] == [model.model_id for model in (await client.list_models()).models]


async def test_a_provider_that_is_away_hides_nothing_else_and_is_named(tmp_path: Path):
    async with fake_openai() as fake:
        served = (_scripted("one", "a"), _openai(fake.base_url))
        async with _mesh(*served, folder=tmp_path) as mesh, mesh.client() as client:
            await client.register_model("mine", provider_id="gpu", provider_model_id="fake-chat", request_id="r1")
    served = (_scripted("one", "a"), _openai("http://127.0.0.1:9/v1"))
    async with _mesh(*served, folder=tmp_path) as mesh, mesh.client() as client:
        assert ["a"] == [model.model_id for model in (await client.list_models()).models]
        assert "one" == (await client.get_model("a")).provider_id
        for name in ("gpu/fake-chat", "fake-chat", "mine"):
            with pytest.raises(ProviderUnavailable) as away:
                await client.get_model(name)
            assert "gpu" == away.value.metadata["provider_id"]
        # Nothing that is away could change this one.
        with pytest.raises(NotFound):
            await client.get_model("one/b")
        # A repeat has its answer also now.
        repeated = await client.register_model(
            "mine", provider_id="gpu", provider_model_id="fake-chat", request_id="r1"
        )
        assert "gpu" == repeated.provider_id
        states = {each.provider_id: each for each in await client.list_providers("inference")}
        assert ["a"] == list(states["one"].serves)
        assert "127.0.0.1:9" in states["gpu"].detail


async def test_a_provider_that_turns_out_to_be_away_is_listed_as_such():
    async with fake_openai() as fake:
        fake.models_answer.clear()
        async with _mesh(_scripted("one", "a"), _openai(fake.base_url)) as mesh, mesh.client() as client:
            states = {each.provider_id: each.state for each in await client.list_providers("inference")}

    provider = inspect_service_pb2.Provider
    assert {"one": provider.STATE_READY, "gpu": provider.STATE_UNAVAILABLE} == states


async def test_what_a_model_is_for_is_the_providers_to_say_or_the_operators():
    async with fake_openai() as fake:
        configured = _openai(fake.base_url, models=[{"model_id": "m", "type": "embedding", "embedding_dimension": 2}])
        configured["provider_id"] = "told"
        async with _mesh(_openai(fake.base_url), configured) as mesh, mesh.client() as client:
            assert CHAT == (await client.get_model("fake-chat")).type
            await client.register_model("vectors", provider_id="gpu", provider_model_id="fake-chat", type=EMBEDDING)
            assert EMBEDDING == (await client.get_model("vectors")).type
            response = await client.embed("vectors", ["abc"])
            assert pytest.approx([0.6, 0.8]) == list(response.embeddings[0].values)
            assert ("vectors", "gpu") == (response.model_id, response.provider_id)

            assert EMBEDDING == (await client.register_model("v2", provider_id="told", provider_model_id="m")).type
            with pytest.raises(InvalidArgument) as wrong:
                await client.register_model("v3", provider_id="told", provider_model_id="m", type=CHAT)
            assert ["type"] == [violation.field for violation in wrong.value.violations]
            assert {"vectors", "v2", "m"} == {
                model.model_id for model in (await client.list_models(type=EMBEDDING)).models
            }


async def test_pages_join_to_the_whole_list_whatever_goes_meanwhile():
    async with _mesh(_scripted("one", *(f"m{number}" for number in range(5)))) as mesh, mesh.client() as client:
        for number in range(4):
            await client.register_model(f"r{number}", provider_model_id="m0")
        whole = [model.model_id for model in (await client.list_models(page_size=200)).models]
        assert 9 == len(whole)

        pages, token = [], ""
        while True:
            page = await client.list_models(page_size=2, page_token=token)
            pages.append([model.model_id for model in page.models])
            token = page.next_page_token
            if not token:
                break
        assert [2, 2, 2, 2, 1] == [len(page) for page in pages]
        assert whole == [name for page in pages for name in page]

        first = await client.list_models(page_size=7)
        await client.unregister_model("r0")
        rest = await client.list_models(page_size=7, page_token=first.next_page_token)
        assert whole[7:] == [model.model_id for model in rest.models]
        # The model that ended the page has gone as well.
        await client.unregister_model("r1")
        rest = await client.list_models(page_size=7, page_token=first.next_page_token)
        assert whole[7:] == [model.model_id for model in rest.models]
        with pytest.raises(InvalidArgument):
            await client.list_models(page_token="nonsense")
        with pytest.raises(InvalidArgument):
            await client.list_models(page_size=-1)


async def test_weights_that_are_not_there_are_named_with_the_command_that_gets_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TURNWIRE_WEIGHTS_DIR", str(tmp_path / "weights"))
    models: list[Any] = ["qwen2.5-coder-1.5b", {"model_id": "own", "path": str(tmp_path / "own.gguf")}]
    local = {"provider_id": "local", "provider_type": "inline::llama-cpp", "config": {"models": models}}
    minilm = {"provider_id": "vectors", "provider_type": "inline::minilm", "config": {}}
    async with _mesh(local, minilm) as mesh, mesh.client() as client:
        for name, hint in (
            ("qwen2.5-coder-1.5b", "`turnwire models pull qwen2.5-coder-1.5b`"),
            ("own", str(tmp_path / "own.gguf")),
        ):
            with pytest.raises(WeightsMissing, match="not on this machine") as missing:
                await _completed(client, name)
            assert hint in str(missing.value)
        states = {each.provider_id: each for each in await client.list_providers("inference")}
        assert "models pull qwen2.5-coder-1.5b" in states["local"].detail
        assert "minilm" in states["vectors"].detail


def test_a_model_that_nobody_can_pull_needs_a_path():
    with pytest.raises(InvalidArgument, match="`path`"):
        providers.build("local", "inline::llama-cpp", {"models": ["no-such-model"]})


def test_a_provider_of_an_unknown_type_is_refused_with_those_there_are():
    with pytest.raises(InvalidArgument) as refused:
        providers.build("gpu", "a typing error", {})
    (violation,) = refused.value.violations
    assert "providers.inference[gpu].provider_type" == violation.field
    assert "'a typing error' is unknown; there are: inline::llama-cpp" in violation.description


async def test_a_model_does_what_it_is_for():
    minilm = {"provider_id": "vectors", "provider_type": "inline::minilm", "config": {}}
    async with _mesh(_scripted("one", "a"), minilm) as mesh, mesh.client() as client:
        with pytest.raises(ModelCapability):
            await client.embed("a", ["x"])
        with pytest.raises(ModelCapability):
            await _completed(client, "all-minilm-l6-v2")


async def _completed(client: Any, model: str) -> str:
    request = inference_service_pb2.CompletionRequest(model=model, prompt="x")
    try:
        return "".join([piece.text.text async for piece in client.inference_stub.Completion(request, timeout=30)])
    except grpc.RpcError as error:
        raise from_rpc_error(error, service="inference") from error
