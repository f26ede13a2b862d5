"""TLS and mutual TLS, on real sockets, with certificates of an authority of the test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.mesh.asking import session_of
from tests.runtime.authority import Authority
from tests.runtime.serving import failure, hosted, inference, stub_of
from turnwire.agent.v1 import turn_pb2
from turnwire.client import Client
from turnwire.errors import Unavailable
from turnwire.inference.v1 import inference_service_pb2 as messages
from turnwire.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from turnwire.runtime.directory import open_channel
from turnwire.runtime.settings import TlsSettings
from turnwire.testing.mesh import running_mesh

if TYPE_CHECKING:
    from pathlib import Path

COUNT = messages.CountTokensRequest()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


def _settings(authority: Authority, *, mutual: bool = False, name: str = "server") -> dict[str, str]:
    certificate, key = authority.pair(name)
    settings = {"certificate": str(certificate), "key": str(key), "ca": str(authority.certificate)}
    return settings | ({"client_ca": str(authority.certificate)} if mutual else {})


def _channel(address: str, **tls: Any) -> grpc.aio.Channel:
    return open_channel(address, TlsSettings.model_validate(tls), [("grpc.use_local_subchannel_pool", 1)])


async def test_a_caller_who_trusts_the_authority_is_answered(authority: Authority):
    async with hosted({"inference": inference()}, tls=_settings(authority)) as service:
        async with _channel(service.address(), ca=authority.certificate) as channel:
            assert 1 == (await InferenceServiceStub(channel).CountTokens(COUNT, timeout=10)).prompt_tokens


async def test_a_caller_who_trusts_another_authority_or_none_gets_nothing(authority: Authority, stranger: Authority):
    async with hosted({"inference": inference()}, tls=_settings(authority)) as service:
        async with _channel(service.address(), ca=stranger.certificate) as channel:
            error = await failure(InferenceServiceStub(channel).CountTokens(COUNT, timeout=10))
        assert isinstance(error, Unavailable)
        async with stub_of(service.address()) as plain:
            assert isinstance(await failure(plain.CountTokens(COUNT, timeout=10)), Unavailable)


async def test_health_stays_plain_for_probes(authority: Authority):
    async with hosted({"inference": inference()}, tls=_settings(authority, mutual=True)) as service:
        address = f"127.0.0.1:{service.settings.port('inference') + 100}"
        async with grpc.aio.insecure_channel(address) as plain:
            stub: Any = health_pb2_grpc.HealthStub(plain)
            answer = await stub.Check(health_pb2.HealthCheckRequest())
    assert health_pb2.HealthCheckResponse.SERVING == answer.status


async def test_mutual_tls_refuses_a_caller_without_a_certificate_of_the_authority(
    authority: Authority, stranger: Authority
):
    async with hosted({"inference": inference()}, tls=_settings(authority, mutual=True)) as service:
        async with _channel(service.address(), **_settings(authority, mutual=True, name="caller")) as channel:
            assert 1 == (await InferenceServiceStub(channel).CountTokens(COUNT, timeout=10)).prompt_tokens
        async with _channel(service.address(), ca=authority.certificate) as channel:
            error = await failure(InferenceServiceStub(channel).CountTokens(COUNT, timeout=10))
        assert isinstance(error, Unavailable)
        foreign = _settings(stranger, mutual=True, name="caller") | {"ca": str(authority.certificate)}
        async with _channel(service.address(), **foreign) as channel:
            error = await failure(InferenceServiceStub(channel).CountTokens(COUNT, timeout=10))
        assert isinstance(error, Unavailable)


@pytest.mark.mesh
@pytest.mark.parametrize("mutual", [False, True])
async def test_the_services_of_a_mesh_call_each_other_over_tls(authority: Authority, mutual: bool):
    tls = _settings(authority, mutual=mutual)
    async with running_mesh("processes", tls=tls) as mesh:
        trusted = TlsSettings.model_validate(tls if mutual else {"ca": tls["ca"]})
        async with Client.connect(
            mesh.address("agent"), inference_address=mesh.address("inference"), tls=trusted
        ) as client:
            turn = await client.run_turn(await session_of(client), "hello").result()
    assert turn_pb2.TURN_STATUS_COMPLETED == turn.status
    assert "hello" == turn.output.parts[0].text


def test_wrong_files_are_refused_when_the_settings_are_read(authority: Authority, stranger: Authority, tmp_path: Path):
    certificate, key = authority.pair("server")
    _, other_key = stranger.pair("server")
    empty = tmp_path / "empty.pem"
    empty.write_text("no certificate")
    for wrong, told in (
        ({"certificate": certificate}, "`certificate` and `key` go together"),
        ({"certificate": certificate, "key": other_key}, "are no pair in PEM"),
        ({"certificate": empty, "key": key}, "are no pair in PEM"),
        ({"certificate": tmp_path / "none.pem", "key": key}, "cannot be read"),
        ({"ca": empty}, "`ca`: .* holds no certificates in PEM"),
        ({"ca": tmp_path / "none.pem"}, "`ca`: .* cannot be read"),
        ({"client_ca": authority.certificate}, "`client_ca` needs `certificate` and `key`"),
    ):
        with pytest.raises(ValueError, match=told):
            TlsSettings.model_validate(wrong)
