"""Asks the ready-made agent one question and prints the answer as it is written.

turnwire up --detach
python examples/ask.py "What is gRPC?"
"""

import asyncio
import sys

from turnwire.agent.v1 import event_pb2
from turnwire.client import Client


async def main(question: str) -> None:
    """Runs one turn."""
    async with Client.connect() as client:
        session = await client.create_session("assistant")
        async with client.run_turn(session.session_id, question) as turn:
            async for event in turn:
                if event.step_delta.part == event_pb2.DELTA_PART_ANSWER:
                    print(event.step_delta.text, end="", flush=True)
        print(f"\n[{turn.turn.usage.completion_tokens} tokens]")


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "What is gRPC?"))
