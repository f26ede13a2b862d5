"""Everything that runs during a bench: the upstream, the mesh, the relay, each a process of its own."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc

from bench.processes import child
from bench.script import PACE, SCRIPTED_LABEL
from bench.targets import Direct, Mesh, Stream, Target
from turnwire.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from turnwire.runtime.channels import channel_options
from turnwire.testing.mesh import running_mesh
from turnwire.testing.postgres import running_postgres

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

    from bench.plan import Plan
    from turnwire.testing.postgres import Postgres


@dataclass(frozen=True, slots=True)
class Lab:
    """What a bench measures with."""

    mesh: Mesh
    relay: Stream
    direct: Target
    """The upstream by itself."""
    database: Path
    """The store of the agent service."""
    on_postgres: Mesh
    """A second mesh, which keeps its state in PostgreSQL."""
    postgres: Postgres
    postgres_database: str
    processes: Mapping[str, int]
    """All processes but this one."""


@asynccontextmanager
async def lab(plan: Plan) -> AsyncGenerator[Lab]:
    """Gives a lab whose processes are ready; they end when the context is left."""
    async with AsyncExitStack() as stack:
        postgres = stack.enter_context(running_postgres())
        url = stack.enter_context(postgres.database())
        base_url, processes = "", dict[str, int]()
        if plan.upstream == "openai":
            server = await stack.enter_async_context(child(plan.upstream_module))
            base_url = f"http://127.0.0.1:{server.port}/v1"
            processes["upstream"] = server.pid
        # Before gRPC is used in this process: it dislikes that a process forks while it runs.
        source = await stack.enter_async_context(child("bench.relay", "source", base_url))
        relay = await stack.enter_async_context(child("bench.relay", "relay", f"127.0.0.1:{source.port}"))
        relays = {"relay": relay.pid, "source": source.pid}
        mesh = await stack.enter_async_context(
            running_mesh(
                "processes",
                providers={"inference": [_provider(plan, base_url)]},
                # Those of every call are what a service writes as shipped.
                telemetry={"log_level": "info"},
            )
        )
        other = await stack.enter_async_context(
            running_mesh("processes", providers={"inference": [_provider(plan, base_url)]}, store={"url": url})
        )
        services = {name: mesh.pid(name) for name in ("agent", "inference")}
        others = {f"{name} on PostgreSQL": other.pid(name) for name in ("agent", "inference")}
        client = await stack.enter_async_context(mesh.client())
        other_client = await stack.enter_async_context(other.client())
        label = None if plan.upstream == "openai" else SCRIPTED_LABEL
        relay_stub = await stack.enter_async_context(_stub(f"127.0.0.1:{relay.port}"))
        if plan.upstream == "openai":
            # Connections are kept: what the mesh pays to open one for each turn is part of what it adds.
            session = await stack.enter_async_context(aiohttp.ClientSession())
            direct: Target = Direct(session, base_url)
        else:
            inference = await stack.enter_async_context(_stub(mesh.address("inference")))
            direct = Stream("inference service", inference, {"inference": services["inference"]}, label)
        yield Lab(
            mesh=Mesh(client, services, label),
            relay=Stream("relay", relay_stub, relays, label),
            direct=direct,
            database=mesh.settings.data_dir / "agent.sqlite3",
            on_postgres=Mesh(other_client, others, label, name="mesh on PostgreSQL"),
            postgres=postgres,
            postgres_database=url.partition("?")[0].rpartition("/")[2],
            processes={**processes, **services, **others, **relays},
        )


def _provider(plan: Plan, base_url: str) -> dict[str, Any]:
    if plan.upstream == "openai":
        config: dict[str, Any] = {"base_url": base_url, "models": [{"model_id": "scripted"}]}
        return {"provider_id": "bench", "provider_type": "remote::openai", "config": config}
    longest = max(plan.tokens, plan.first_token_tokens)
    rules = [
        {"contains": "paced", "tokens": longest, "tokens_per_second": PACE},
        {"contains": "burst", "tokens": longest},
    ]
    return {"provider_id": "bench", "provider_type": "inline::scripted", "config": {"rules": rules}}


@asynccontextmanager
async def _stub(address: str) -> AsyncGenerator[InferenceServiceStub]:
    # The options of the mesh's own client, so that they are no difference.
    async with grpc.aio.insecure_channel(address, options=channel_options(keepalive_ms=30_000)) as channel:
        stub: Any = InferenceServiceStub(channel)
        yield stub
