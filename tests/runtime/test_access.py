"""Who may call what: keys of people, tokens of services, and what they say about tenants."""

from __future__ import annotations

import hashlib
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.runtime.serving import ROOT, Answering, failure, hosted, inference, stub_of
from turnwire.agent.v1 import agent_service_pb2
from turnwire.agent.v1.agent_service_pb2_grpc import (
    AgentServiceServicer,
    AgentServiceStub,
    add_AgentServiceServicer_to_server,
)
from turnwire.errors import PermissionDenied, Unauthenticated, from_rpc_error
from turnwire.inference.v1 import inference_service_pb2 as messages
from turnwire.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from turnwire.runtime.access import allowed_roles
from turnwire.runtime.authentication import Authenticator
from turnwire.runtime.hosting import MESH_SECRET
from turnwire.runtime.identity import Caller, current, mesh_token, verify_mesh_token
from turnwire.runtime.settings import AccessSettings

if TYPE_CHECKING:
    from turnwire.runtime.directory import Directory

COUNT = messages.CountTokensRequest()
SECRET = "the secret of this mesh, long enough"
OTHER = "the secret of another mesh, long enough"
KEYS = {role: f"the key of a {role} of tenant blue" for role in ("admin", "user", "viewer")}
ACCESS = {
    "api_keys": [{"name": f"{role}-ann", "key": key, "tenant": "blue", "roles": [role]} for role, key in KEYS.items()]
}

RUN = "turnwire.agent.v1.AgentService/RunTurn"
READ = "turnwire.agent.v1.AgentService/GetTurn"
REGISTER = "turnwire.inference.v1.ModelService/RegisterModel"
LIST_MODELS = "turnwire.inference.v1.ModelService/ListModels"
SANDBOX = "turnwire.sandbox_runner.v1.SandboxRunnerService/RunCode"
ACCESS_WATCH = "turnwire.access.v1.AccessService/GetKey"
WHO_AM_I = "turnwire.access.v1.AccessService/WhoAmI"
HEALTH = "grpc.health.v1.Health/Check"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
NEW = "turnwire.agent.v1.NewService/GetAnything"


def _authenticator(secret: str | None = SECRET) -> Authenticator:
    return Authenticator(AccessSettings.model_validate(ACCESS), secret)


def _bearer(token: str, **metadata: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}", **metadata}


@pytest.mark.parametrize(
    ("method", "admin", "user", "viewer", "service"),
    [
        (RUN, True, True, False, True),
        (READ, True, True, True, True),
        (REGISTER, True, False, False, True),
        (LIST_MODELS, True, True, True, True),
        (SANDBOX, False, False, False, True),
        (ACCESS_WATCH, True, False, False, True),
        (WHO_AM_I, True, True, True, True),
        (HEALTH, True, True, True, True),
        (REFLECTION, True, True, True, True),
        (NEW, False, False, False, False),
    ],
)
def test_roles_open_what_the_table_says_and_nothing_that_stands_nowhere(
    method: str, admin: bool, user: bool, viewer: bool, service: bool
):
    authenticator = _authenticator()
    tokens = {**KEYS, "service": mesh_token(SECRET, "agent")}
    for role, may in (("admin", admin), ("user", user), ("viewer", viewer), ("service", service)):
        if may:
            assert frozenset({role}) == authenticator.caller(method, _bearer(tokens[role])).roles
        else:
            with pytest.raises(PermissionDenied, match=method.replace(".", r"\.")):
                authenticator.caller(method, _bearer(tokens[role]))


def test_every_method_of_the_contract_is_for_somebody():
    nobody: list[str] = []
    for file in sorted((ROOT / "services" / "turnwire").glob("*/v1/*_service_pb2.py")):
        module = import_module(f"turnwire.{file.parents[1].name}.v1.{file.stem}")
        for service in module.DESCRIPTOR.services_by_name.values():
            names = [f"{service.full_name}/{method.name}" for method in service.methods]
            nobody += [name for name in names if not allowed_roles(name)]
    assert [] == nobody


def test_a_key_says_its_tenant_and_nothing_else_does():
    caller = _authenticator().caller(RUN, _bearer(KEYS["user"], **{"turnwire-tenant": "red"}))
    assert Caller("user", "user-ann", "blue", frozenset({"user"})) == caller


def test_a_service_says_for_which_tenant_it_works():
    token = mesh_token(SECRET, "agent")
    caller = _authenticator().caller(RUN, _bearer(token, **{"turnwire-tenant": "red"}))
    assert Caller("service", "agent", "red", frozenset({"service"})) == caller
    assert "default" == _authenticator().caller(RUN, _bearer(token)).tenant


def test_a_key_may_be_kept_as_its_hash():
    entry = {"name": "bob", "sha256": hashlib.sha256(b"the key of bob, long enough").hexdigest()}
    authenticator = Authenticator(AccessSettings.model_validate({"api_keys": [entry]}), None)
    assert "bob" == authenticator.caller(RUN, _bearer("the key of bob, long enough")).subject
    with pytest.raises(Unauthenticated):
        authenticator.caller(RUN, _bearer(entry["sha256"]))


def _forged() -> dict[str, str]:
    now = time.time()
    good = mesh_token(SECRET, "agent", now=now)
    scheme, service, expiry, signature = good.split(".")
    return {
        "of another mesh": mesh_token(OTHER, "agent"),
        "expired": mesh_token(SECRET, "agent", now=now - 301),
        "another service": ".".join((scheme, "inference", expiry, signature)),
        "a later expiry": ".".join((scheme, service, str(int(expiry) + 1000), signature)),
        "another scheme": ".".join(("mesh2", service, expiry, signature)),
        "no signature": ".".join((scheme, service, expiry, "")),
        "half a signature": good[:-1],
        "too few parts": ".".join((scheme, service, expiry)),
        "digits of another script": ".".join((scheme, service, "²²", signature)),
        "thousands of digits": ".".join((scheme, service, "9" * 5_000, signature)),
        "a negative expiry": ".".join((scheme, service, f"-{expiry}", signature)),
        "a signature of other letters": ".".join((scheme, service, expiry, "ü" * 64)),
        "nothing": "mesh1...",
    }


@pytest.mark.parametrize("kind", list(_forged()))
def test_a_token_that_is_not_of_this_mesh_is_refused_as_a_credential(kind: str):
    token = _forged()[kind]
    assert verify_mesh_token(SECRET, token) is None
    with pytest.raises(Unauthenticated) as refused:
        _authenticator().caller(RUN, _bearer(token))
    assert token not in str(refused.value)


def test_a_token_holds_for_five_minutes():
    assert "agent" == verify_mesh_token(SECRET, mesh_token(SECRET, "agent", now=time.time() - 290))


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer nobody knows this one", f"Token {KEYS['admin']}"]
)
async def test_a_call_without_a_good_key_is_refused_and_told_how_to_send_one(header: str):
    async with hosted({"inference": inference()}, access=ACCESS) as service, stub_of(service.address()) as stub:
        error = await failure(stub.CountTokens(COUNT, metadata=(("authorization", header),)))
    assert isinstance(error, Unauthenticated)
    assert "authorization: Bearer KEY" in error.message
    assert "nobody knows" not in error.message


async def test_an_open_server_still_refuses_a_wrong_credential():
    # Who sends one believes to be somebody; as the anonymous admin the call would do another thing.
    async with hosted({"inference": inference()}) as service, stub_of(service.address()) as stub:
        assert 1 == (await stub.CountTokens(COUNT)).prompt_tokens
        error = await failure(stub.CountTokens(COUNT, metadata=(("authorization", "Bearer wrong"),)))
    assert isinstance(error, Unauthenticated)


class Asked(Answering):
    """Notes who asks."""

    def __init__(self) -> None:
        self.callers: list[Caller] = []

    async def CountTokens(self, request: Any, context: Any) -> messages.CountTokensResponse:
        self.callers.append(current())
        return messages.CountTokensResponse(prompt_tokens=1)


class Passing(AgentServiceServicer):
    def __init__(self, directory: Directory) -> None:
        self.stub = InferenceServiceStub(directory.channel("inference"))

    async def GetTurn(self, request: Any, context: Any) -> agent_service_pb2.GetTurnResponse:
        try:
            await self.stub.CountTokens(COUNT)
        except grpc.RpcError as error:
            raise from_rpc_error(error, service="inference") from error
        return agent_service_pb2.GetTurnResponse()


def _passing(server: grpc.aio.Server, directory: Directory) -> None:
    servicer = Passing(directory)  # pyright: ignore[reportAbstractUsage] - the other methods are not called
    add_AgentServiceServicer_to_server(servicer, server)


async def test_a_service_calls_under_its_own_name_for_the_tenant_of_its_caller():
    asked = Asked()
    services = {"inference": inference(asked), "agent": _passing}
    async with (
        hosted(services, access=ACCESS, environ={MESH_SECRET: SECRET}) as service,
        grpc.aio.insecure_channel(service.address("agent")) as plain,
    ):
        metadata = (("authorization", f"Bearer {KEYS['viewer']}"), ("turnwire-tenant", "red"))
        await AgentServiceStub(plain).GetTurn(agent_service_pb2.GetTurnRequest(), metadata=metadata)
    # In one process too: `inference` was hosted first, and the call is the agent's.
    assert [Caller("service", "agent", "blue", frozenset({"service"}))] == asked.callers


async def test_services_of_another_mesh_are_refused():
    async with (
        hosted({"inference": inference()}, access=ACCESS, environ={MESH_SECRET: SECRET}) as service,
        hosted(
            {"agent": _passing},
            access=ACCESS,
            addresses={"inference": service.address()},
            environ={MESH_SECRET: OTHER},
        ) as foreign,
        grpc.aio.insecure_channel(foreign.address("agent")) as plain,
    ):
        metadata = (("authorization", f"Bearer {KEYS['admin']}"),)
        call = AgentServiceStub(plain).GetTurn(agent_service_pb2.GetTurnRequest(), metadata=metadata)
        error = await failure(call)
    # The key of the person was good; it is the agent that inference does not know.
    assert isinstance(error, Unauthenticated)
    assert "InferenceService/CountTokens" in error.metadata["method"]


async def test_the_secret_of_the_environment_goes_before_that_of_the_file():
    # `turnwire up` makes one for its children.
    access = {**ACCESS, "mesh_secret": OTHER}
    async with (
        hosted({"inference": inference()}, access=access, environ={MESH_SECRET: SECRET}) as service,
        stub_of(service.address()) as stub,
    ):
        good = (("authorization", f"Bearer {mesh_token(SECRET, 'agent')}"),)
        assert 1 == (await stub.CountTokens(COUNT, metadata=good)).prompt_tokens
        other = (("authorization", f"Bearer {mesh_token(OTHER, 'agent')}"),)
        assert isinstance(await failure(stub.CountTokens(COUNT, metadata=other)), Unauthenticated)
