"""The contract over Connect and gRPC-Web answers as it does over gRPC, method by method."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import json_format
from starlette.datastructures import Headers

from tests.gateway.edge import HEAD, Answer, frames, running_edge, web_status
from turnwire.agent.v1 import agent_service_pb2
from turnwire.common.v1 import message_pb2
from turnwire.runtime.access import allowed_roles
from turnwire_gateway.methods import METHODS
from turnwire_gateway.upstream import Caller

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.mesh

AGENT = "turnwire.agent.v1.AgentService"
EVERY_SERVICE = ("inference", "safety", "memory", "tool_executor", "agent")
CHANGING = {"turnwire.common.v1.InspectService/GetServerInfo"}
"""Their answers tell the time."""


def _facts(name: str, answer: Answer) -> tuple[Any, ...]:
    messages = (
        [] if name in CHANGING else [message.SerializeToString(deterministic=True) for message in answer.messages]
    )
    return answer.status.code, answer.reason, answer.status.message, messages


async def test_every_method_answers_an_empty_request_alike_in_every_protocol():
    expected: dict[str, Any] = {}
    actual: dict[str, Mapping[str, Any]] = {}
    async with running_edge(services=EVERY_SERVICE) as edge:
        for name, method in METHODS.items():
            if method.streams_in:
                continue
            facts = _facts(name, await edge.grpc(name, b""))
            expected[name] = dict.fromkeys(("connect json", "connect proto", "grpc-web", "grpc-web-text"), facts)
            actual[name] = {
                "connect json": _facts(name, await edge.connect(name, b"{}", "json")),
                "connect proto": _facts(name, await edge.connect(name, b"")),
                "grpc-web": _facts(name, await edge.grpc_web(name, b"")),
                "grpc-web-text": _facts(name, await edge.grpc_web(name, b"", text=True)),
            }
    assert expected == actual
    codes = {facts["grpc-web"][0] for facts in actual.values()}
    assert {0, 3} <= codes, "some are answered and some refused, or nothing was compared"


def test_every_public_method_is_there_and_no_other():
    public = {name for name in METHODS if "service" in allowed_roles(name)}
    assert public | {"turnwire.access.v1.AccessService/WhoAmI"} == set(METHODS)
    assert not [name for name in METHODS if "sandbox" in name]
    services = {name.split(".")[1] for name in METHODS}
    assert {"access", "agent", "common", "inference", "memory", "safety", "tool_executor"} == services


async def test_requests_that_are_streams_are_refused_with_what_to_do_instead():
    async with running_edge() as edge:
        name = "turnwire.tool_executor.v1.ArtifactService/UploadArtifact"
        async with edge.post(name, b"{}", "application/json") as response:
            unary = await response.json()
        assert (501, "unimplemented") == (response.status, unary["code"])
        assert "PUT the file to /v1/artifacts?name=NAME" in unary["message"]
        web = await edge.grpc_web(f"{AGENT}/ImportTurn", b"")
        assert 12 == web.status.code
        assert "Call it over gRPC" in web.status.message


@pytest.mark.parametrize("codec", ["json", "proto"])
async def test_a_message_of_any_script_and_number_survives(codec: str):
    said = 'Grüße, 世界 \U0001f600 "quoted" \\ \x7f\u2028'
    request = agent_service_pb2.CreateSessionRequest(agent_id="assistant", title=said, metadata={"k": "ä"})
    body = json_format.MessageToJson(request).encode() if codec == "json" else request.SerializeToString()
    async with running_edge() as edge:
        made: Any = (await edge.connect(f"{AGENT}/CreateSession", body, codec)).messages[0]
        got: Any = (await edge.grpc_web(f"{AGENT}/GetSession", b"\n" + _text(made.session.session_id))).messages[0]
    assert (said, {"k": "ä"}) == (got.session.title, dict(got.session.metadata))
    assert made.session == got.session


def _text(value: str) -> bytes:
    return bytes([len(value)]) + value.encode()


async def test_both_names_of_a_field_are_taken_in_json():
    async with running_edge() as edge:
        for key in ("agent_id", "agentId"):
            answer = await edge.connect(f"{AGENT}/GetAgent", json.dumps({key: "assistant"}).encode(), "json")
            assert 0 == answer.status.code, key


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{", "Failed to load JSON"),
        (b'{"agent_idd": "x"}', "agent_idd"),
        (b'{"agent_id": 5}', "agent_id"),
        (b'{"version": "many"}', "version"),
        (b'{"version": 1e400}', "version"),
        (b"[]", "GetAgentRequest in JSON: it is no object"),
        (b"\xff\xfe", "utf-8"),
        (b'{"agent_id":' + b"[" * 100_000, "nests too deep"),
    ],
)
async def test_json_that_is_no_request_is_refused_with_where(body: bytes, told: str):
    async with running_edge() as edge:
        answer = await edge.connect(f"{AGENT}/GetAgent", body, "json")
    assert (3, "ERROR_REASON_MALFORMED_MESSAGE") == (answer.status.code, answer.reason)
    assert told in answer.status.message


async def test_unknown_paths_content_types_and_verbs_are_told_apart():
    async with running_edge() as edge:
        async with edge.post(f"{AGENT}/NoSuch", b"{}", "application/json") as response:
            assert (404, "unimplemented") == (response.status, (await response.json())["code"])
        async with edge.post(f"{AGENT}/GetAgent", b"{}", "text/plain") as response:
            assert 415 == response.status
            assert "application/grpc-web+proto" in response.headers["accept-post"]
        async with edge.http.get(f"{edge.url}/{AGENT}/GetAgent") as response:
            assert (405, "POST") == (response.status, response.headers["allow"])
        async with edge.post(f"{AGENT}/NoSuch", b"", "application/grpc-web+proto") as response:
            ((flags, trailers),) = frames(await response.read())
        assert (0x80, 12) == (flags, web_status(trailers).code)
        async with edge.post(f"{AGENT}/RunTurn", b"{}", "application/json") as response:
            assert (400, "invalid_argument") == (response.status, (await response.json())["code"])
        async with edge.post(f"{AGENT}/GetAgent", b"", "application/connect+proto") as response:
            ((flags, end),) = frames(await response.read())
        assert (2, "invalid_argument") == (flags, json.loads(end)["error"]["code"])


async def test_compressed_requests_are_unpacked_within_the_limit():
    packed = gzip.compress(b'{"agent_id": "assistant"}')
    bomb = gzip.compress(b" " * 10_000_000 + b"{}")
    name = f"{AGENT}/GetAgent"
    async with running_edge() as edge:
        answer = await edge.connect(name, packed, "json", {"content-encoding": "gzip"})
        assert "assistant" == getattr(answer.messages[0], "agent").agent_id  # noqa: B009 - a field of one response
        answer = await edge.connect(name, bomb, "json", {"content-encoding": "gzip"})
        assert (8, "ERROR_REASON_MESSAGE_TOO_LARGE") == (answer.status.code, answer.reason)
        answer = await edge.connect(name, packed[:20], "json", {"content-encoding": "gzip"})
        assert 3 == answer.status.code
        answer = await edge.connect(name, b"{}", "json", {"content-encoding": "br"})
        assert (3, "content-encoding") == (answer.status.code, _field(answer))
        request = agent_service_pb2.ExportTurnRequest(turn_id="none").SerializeToString()
        sent = gzip.compress(request)
        async with edge.post(
            f"{AGENT}/ExportTurn",
            HEAD.pack(1, len(sent)) + sent,
            "application/connect+proto",
            {"connect-content-encoding": "gzip"},
        ) as response:
            ((_, end),) = frames(await response.read())
        direct = await edge.grpc(f"{AGENT}/ExportTurn", request)
        assert direct.status.message == json.loads(end)["error"]["message"]


def _field(answer: Answer) -> str:
    from google.rpc import error_details_pb2

    details = next(detail for detail in answer.status.details if detail.TypeName() == "google.rpc.BadRequest")
    return error_details_pb2.BadRequest.FromString(details.value).field_violations[0].field


async def test_bodies_beyond_the_limit_are_refused():
    async with running_edge(limits={"message_bytes": 2048}) as edge:
        for answer in (
            await edge.connect(f"{AGENT}/GetAgent", b" " * 3000 + b"{}", "json"),
            await edge.connect(f"{AGENT}/GetAgent", b"\n" * 3000),
            await edge.grpc_web(f"{AGENT}/GetAgent", b"\n" * 3000),
            await edge.connect(f"{AGENT}/ExportTurn", b"\n" * 3000),
        ):
            assert (8, "ERROR_REASON_MESSAGE_TOO_LARGE") == (answer.status.code, answer.reason)


async def test_the_callers_time_is_the_deadline_of_the_call():
    rules = [{"contains": "slow", "hang": True}]
    request = _chat("slow").SerializeToString()
    name = "turnwire.inference.v1.InferenceService/ChatCompletion"
    async with running_edge(rules=rules) as edge:
        answer = await edge.connect(name, request, headers={"connect-timeout-ms": "300"})
        assert 4 == answer.status.code
        answer = await edge.connect(f"{AGENT}/GetAgent", b"", headers={"connect-timeout-ms": "0"})
        assert 4 == answer.status.code
        answer = await edge.grpc_web(name, request, headers={"grpc-timeout": "300m"})
        assert 4 == answer.status.code
        for headers in ({"connect-timeout-ms": "soon"}, {"connect-protocol-version": "2"}):
            answer = await edge.connect(name, request, headers=headers)
            assert (3, next(iter(headers))) == (answer.status.code, _field(answer))
        answer = await edge.grpc_web(name, request, headers={"grpc-timeout": "300"})
        assert (3, "grpc-timeout") == (answer.status.code, _field(answer))


def _chat(text: str) -> Any:
    from turnwire.inference.v1 import inference_service_pb2

    message = message_pb2.Message(role=message_pb2.ROLE_USER, parts=[message_pb2.ContentPart(text=text)])
    return inference_service_pb2.ChatCompletionRequest(model="scripted", messages=[message])


async def test_a_service_that_is_away_is_unavailable_and_named():
    async with running_edge(services=("inference",)) as edge:
        for answer in (
            await edge.connect(f"{AGENT}/GetAgent", b"{}", "json"),
            await edge.grpc_web(f"{AGENT}/GetAgent", b""),
            await edge.connect(f"{AGENT}/RunTurn", b"{}", "json"),
        ):
            assert (14, "ERROR_REASON_SERVICE_UNAVAILABLE") == (answer.status.code, answer.reason)
            assert "The agent service at 127.0.0.1" in answer.status.message


async def test_the_callers_key_decides_and_a_tenant_is_never_taken_from_it():
    keys = [
        {"name": "anna", "key": "k" * 16, "tenant": "red"},
        {"name": "bert", "key": "b" * 16, "tenant": "blue"},
        {"name": "vera", "key": "v" * 16, "roles": ["viewer"], "tenant": "red"},
    ]
    anna = {"authorization": f"Bearer {'k' * 16}"}
    bert = {"authorization": f"Bearer {'b' * 16}", "turnwire-tenant": "red"}
    async with running_edge(access={"api_keys": keys, "mesh_secret": "s" * 32}) as edge:
        made: Any = (await edge.connect(f"{AGENT}/CreateSession", b'{"agentId": "assistant"}', "json", anna)).messages[
            0
        ]
        asked = agent_service_pb2.GetSessionRequest(session_id=made.session.session_id).SerializeToString()
        assert 0 == (await edge.connect(f"{AGENT}/GetSession", asked, headers=anna)).status.code
        assert 5 == (await edge.connect(f"{AGENT}/GetSession", asked, headers=bert)).status.code
        assert 16 == (await edge.connect(f"{AGENT}/GetSession", asked)).status.code
        assert 16 == (await edge.grpc_web(f"{AGENT}/GetSession", asked)).status.code
        wrong = {"authorization": "Bearer ümlaut"}
        assert 16 == (await edge.connect(f"{AGENT}/GetSession", asked, headers=wrong)).status.code
        vera = {"authorization": f"Bearer {'v' * 16}"}
        assert 7 == (await edge.connect(f"{AGENT}/CreateSession", b"{}", "json", vera)).status.code
        async with edge.post(f"{AGENT}/GetSession", asked, "application/proto") as response:
            assert 401 == response.status


async def test_a_request_goes_by_one_id_and_one_trace():
    headers = {"turnwire-request-id": "req_mine", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    async with running_edge() as edge:
        session: Any = (await edge.connect(f"{AGENT}/CreateSession", b'{"agentId": "assistant"}', "json")).messages[0]
        message = message_pb2.Message(role=message_pb2.ROLE_USER, parts=[message_pb2.ContentPart(text="hello")])
        request = agent_service_pb2.RunTurnRequest(session_id=session.session.session_id, messages=[message])
        answer: Any = await edge.connect(f"{AGENT}/RunTurn", request.SerializeToString(), headers=headers)
        assert "a" * 32 == answer.messages[0].turn_started.trace_id
        async with edge.post(f"{AGENT}/GetAgent", b"", "application/proto", headers) as response:
            assert "req_mine" == response.headers["turnwire-request-id"]
        async with edge.post(f"{AGENT}/GetAgent", b"", "application/proto") as response:
            assert response.headers["turnwire-request-id"].startswith("req_")


async def test_pages_of_other_origins_read_answers_only_where_that_is_set():
    asking = {"origin": "https://app.example.org", "access-control-request-method": "POST"}
    async with running_edge(gateway={"allowed_origins": ["https://app.example.org"]}) as edge:
        async with edge.http.options(f"{edge.url}/{AGENT}/GetAgent", headers=asking) as response:
            assert (204, asking["origin"]) == (response.status, response.headers["access-control-allow-origin"])
            assert "connect-protocol-version" in response.headers["access-control-allow-headers"]
        async with edge.http.options(f"{edge.url}/x", headers=asking | {"origin": "https://evil.example"}) as response:
            assert 403 == response.status
            assert "access-control-allow-origin" not in response.headers
        async with edge.post(f"{AGENT}/GetAgent", b"", "application/proto", {"origin": asking["origin"]}) as response:
            assert asking["origin"] == response.headers["access-control-allow-origin"]
            assert "grpc-status-details-bin" in response.headers["access-control-expose-headers"]
    async with running_edge() as edge:
        async with edge.http.options(f"{edge.url}/{AGENT}/GetAgent", headers=asking) as response:
            assert 403 == response.status


async def test_an_open_mesh_answers_to_names_of_this_machine_only():
    async with running_edge() as edge:
        for host, status in (("evil.example", 421), ("localhost:1", 404), ("[::1]:80", 404), ("127.0.0.1", 404)):
            async with edge.http.get(f"{edge.url}/nothing", headers={"host": host}) as response:
                assert status == response.status, host
    keys = [{"name": "anna", "key": "k" * 16}]
    async with running_edge(access={"api_keys": keys, "mesh_secret": "s" * 32}) as edge:
        async with edge.http.get(f"{edge.url}/readyz", headers={"host": "agents.example.org"}) as response:
            assert 200 == response.status


def test_of_a_request_only_what_is_the_callers_to_say_goes_along():
    headers = Headers(
        {"authorization": "Bearer x", "turnwire-tenant": "red", "turnwire-client": "me", "tracestate": "a=1"}
    )
    sent = dict(Caller.of(headers).metadata)
    assert {"authorization", "traceparent", "tracestate", "turnwire-request-id"} == sent.keys()
    assert ("Bearer x", "a=1") == (sent["authorization"], sent["tracestate"])
