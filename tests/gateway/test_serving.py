"""The gateway as a process: `turnwire gateway`, its ports, its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.gateway.edge import running_edge
from tests.runtime.authority import Authority
from turnwire.client.client import user_message
from turnwire.runtime.server import ExposedWithoutAccess, PortTaken
from turnwire.runtime.settings import Settings
from turnwire.testing.mesh import RunningMesh, free_port_offset, running_mesh
from turnwire_gateway.serving import gateway_serving

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

pytestmark = pytest.mark.mesh

RULES = [{"contains": "hang", "text": "one two", "hang": True}]
SERVICES = ("inference", "agent")


@asynccontextmanager
async def _process(mesh: RunningMesh, log: Path) -> AsyncGenerator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "turnwire.cli.main", "gateway", "--config", str(mesh.folder / "turnwire.yaml")]
    with log.open("wb") as output:
        process = await asyncio.to_thread(subprocess.Popen, command, stdout=output, stderr=output, env=os.environ)
    try:
        yield process
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)


async def _get(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        return response.status, await response.text()


async def _until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    while True:
        assert process.poll() is None
        try:
            if (await _get(url))[0] == 200:
                return
        except aiohttp.ClientError:
            await asyncio.sleep(0.05)


async def test_the_command_serves_probes_metrics_and_logs_and_drains_on_sigterm(tmp_path: Path):
    offset = free_port_offset([*SERVICES, "gateway"])
    async with (
        running_mesh(rules=RULES, listen={"port_offset": offset}, agent={"drain_seconds": 1}) as mesh,
        _process(mesh, tmp_path / "log") as process,
        mesh.client() as client,
        aiohttp.ClientSession() as http,
    ):
        port = mesh.settings.port("gateway")
        url = f"http://127.0.0.1:{port}"
        await _until_ready(f"http://127.0.0.1:{port + 100}/readyz", process)
        for path in ("/healthz", "/livez", "/readyz"):
            assert (200, "ok\n") == await _get(url + path)
        session = await client.create_session("assistant")
        async with client.run_turn(session.session_id, [user_message("hang")]) as stream:
            async for _ in stream:
                break
        async with http.get(f"{url}/v1/turns/{stream.turn_id}/events?after=0") as events:
            await events.content.readany()
            async with http.post(f"{url}/v1/chat/completions", json={"model": "scripted"}) as refused:
                assert 400 == refused.status
            metrics = (await _get(f"http://127.0.0.1:{port + 200}/metrics"))[1]
            assert 'http_server_active_requests{http_route="/v1/turns"} 1.0' in metrics
            labels = '{http_response_status_code="400",http_route="/v1/chat"}'
            assert f"http_server_request_duration_seconds_count{labels} 1.0" in metrics
            process.send_signal(signal.SIGTERM)
            await events.read()  # it ends by itself: the reader resumes elsewhere
        assert 0 == await asyncio.to_thread(process.wait, 20)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
    logged = {line["event"]: line for line in lines}
    assert {"serving", "draining", "request_finished"} <= logged.keys()
    assert {"gateway"} == {line["service"] for line in lines}
    assert "/v1/turns" in {line.get("route") for line in lines}
    assert stream.turn_id not in (tmp_path / "log").read_text(), "no ids of users within routes"


async def test_while_it_drains_it_is_not_ready_and_finishes_what_it_has_begun():
    rules = [{"contains": "slow", "tokens": 12, "tokens_per_second": 20}]
    async with running_edge(rules=rules, agent={"drain_seconds": 10}) as edge:
        body = {"model": "scripted", "messages": [{"role": "user", "content": "slow"}], "stream": True}
        async with edge.http.post(f"{edge.url}/v1/chat/completions", json=body) as response:
            await response.content.readany()
            draining = asyncio.create_task(edge.gateway.drain())
            await asyncio.sleep(0)
            assert (503, "draining\n") == await _get(f"{edge.url}/readyz")
            assert (await response.text()).endswith("data: [DONE]\n\n")
        await draining


async def test_ports_that_are_taken_are_named(tmp_path: Path):
    settings = Settings.model_validate(
        {"listen": {"port_offset": free_port_offset(["gateway"])}, "data_dir": str(tmp_path)}
    )
    for extra in (0, 100, 200):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", settings.port("gateway") + extra))
            taken.listen()
            with pytest.raises(PortTaken, match=f"gateway: port {settings.port('gateway') + extra} cannot be bound"):
                async with gateway_serving(settings, environ={}):
                    pass


async def test_it_is_not_shown_to_others_without_keys(tmp_path: Path):
    settings = Settings.model_validate({"listen": {"host": "0.0.0.0"}, "data_dir": str(tmp_path)})
    with pytest.raises(ExposedWithoutAccess):
        async with gateway_serving(settings, environ={}):
            pass


async def test_tls_and_client_certificates_hold_for_it_too(tmp_path: Path):
    authority = Authority(tmp_path)
    certificate, key = authority.pair("gateway")
    mine = authority.pair("anna")
    tls = {"certificate": str(certificate), "key": str(key)}
    tls |= {"ca": str(authority.certificate), "client_ca": str(authority.certificate)}
    offset = free_port_offset(["gateway"])
    settings = Settings.model_validate({"listen": {"port_offset": offset}, "data_dir": str(tmp_path), "tls": tls})
    async with gateway_serving(settings, environ={}):
        url = f"https://127.0.0.1:{settings.port('gateway')}/readyz"
        trusting = ssl.create_default_context(cafile=authority.certificate)
        async with aiohttp.ClientSession() as http:
            with pytest.raises(aiohttp.ClientError):
                async with http.get(url, ssl=trusting):
                    pass
            trusting.load_cert_chain(*mine)
            async with http.get(url, ssl=trusting) as response:
                assert 200 == response.status
        probe: Any = await _get(f"http://127.0.0.1:{settings.port('gateway') + 100}/readyz")
        assert 200 == probe[0]
