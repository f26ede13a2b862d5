"""A unit test of one's own agent, with a model that says what the test tells it to. No network, no weights.

    pytest examples/test_my_agent.py

`order_agent` and `ORDERS` stand for your own code. The services are real and run within the test.
"""

import asyncio

from turnwire.agent.v1 import agent_pb2, turn_pb2
from turnwire.client import Client, function_tool
from turnwire.testing.mesh import running_mesh

ORDERS = {"A1": "shipped"}


def order_status(order: str) -> str:
    """The status of an order."""
    return ORDERS[order]


def order_agent(model: str) -> agent_pb2.AgentConfig:
    """Returns the agent under test."""
    return agent_pb2.AgentConfig(
        model=model, instructions="You tell customers about their orders.", tools=[function_tool(order_status)]
    )


async def answer(client: Client, question: str) -> turn_pb2.Turn:
    """Returns a turn of the agent."""
    agent = await client.create_agent(order_agent("scripted"))
    session = await client.create_session(agent.agent_id)
    return await client.run_turn(session.session_id, question, tools={"order_status": order_status}).result()


def test_the_agent_looks_an_order_up() -> None:
    """The function's result gets to the model, and the model's answer to the customer."""
    rules = [
        {"contains": "order A1", "calls": [{"name": "order_status", "arguments": {"order": "A1"}}]},
        {"after_tool": True, "contains": "shipped", "text": "It is on its way."},
    ]

    async def check() -> None:
        async with running_mesh(rules=rules) as mesh, mesh.client() as client:
            turn = await answer(client, "Where is order A1?")
        assert turn.output.parts[0].text == "It is on its way."

    asyncio.run(check())


def test_an_order_that_is_not_known_is_the_models_to_explain() -> None:
    """What the function raises is told to the model; the turn goes on."""
    rules = [
        {"contains": "order B2", "calls": [{"name": "order_status", "arguments": {"order": "B2"}}]},
        {"after_tool": True, "text": "I do not know that order."},
    ]

    async def check() -> None:
        async with running_mesh(rules=rules) as mesh, mesh.client() as client:
            turn = await answer(client, "Where is order B2?")
        (step,) = [step for step in turn.steps if step.HasField("tool_execution")]
        assert step.tool_execution.executions[0].result.failure.message == "KeyError: 'B2'"
        assert turn.output.parts[0].text == "I do not know that order."

    asyncio.run(check())


if __name__ == "__main__":
    test_the_agent_looks_an_order_up()
    test_an_order_that_is_not_known_is_the_models_to_explain()
    print("2 tests passed")
