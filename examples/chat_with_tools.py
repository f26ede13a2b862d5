"""Makes an agent that may call two functions of this program, and talks with it, a line at a time.

    python examples/chat_with_tools.py
    > What is the weather in Berlin?

The functions run here, in your process, with all that it can reach: the service only hears what they return. An empty
line ends the conversation.
"""

import asyncio
from datetime import UTC, datetime

from turnwire.agent.v1 import agent_pb2
from turnwire.client import Client, function_tool


async def get_weather(city: str) -> dict[str, object]:
    """The weather of a city, now."""
    return {"city": city, "degrees": 21, "sky": "clear"}


def get_time() -> str:
    """The time in UTC."""
    return datetime.now(UTC).isoformat(timespec="minutes")


FUNCTIONS = {"get_weather": get_weather, "get_time": get_time}


async def main() -> None:
    """Reads lines and answers them, all in one session."""
    async with Client.connect() as client:
        config = agent_pb2.AgentConfig(
            instructions="You answer questions about weather and time. Use your tools.",
            tools=[function_tool(function) for function in FUNCTIONS.values()],
        )
        config.model = (await client.get_agent("assistant")).config.model
        agent = await client.create_agent(config, name="weather")
        session = await client.create_session(agent.agent_id)
        while line := (await asyncio.to_thread(input, "> ")).strip():
            async with client.run_turn(session.session_id, line, tools=FUNCTIONS) as turn:
                async for event in turn:
                    for given in event.turn_input_received.inputs:
                        print(f"  {given.tool_result.name} -> {given.tool_result.content}")
            print(turn.text)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except (EOFError, KeyboardInterrupt):
        print()
