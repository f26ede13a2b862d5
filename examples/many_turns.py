"""Asks many questions at once, each in a session of its own, at most so many at a time.

    python examples/many_turns.py

One client and one connection serve them all. A turn that fails does not disturb the others.
"""

import asyncio

from turnwire.agent.v1 import turn_pb2
from turnwire.client import Client
from turnwire.errors import TurnwireError, from_failure

AT_ONCE = 8
QUESTIONS = [f"What is {number} times {number}?" for number in range(1, 21)]


async def ask(client: Client, question: str, places: asyncio.Semaphore) -> str:
    """Returns the answer to a question."""
    async with places:
        session = await client.create_session("assistant")
        turn = await client.run_turn(session.session_id, question).result()
    if turn.status == turn_pb2.TURN_STATUS_FAILED:
        raise from_failure(turn.failure)
    return turn.output.parts[0].text


async def main() -> None:
    """Asks them all and prints the answers in the order of the questions."""
    places = asyncio.Semaphore(AT_ONCE)
    async with Client.connect() as client:
        answers = await asyncio.gather(
            *(ask(client, question, places) for question in QUESTIONS), return_exceptions=True
        )
    for question, answer in zip(QUESTIONS, answers, strict=True):
        if isinstance(answer, BaseException) and not isinstance(answer, TurnwireError):
            raise answer
        print(f"{question} {answer}")


if __name__ == "__main__":
    asyncio.run(main())
