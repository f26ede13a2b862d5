"""Whether a turn was right: a fast wrong answer is no figure."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from turnwire.fold import SequenceGapError, TurnFold

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.agent.v1 import event_pb2, turn_pb2
    from turnwire.inference.v1 import inference_service_pb2

_PLAIN_TURN = ["turn_started", "step_started", "step_delta", "step_completed", "turn_completed"]


class BadTurn(Exception):
    """A turn or a stream was not what the script says: the bench has no result."""

    def __init__(self, turn_id: str, what: str) -> None:
        """Names the turn, and what is wrong with it."""
        super().__init__(f"{turn_id or 'a turn without an id'}: {what}")


def check_turn(events: Sequence[event_pb2.StepEvent], expected: str, tokens: int) -> turn_pb2.Turn:
    """Returns the turn that the events fold to.

    Raises:
        BadTurn: a number is missing or comes twice, an event is out of order, or the text is another.
    """
    told = [event for event in events if event.WhichOneof("payload") != "heartbeat"]
    turn_id = told[0].turn_id if told else ""
    kinds = [kind for kind, _ in groupby(event.WhichOneof("payload") for event in told)]
    if kinds != _PLAIN_TURN:
        raise BadTurn(turn_id, f"its events are {kinds}, not {_PLAIN_TURN}")
    if {turn_id} != {event.turn_id for event in told}:
        raise BadTurn(turn_id, "it has events of another turn")
    steps = {event.step_id for event in told if event.step_id}
    if len(steps) != 1:
        raise BadTurn(turn_id, f"its one step has the ids {sorted(steps)}")
    fold = TurnFold(turn_id)
    for event in told:
        _check_place(turn_id, event, fold)
        try:
            fold.apply(event)
        except SequenceGapError as error:
            raise BadTurn(turn_id, str(error)) from None
    turn = fold.turn
    _check_text(turn_id, expected, "".join(part.text for part in turn.output.parts))
    if turn.usage.completion_tokens != tokens:
        raise BadTurn(turn_id, f"its usage is {turn.usage.completion_tokens} tokens, and {tokens} were written")
    return turn


def check_pieces(
    pieces: Sequence[inference_service_pb2.ChatCompletionResponse], label: str, expected: Sequence[str]
) -> None:
    """Does nothing when a stream of the inference contract holds these tokens and its end.

    Raises:
        BadTurn: it does not.
    """
    kinds = [kind for kind, _ in groupby(piece.WhichOneof("payload") for piece in pieces)]
    if [kind for kind in kinds if kind != "started"] != ["text", "completed"]:
        raise BadTurn(label, f"its pieces are {kinds}")
    check_words(label, expected, [piece.text.text for piece in pieces if piece.WhichOneof("payload") == "text"])


def check_words(label: str, expected: Sequence[str], words: Sequence[str]) -> None:
    """Does nothing when the tokens are those expected, one by one.

    Raises:
        BadTurn: they are others, or divided otherwise.
    """
    _check_text(label, "".join(expected), "".join(words))
    if len(expected) != len(words):
        raise BadTurn(label, f"{len(words)} messages for {len(expected)} tokens")


def _check_place(turn_id: str, event: event_pb2.StepEvent, fold: TurnFold) -> None:
    # The fold forgives what comes twice and mends offsets, as a client must; here both are faults.
    if event.first_sequence != fold.last_sequence + 1 or event.sequence < event.first_sequence:
        raise BadTurn(turn_id, f"after {fold.last_sequence} came an event of {event.first_sequence}..{event.sequence}")
    if event.WhichOneof("payload") == "step_delta":
        delta = event.step_delta
        length = fold.text_length(event.step_id, delta.part, delta.call_id)
        if delta.attempt != 1 or delta.offset != length:
            raise BadTurn(turn_id, f"a delta of attempt {delta.attempt} at {delta.offset}; the text has {length} bytes")


def _check_text(turn_id: str, expected: str, text: str) -> None:
    if expected != text:
        at = next((index for index, (one, other) in enumerate(zip(expected, text, strict=False)) if one != other), None)
        place = min(len(expected), len(text)) if at is None else at
        raise BadTurn(
            turn_id,
            f"its text differs from character {place} on: {text[place : place + 40]!r} came,"
            f" {expected[place : place + 40]!r} was expected",
        )
