"""Bad input of every kind to every RPC: the right code and details, nothing written, no trace in the logs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf import unknown_fields

from tests.contract.calling import HOSTS, Rpc, all_rpcs, call, dump, filled
from turnwire.agent.v1 import agent_pb2
from turnwire.errors import DOMAIN
from turnwire.runtime.access import allowed_roles
from turnwire.testing.mesh import RunningMesh, running_mesh

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from turnwire.errors import TurnwireError

pytestmark = pytest.mark.mesh

KEYS = {"a": "key-of-tenant-a-0000", "b": "key-of-tenant-b-0000"}
ACCESS = {
    "api_keys": [
        {"name": name, "key": key, "tenant": f"tenant-{name}", "roles": ["admin"]} for name, key in KEYS.items()
    ],
    "mesh_secret": "a secret of the mesh",
}
RPCS = all_rpcs()
Code = grpc.StatusCode
_EXPECTED = {
    Code.OK,
    Code.INVALID_ARGUMENT,
    Code.NOT_FOUND,
    Code.UNIMPLEMENTED,
    Code.FAILED_PRECONDITION,
    Code.PERMISSION_DENIED,
}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mesh() -> AsyncGenerator[RunningMesh]:
    """A mesh of all services with two tenants."""
    async with running_mesh(services=tuple(HOSTS), access=ACCESS) as running:
        yield running


def _check_details(rpc: Rpc, code: grpc.StatusCode, error: TurnwireError | None) -> None:
    assert error is not None, f"{rpc} answered {code} without details"
    assert error.reason_name.startswith("ERROR_REASON_")
    assert error.message
    if code == Code.INVALID_ARGUMENT and error.reason_name == "ERROR_REASON_INVALID_REQUEST":
        assert error.violations, f"{rpc} names no field"
        assert all(violation.field and violation.description for violation in error.violations)


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("rpc", RPCS, ids=str)
async def test_bad_input_is_refused_with_details_and_writes_nothing(
    rpc: Rpc, mesh: RunningMesh, capfd: pytest.CaptureFixture[str]
):
    address = mesh.address(rpc.host)
    before = dump(mesh.folder)
    empty = rpc.request()
    unknown = bytes([0xFA, 0xFF, 0x07, 0x03]) + b"xyz"  # a field of the number 16383
    bodies = {
        "empty": empty.SerializeToString(),
        "unknown field": unknown,
        "unknown names": filled(rpc.request(), "nobody").SerializeToString(),
        "long texts": filled(rpc.request(), "x" * 70_000).SerializeToString(),
        "odd characters": filled(rpc.request(), "\x00\u202e'; DROP TABLE turns; --").SerializeToString(),
    }
    for kind, body in bodies.items():
        code, error = await call(address, rpc, body, KEYS["a"])
        assert code in _EXPECTED, f"{rpc} with {kind} answered {code}: {error}"
        if code != Code.OK:
            _check_details(rpc, code, error)
    code, error = await call(address, rpc, b"\xff\xff\xff\xff", KEYS["a"])
    assert (Code.INVALID_ARGUMENT, "ERROR_REASON_MALFORMED_MESSAGE") == _answer(code, error) or _closed(error)
    code, error = await call(address, rpc, b"\0" * (4 * 1024 * 1024 + 1), KEYS["a"])
    assert (Code.RESOURCE_EXHAUSTED, "ERROR_REASON_MESSAGE_TOO_LARGE") == _answer(code, error) or _closed(error)

    assert before == dump(mesh.folder), f"{rpc} has written something"
    logged = capfd.readouterr().err
    assert "Traceback" not in logged, logged[-3000:]
    assert "rpc_defect" not in logged


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("rpc", RPCS, ids=str)
async def test_nobody_gets_in_without_a_credential(rpc: Rpc, mesh: RunningMesh):
    for key in ("", "a wrong key"):
        code, error = await call(mesh.address(rpc.host), rpc, b"", key)
        assert (Code.UNAUTHENTICATED, "ERROR_REASON_UNAUTHENTICATED") == _answer(code, error)


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("rpc", [rpc for rpc in RPCS if "page_size" in rpc.request.DESCRIPTOR.fields_by_name], ids=str)
async def test_pages_that_cannot_be(rpc: Rpc, mesh: RunningMesh):
    for field, value in (("page_size", -1), ("page_token", "garbage!"), ("page_token", "WzFd" * 50)):
        request = rpc.request(**{field: value})
        for name in ("agent_id", "turn_id", "session_id"):
            if name in request.DESCRIPTOR.fields_by_name and name != "session_id":
                setattr(request, name, "assistant")
        code, error = await call(mesh.address(rpc.host), rpc, request.SerializeToString(), KEYS["a"])
        if _closed(error) or code == Code.NOT_FOUND:
            continue
        assert Code.INVALID_ARGUMENT == code, f"{rpc} took {field}={value!r}"
        assert error is not None
        assert [field] == [violation.field for violation in error.violations]


@pytest.mark.asyncio(loop_scope="session")
async def test_nothing_crosses_tenants(mesh: RunningMesh):
    async with mesh.client(api_key=KEYS["a"]) as alice:
        agent = await alice.create_agent(agent_pb2.AgentConfig(model="scripted"))
        session = await alice.create_session(agent.agent_id)
        turn = await alice.run_turn(session.session_id, "hello").result()
        await alice.register_model("mine", provider_model_id="scripted")
    names = {
        "agent_id": agent.agent_id,
        "session_id": session.session_id,
        "turn_id": turn.turn_id,
        "step_id": turn.steps[0].step_id,
        "model_id": "mine",
    }
    before = dump(mesh.folder)
    asked = 0
    for rpc in RPCS:
        fields = [name for name in names if name in rpc.request.DESCRIPTOR.fields_by_name]
        if rpc.host not in {"agent", "inference"} or not fields or rpc.name in {"RegisterModel", "ListSessions"}:
            continue
        request = rpc.request(**{name: names[name] for name in fields})
        _complete(request)
        code, error = await call(mesh.address(rpc.host), rpc, request.SerializeToString(), KEYS["b"])
        if _closed(error):
            continue
        if rpc.name == "ListTurns":
            assert Code.OK == code
            continue
        assert Code.NOT_FOUND == code, f"{rpc} answered {code} for another tenant's {fields}: {error}"
        asked += 1
    assert asked >= 15
    assert before == dump(mesh.folder)
    async with mesh.client(api_key=KEYS["b"]) as bob:
        assert ["assistant"] == [each.agent_id for each in (await bob.list_agents()).agents]
        assert not (await bob.list_sessions()).sessions
        assert not (await bob.list_turns()).turns
        assert "mine" not in [each.model_id for each in (await bob.list_models()).models]


def _complete(request: Any) -> None:
    """Fills what else a request needs to be looked at."""
    if "messages" in request.DESCRIPTOR.fields_by_name:
        request.messages.add(role=2).parts.add(text="hello")
    if "inputs" in request.DESCRIPTOR.fields_by_name:
        request.inputs.add().tool_result.call_id = "call"
    if "prompt" in request.DESCRIPTOR.fields_by_name:
        request.prompt = "x"


@pytest.mark.asyncio(loop_scope="session")
async def test_an_unknown_method_says_so(mesh: RunningMesh):
    rpc = Rpc("agent", "turnwire.agent.v1.AgentService", "Dance", None, None, False, False)
    code, error = await call(mesh.address("agent"), rpc, b"", KEYS["a"])

    assert (Code.UNIMPLEMENTED, "ERROR_REASON_UNIMPLEMENTED") == _answer(code, error)


def test_every_rpc_stands_in_the_access_table():
    assert [] == [str(rpc) for rpc in RPCS if not allowed_roles(rpc.path[1:])]
    assert not allowed_roles("turnwire.agent.v2.AgentService/RunTurn")


def test_a_domain_is_named_once():
    assert "turnwire" == DOMAIN


def test_numbers_of_later_versions_keep_their_bytes():
    body = bytes([0xFA, 0xFF, 0x07, 0x03]) + b"xyz"
    message = agent_pb2.AgentConfig.FromString(body)

    assert 1 == len(unknown_fields.UnknownFieldSet(message))
    assert body == message.SerializeToString()
    later = agent_pb2.AgentTool()
    later.MergeFromString(agent_pb2.AgentTool(approval=99).SerializeToString())  # pyright: ignore[reportArgumentType] - a number of a later version
    assert 99 == later.approval


def _answer(code: grpc.StatusCode, error: TurnwireError | None) -> tuple[grpc.StatusCode, str]:
    return code, error.reason_name if error is not None else ""


def _closed(error: TurnwireError | None) -> bool:
    """True where the method is not served, or not to people: the bytes are then nobody's concern."""
    closed = {"ERROR_REASON_UNIMPLEMENTED", "ERROR_REASON_PERMISSION_DENIED"}
    return error is not None and error.reason_name in closed
