"""Several replicas of the agent service on one database, each a process of its own."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from turnwire.client import Client
from turnwire.testing.mesh import RunningMesh, running_mesh

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

LEASE_SECONDS = 2.0
QUICK = {"lease_seconds": LEASE_SECONDS, "lease_renew_seconds": 0.5, "sweep_seconds": 0.5, "drain_seconds": 1.0}


@dataclass
class Replicas:
    """The inference service, and replicas of the agent service."""

    inference: RunningMesh
    agents: list[RunningMesh]

    def client(self, *numbers: int, keepalive_seconds: float = 3) -> AbstractAsyncContextManager[Client]:
        """Returns the context of a client of some replicas; of all when none is named."""
        chosen = [self.agents[number] for number in numbers] or self.agents
        address = "ipv4:" + ",".join(agent.address("agent") for agent in chosen)
        return Client.connect(
            address,
            inference_address=self.inference.address("inference"),
            keepalive_seconds=keepalive_seconds,
        )

    async def owner(self, client: Client, turn_id: str) -> int:
        """Returns which replica runs a turn: the one in whose log it stands that it began or recovered it."""
        found = [number for number, agent in enumerate(self.agents) if await _runs(agent, turn_id)]
        assert 1 == len(found), f"turn {turn_id} is run by {found}"
        return found[0]


async def _runs(agent: RunningMesh, turn_id: str) -> bool:
    """Asks a replica for the events of a turn that it runs itself."""
    import grpc

    from turnwire.agent.v1 import turn_owner_service_pb2 as messages
    from turnwire.agent.v1.turn_owner_service_pb2_grpc import TurnOwnerServiceStub

    async with grpc.aio.insecure_channel(agent.address("agent")) as channel:
        stub: Any = TurnOwnerServiceStub(channel)
        call = stub.FollowTurn(messages.FollowTurnRequest(turn_id=turn_id), timeout=5)
        try:
            await call.read()
        except grpc.RpcError:
            return False
        finally:
            call.cancel()
    return True


@asynccontextmanager
async def running_replicas(
    folder: Path, url: str, *, count: int = 3, rules: Sequence[Mapping[str, Any]] = (), **agent: Any
) -> AsyncGenerator[Replicas]:
    """Gives replicas on the database at `url`, stopped on exit."""
    async with AsyncExitStack() as stack:
        inference = await stack.enter_async_context(
            running_mesh("processes", rules=rules, services=("inference",), folder=_made(folder / "inference"))
        )
        agents = [
            await stack.enter_async_context(
                running_mesh(
                    "processes",
                    services=("agent",),
                    folder=_made(folder / f"agent-{number}"),
                    addresses={"inference": inference.address("inference")},
                    store={"url": url},
                    agent=QUICK | agent,
                )
            )
            for number in range(count)
        ]
        yield Replicas(inference, agents)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
