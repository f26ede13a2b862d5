"""Gives a model a name of its own, makes an agent on it, and improves the agent while sessions go on.

    python examples/register_model.py

The name `house-model` is what agents use; which model stands behind it can change without touching them. Changing an
agent's configuration makes a new version: sessions follow the newest, unless they pin one.
"""

import asyncio

from turnwire.agent.v1 import agent_pb2
from turnwire.client import Client
from turnwire.errors import AlreadyExists

NAME = "house-model"


async def main() -> None:
    """Registers a model and runs turns under two versions of an agent."""
    async with Client.connect() as client:
        served = (await client.get_agent("assistant")).config.model
        model = await client.get_model(served)
        try:
            await client.register_model(NAME, provider_id=model.provider_id, provider_model_id=model.provider_model_id)
        except AlreadyExists:
            print(f"{NAME} is registered already")

        agent = await client.create_agent(
            agent_pb2.AgentConfig(model=NAME, instructions="Answer in one word."), name="brief"
        )
        pinned = await client.create_session(agent.agent_id, agent_version=agent.version)
        following = await client.create_session(agent.agent_id)

        agent.config.instructions = "Answer in one sentence."
        agent = await client.update_agent(agent, ["config.instructions"])
        print(f"agent {agent.agent_id} is at version {agent.version}")

        for session in (pinned, following):
            turn = await client.run_turn(session.session_id, "Is water wet?").result()
            print(f"version {turn.agent_version}: {turn.output.parts[0].text}")

        await client.delete_agent(agent.agent_id, force=True)
        await client.unregister_model(NAME)


if __name__ == "__main__":
    asyncio.run(main())
