"""Services in a process: their ports, health, reflection, metrics, and their end."""

from __future__ import annotations

import asyncio
import signal
import urllib.request
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from tests.client.proxy import proxied
from tests.runtime.serving import Answering, failure, hosted, inference, stub_of, word
from turnwire.client.client import user_message
from turnwire.errors import NotFound, Unavailable, Unimplemented, from_rpc_error
from turnwire.inference.v1 import inference_service_pb2 as messages
from turnwire.runtime.channels import channel_options
from turnwire.runtime.hosting import hosting
from turnwire.runtime.server import ExposedWithoutAccess, PortTaken, ServiceServer, server_options
from turnwire.runtime.settings import Settings
from turnwire.testing.mesh import free_port_offset, running_mesh

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.runtime.serving import Hosted

COUNT = messages.CountTokensRequest()
CHAT = messages.ChatCompletionRequest()
INFERENCE = "turnwire.inference.v1.InferenceService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
KEY = "a key of sufficient length"


class Stepping(Answering):
    """Says a word each time it is told to, and ends when told so."""

    def __init__(self) -> None:
        self.words: asyncio.Queue[str | None] = asyncio.Queue()

    async def ChatCompletion(self, request: Any, context: Any) -> AsyncGenerator[messages.ChatCompletionResponse, None]:
        while (text := await self.words.get()) is not None:
            yield word(text)


# Ports


async def test_two_servers_on_one_port_are_refused_with_the_port_and_what_to_do():
    async with hosted({"inference": inference()}) as first:
        offset = first.settings.listen.port_offset
        with pytest.raises(
            PortTaken, match=f"inference: port {50052 + offset} .*Address already in use.*--port-offset"
        ):
            async with hosted({"inference": inference()}, listen={"port_offset": offset}):
                pass
        async with stub_of(first.address()) as stub:
            assert 1 == (await stub.CountTokens(COUNT)).prompt_tokens


@pytest.mark.parametrize("offset", [100, 200])
async def test_a_taken_port_of_health_or_metrics_is_named_too(offset: int):
    base = free_port_offset(["inference"])
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 50052 + base + offset)
    async with server:
        with pytest.raises(PortTaken) as taken:
            async with hosted({"inference": inference()}, listen={"port_offset": base}):
                pass
    assert 50052 + base + offset == taken.value.port


def test_grpc_itself_does_not_share_a_port():
    # The check before binding is for the message; between it and the binding somebody may come.
    assert 0 == dict(server_options(Settings()))["grpc.so_reuseport"]


async def test_a_port_is_free_again_after_a_failed_start():
    base = free_port_offset(["inference"])

    def fails(*_: object) -> None:
        raise NotFound("model", "none")

    with pytest.raises(NotFound):
        async with hosted({"inference": fails}, listen={"port_offset": base}):
            pass
    async with hosted({"inference": inference()}, listen={"port_offset": base}) as service:
        async with stub_of(service.address()) as stub:
            assert 1 == (await stub.CountTokens(COUNT)).prompt_tokens


async def test_a_server_that_never_served_does_not_say_that_it_does():
    settings = Settings.model_validate({"listen": {"port_offset": free_port_offset(["inference"])}})
    server = ServiceServer("inference", settings, None)
    server.bind()
    await server.stop(None)

    answer: Any = await server._health.Check(health_pb2.HealthCheckRequest(), None)  # pyright: ignore[reportArgumentType] - it looks at no context
    assert health_pb2.HealthCheckResponse.NOT_SERVING == answer.status


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.1", "::", "::1234", "localhost.example", "127.example"])
async def test_a_server_that_others_can_reach_needs_keys(host: str):
    settings = Settings.model_validate({"listen": {"host": host}, "telemetry": {"metrics": False}})
    with pytest.raises(ExposedWithoutAccess, match=r"access\.api_keys"):
        ServiceServer("inference", settings, None)
    keyed = {"access": {"api_keys": [{"name": "ann", "key": KEY}]}}
    ServiceServer("inference", Settings.model_validate(settings.model_dump() | keyed), None)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1", "[::1]"])
async def test_loopback_needs_no_keys(host: str):
    settings = Settings.model_validate({"listen": {"host": host}, "telemetry": {"metrics": False}})
    ServiceServer("inference", settings, None)


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"listen": {"host": "0.0.0.0"}}, "access.api_keys"),
        ({"store": {"url": "postgresql://127.0.0.1:1/none"}}, "is PostgreSQL running there"),
        ({"listen": {"host": "192.0.2.1"}, "access": {"api_keys": [{"name": "ann", "key": KEY}]}}, "cannot be bound"),
    ],
)
async def test_a_process_that_cannot_serve_ends_with_one_and_says_why(sections: dict[str, Any], told: str):
    with pytest.raises(RuntimeError, match="ended at its start") as ended:
        async with running_mesh("processes", services=("inference",), **sections):
            pass
    lines = [line for line in str(ended.value).splitlines() if not line.startswith("{")]
    assert told in lines[-1]
    assert not any("Traceback" in line for line in lines)


async def test_ipv6_is_served_and_found():
    listen = {"host": "::1", "port_offset": free_port_offset(["inference"])}
    async with hosted({"inference": inference()}, listen=listen) as service, stub_of(service.address()) as stub:
        assert service.address().startswith("[::1]:")
        assert 1 == (await stub.CountTokens(COUNT)).prompt_tokens


# Connections


async def test_pings_of_a_few_seconds_do_not_kill_an_idle_stream():
    async def idle(keepalive_ms: int) -> None:
        stepping = Stepping()
        async with hosted({"inference": inference(stepping)}) as service:
            async with stub_of(service.address(), channel_options(keepalive_ms=keepalive_ms)) as stub:
                call = stub.ChatCompletion(CHAT)
                stepping.words.put_nowait("before")
                assert word("before") == await call.read()
                # gRPC's own server would have closed the connection at the third ping.
                await asyncio.sleep(keepalive_ms / 1000 * 3.4)
                stepping.words.put_nowait("after")
                assert word("after") == await call.read()
                stepping.words.put_nowait(None)
                assert grpc.aio.EOF is await call.read()

    await asyncio.gather(*(idle(milliseconds) for milliseconds in (1_000, 2_000, 3_000)))


async def test_a_connection_over_a_slow_wire_is_waited_for():
    stepping = Stepping()
    stepping.words.put_nowait("at last")
    async with hosted({"inference": inference(stepping)}) as service, proxied(service.address()) as proxy:
        proxy.delay = 0.4
        async with stub_of(proxy.address, channel_options()) as stub:
            assert word("at last") == await stub.ChatCompletion(CHAT).read()
        assert 1 == proxy.accepted


async def test_connections_age_and_long_streams_outlive_their_connection(monkeypatch: pytest.MonkeyPatch):
    options = dict(server_options(Settings()))
    assert 300_000 == options["grpc.max_connection_age_ms"]
    assert options["grpc.max_connection_age_grace_ms"] >= 3_600_000
    quick = [*(options | {"grpc.max_connection_age_ms": 500}).items()]
    monkeypatch.setattr("turnwire.runtime.server.server_options", lambda _: quick)
    peers: set[str] = set()

    class Peers(Stepping):
        async def CountTokens(self, request: Any, context: Any) -> messages.CountTokensResponse:
            peers.add(context.peer())
            return messages.CountTokensResponse(prompt_tokens=1)

    stepping = Peers()
    async with hosted({"inference": inference(stepping)}) as service:
        async with stub_of(service.address(), channel_options()) as stub:
            call = stub.ChatCompletion(CHAT)
            stepping.words.put_nowait("before")
            assert word("before") == await call.read()
            async with asyncio.timeout(20):
                while len(peers) < 3:
                    await stub.CountTokens(COUNT, timeout=5)
                    await asyncio.sleep(0.02)
            stepping.words.put_nowait("after")
            assert word("after") == await call.read()
            stepping.words.put_nowait(None)
            assert grpc.aio.EOF is await call.read()


# Health


async def test_health_is_told_for_the_server_and_each_of_its_services():
    async with hosted({"inference": inference()}) as service:
        for port_offset in (0, 100):
            address = f"127.0.0.1:{service.settings.port('inference') + port_offset}"
            async with grpc.aio.insecure_channel(address) as plain:
                stub: Any = health_pb2_grpc.HealthStub(plain)
                for name in ("", INFERENCE, "turnwire.common.v1.InspectService"):
                    answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
                    assert SERVING == answer.status
                with pytest.raises(grpc.aio.AioRpcError) as unknown:
                    await stub.Check(health_pb2.HealthCheckRequest(service="turnwire.agent.v1.AgentService"))
                assert grpc.StatusCode.NOT_FOUND == unknown.value.code()


async def test_health_needs_no_key():
    access = {"api_keys": [{"name": "ann", "key": KEY}]}
    async with hosted({"inference": inference()}, access=access) as service:
        async with grpc.aio.insecure_channel(service.address()) as plain:
            stub: Any = health_pb2_grpc.HealthStub(plain)
            assert SERVING == (await stub.Check(health_pb2.HealthCheckRequest())).status


async def test_a_drain_says_no_first_then_refuses_and_lets_streams_finish():
    stepping = Stepping()
    async with hosted({"inference": inference(stepping)}) as service:
        address = service.address()
        health = f"127.0.0.1:{service.settings.port('inference') + 100}"
        async with grpc.aio.insecure_channel(health) as plain, stub_of(address) as stub, stub_of(address) as late:
            watching: Any = health_pb2_grpc.HealthStub(plain)
            watch = watching.Watch(health_pb2.HealthCheckRequest(service=INFERENCE))
            assert SERVING == (await watch.read()).status
            call = stub.ChatCompletion(CHAT)
            stepping.words.put_nowait("before")
            assert word("before") == await call.read()

            draining = asyncio.create_task(service.host.drain())
            assert NOT_SERVING == (await watch.read()).status
            # Who was not told in time is still answered.
            assert 1 == (await late.CountTokens(COUNT)).prompt_tokens
            assert service.host.contexts[0].draining.is_set()

            await _until_refused(late)
            assert not draining.done()
            stepping.words.put_nowait("after")
            assert word("after") == await call.read()
            stepping.words.put_nowait(None)
            assert grpc.aio.EOF is await call.read()
            await draining


async def _until_refused(stub: Any) -> None:
    error: Exception | None = None
    while error is None:
        try:
            await stub.CountTokens(COUNT, timeout=5)
        except grpc.aio.AioRpcError as refused:
            error = from_rpc_error(refused, service="inference")
    # Also where gRPC answers CANCELLED, as it does to a call that comes while it begins to stop.
    assert isinstance(error, Unavailable)


async def test_a_stream_that_does_not_end_is_cut_after_the_time_to_drain():
    stepping = Stepping()
    async with hosted({"inference": inference(stepping)}, agent={"drain_seconds": 0.2}) as service:
        async with stub_of(service.address()) as stub:
            call = stub.ChatCompletion(CHAT)
            stepping.words.put_nowait("before")
            await call.read()
            await service.host.drain()
            assert isinstance(await failure(call.read()), Unavailable)


@pytest.mark.mesh
async def test_sigterm_drains_a_process_and_ends_it_with_zero():
    rules = [{"contains": "story", "tokens": 30, "tokens_per_second": 30}]
    async with running_mesh("processes", rules=rules, services=("inference",)) as mesh:
        async with stub_of(mesh.address("inference")) as stub:
            process = mesh._processes["inference"]
            request = messages.ChatCompletionRequest(model="scripted", messages=[user_message("a story")])
            kinds: list[str | None] = []
            async for piece in stub.ChatCompletion(request, timeout=30):
                kinds.append(piece.WhichOneof("payload"))
                if len(kinds) == 1:
                    await mesh.signal("inference", signal.SIGTERM)
        assert 30 == kinds.count("text")
        assert "completed" == kinds[-1]
        assert 0 == await asyncio.to_thread(process.wait, 20)


# Reflection


async def _listed(service: Hosted) -> list[str]:
    async with grpc.aio.insecure_channel(service.address()) as plain:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(plain)  # pyright: ignore[reportArgumentType] - typed for sync
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        answer = await call.read()
        call.cancel()
        return [each.name for each in answer.list_services_response.service]


async def test_reflection_lists_the_services_and_describes_them():
    async with hosted({"inference": inference()}) as service:
        names = await _listed(service)
        assert {INFERENCE, "turnwire.common.v1.InspectService", "grpc.reflection.v1alpha.ServerReflection"} <= set(
            names
        )
        async with grpc.aio.insecure_channel(service.address()) as plain:
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(plain)  # pyright: ignore[reportArgumentType] - typed for sync
            asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol=INFERENCE)
            call = stub.ServerReflectionInfo(iter([asked]))
            answer = await call.read()
            call.cancel()
    assert any(b"ChatCompletion" in file for file in answer.file_descriptor_response.file_descriptor_proto)


async def test_reflection_can_be_switched_off():
    async with hosted({"inference": inference()}, reflection=False) as service:
        assert isinstance(await failure(_listed(service)), Unimplemented)


# Metrics


async def _metrics(service: Hosted) -> dict[tuple[str, str, str], float]:
    url = f"http://127.0.0.1:{service.settings.port('inference') + 200}/metrics"
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read().decode())
    return {
        (
            sample.name,
            sample.labels.get("rpc_method", "").rpartition("/")[2],
            sample.labels.get("rpc_grpc_status_code", ""),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "le" not in sample.labels
    }


async def test_metrics_count_calls_by_method_and_code_their_time_and_what_is_open():
    class Mixed(Stepping):
        async def Embed(self, request: Any, context: Any) -> messages.EmbedResponse:
            raise NotFound("model", "none")

    stepping = Mixed()
    async with hosted({"inference": inference(stepping)}) as service, stub_of(service.address()) as stub:
        for _ in range(3):
            await stub.CountTokens(COUNT)
        await failure(stub.Embed(messages.EmbedRequest()))
        call = stub.ChatCompletion(CHAT)
        stepping.words.put_nowait("one")
        await call.read()

        found = await _metrics(service)
        assert 3 == found["rpc_server_calls_total", "CountTokens", "OK"]
        assert 3 == found["rpc_server_duration_seconds_count", "CountTokens", ""]
        assert 0 < found["rpc_server_duration_seconds_sum", "CountTokens", ""] < 10
        assert 1 == found["rpc_server_calls_total", "Embed", "NOT_FOUND"]
        assert 1 == found["rpc_server_open_calls", "ChatCompletion", ""]
        assert 0 == found["rpc_server_open_calls", "CountTokens", ""]
        assert found["process_resident_memory_bytes", "", ""] > 1_000_000

        call.cancel()
        while (found := await _metrics(service))["rpc_server_open_calls", "ChatCompletion", ""]:
            pass
        assert 1 == found["rpc_server_calls_total", "ChatCompletion", "CANCELLED"]


async def test_a_deadline_that_passes_is_counted_as_such():
    async with hosted({"inference": inference(Stepping())}) as service, stub_of(service.address()) as stub:
        passed = "rpc_server_calls_total", "ChatCompletion", "DEADLINE_EXCEEDED"
        found: dict[tuple[str, str, str], float] = {}
        # On a busy machine a call may arrive so late that its caller has gone before the time is over here.
        for _ in range(30):
            await failure(stub.ChatCompletion(CHAT, timeout=0.2).read())
            while (found := await _metrics(service)).get(("rpc_server_open_calls", "ChatCompletion", "")):
                pass
            if found.get(passed):
                break
    assert 1 == found[passed]
    assert found["rpc_server_duration_seconds_count", "ChatCompletion", ""] >= 1


async def test_metrics_can_be_switched_off():
    async with hosted({"inference": inference()}, telemetry={"metrics": False}) as service:
        with pytest.raises(OSError, match="refused"):
            await _metrics(service)


async def test_only_the_modules_of_hosted_services_are_imported():
    table = {"inference": "no.such.module", "agent": "no.such.module.either"}
    settings = Settings.model_validate({"listen": {"port_offset": free_port_offset(["inference"])}})
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'no'"):
        async with hosting(["inference"], settings, table, environ={}):
            pass
    async with hosting([], settings, table, environ={}) as host:
        assert [] == host.servers
