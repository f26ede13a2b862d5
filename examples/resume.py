"""Leaves a turn in the middle, and goes on with it from the number of the last event that was seen.

    python examples/resume.py

Inside one program there is nothing to do: `run_turn` resumes a cut stream by itself. This is for a program that ends
and starts again: it has kept two values, the turn's id and a number. The turn itself runs on meanwhile.
"""

import asyncio

from turnwire.agent.v1 import agent_pb2, event_pb2
from turnwire.client import Client


async def begin() -> tuple[str, int]:
    """Begins a turn, reads some of it and goes away; returns what has to be kept."""
    async with Client.connect() as client:
        # An agent without output shields: those of `assistant` hold its text until they have passed all of it.
        model = (await client.get_agent("assistant")).config.model
        agent = await client.create_agent(agent_pb2.AgentConfig(model=model), name="storyteller")
        session = await client.create_session(agent.agent_id)
        async with client.run_turn(session.session_id, "Tell me a long story.") as turn:
            async for event in turn:
                if event.step_delta.part == event_pb2.DELTA_PART_ANSWER:
                    break
        print(f"left turn {turn.turn_id} after event {turn.last_sequence}: {turn.text!r}")
        return turn.turn_id, turn.last_sequence


async def go_on(turn_id: str, last_sequence: int) -> None:
    """Reads the rest."""
    async with Client.connect() as client:
        async with client.watch_turn(turn_id, after_sequence=last_sequence) as turn:
            async for event in turn:
                print(f"event {event.sequence}: {event.WhichOneof('payload')}")
        print("the whole answer:", (await client.get_turn(turn_id)).output.parts[0].text)


async def main() -> None:
    """Does both."""
    await go_on(*await begin())


if __name__ == "__main__":
    asyncio.run(main())
