"""`buf curl`, another's client of both protocols, against the gateway."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.edge import running_edge

pytestmark = pytest.mark.mesh

ROOT = Path(__file__).resolve().parents[2]
AGENT = "turnwire.agent.v1.AgentService"
RULES = [{"contains": "hello", "text": "Grüße \U0001f600."}]


async def _curl(url: str, protocol: str, method: str, request: dict[str, Any]) -> tuple[int, list[Any], str]:
    command = [
        str(Path(sys.executable).parent / "buf"),
        "curl",
        "--protocol",
        protocol,
        "--schema",
        str(ROOT / "protos"),
    ]
    command += ["--data", json.dumps(request), f"{url}/{AGENT}/{method}"]
    ran = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    decoder, answers, rest = json.JSONDecoder(), list[Any](), ran.stdout.strip()
    while rest:
        answer, end = decoder.raw_decode(rest)
        answers.append(answer)
        rest = rest[end:].lstrip()
    return ran.returncode, answers, ran.stderr


@pytest.mark.parametrize("protocol", ["connect", "grpcweb"])
async def test_buf_curl_runs_a_turn_and_reads_an_error(protocol: str):
    async with running_edge(rules=RULES) as edge:
        code, (made,), said = await _curl(edge.url, protocol, "CreateSession", {"agentId": "assistant"})
        assert 0 == code, said
        messages = [{"role": "ROLE_USER", "parts": [{"text": "hello"}]}]
        request = {"sessionId": made["session"]["sessionId"], "messages": messages}
        code, events, said = await _curl(edge.url, protocol, "RunTurn", request)
        assert 0 == code, said
        assert "turnStarted" in events[0]
        assert "Grüße \U0001f600." == events[-1]["turnCompleted"]["output"]["parts"][0]["text"]
        code, answers, said = await _curl(edge.url, protocol, "GetTurn", {"turnId": "turn_none"})
        assert (5 * 8, []) == (code, answers)
        told = json.loads(said)
        assert "not_found" == told["code"]
        info = next(detail["value"] for detail in told["details"] if detail["type"] == "google.rpc.ErrorInfo")
        assert b"ERROR_REASON_NOT_FOUND" in base64.b64decode(info + "=" * (-len(info) % 4))
