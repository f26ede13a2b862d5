"""The end of a turn: its answer with what it rests on and what its tools made, or a shield's refusal."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from turnwire.agent.log.writer import draft
from turnwire.agent.turn.steps import retrieved
from turnwire.agent.v1 import event_pb2, step_pb2
from turnwire.common.v1 import message_pb2
from turnwire.fold import fill_output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.agent.v1 import turn_pb2
    from turnwire.common.v1 import retrieval_pb2, shield_pb2

_MARK = re.compile(r"\[(\d{1,3})\]")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


def answered(turn: turn_pb2.Turn, step: step_pb2.Step, reason: message_pb2.StopReason.ValueType) -> event_pb2.StepEvent:
    """Returns the event that ends a turn with the text of a step."""
    output = message_pb2.Message(role=message_pb2.ROLE_ASSISTANT, stop_reason=reason)
    output.tool_calls.extend(step.inference.tool_calls)
    output.attachments.extend(_made(turn))
    output.citations.extend(
        citations(step.inference.text, [chunk for each in retrieved(turn) for chunk in each.chunks])
    )
    fill_output(output, step)
    return _completed(turn, output, step.step_id)


def refused(turn: turn_pb2.Turn, verdict: shield_pb2.ShieldVerdict) -> event_pb2.StepEvent:
    """Returns the event that ends a turn with what a shield tells the user instead of an answer."""
    part = message_pb2.ContentPart(
        text=verdict.user_message, provenance=message_pb2.PROVENANCE_SYSTEM, source=verdict.shield_id
    )
    output = message_pb2.Message(
        role=message_pb2.ROLE_ASSISTANT, stop_reason=message_pb2.STOP_REASON_SHIELD, parts=[part]
    )
    return _completed(turn, output, "")


def citations(text: str, chunks: Sequence[retrieval_pb2.RetrievedChunk]) -> list[message_pb2.Citation]:
    """Returns what an answer rests on.

    A mark `[n]` cites the n-th excerpt for the sentence it ends. An answer without any mark rests, as a whole, on all
    excerpts that its model was given, each document once.
    """
    marked = [
        _citation(chunks[number - 1], *_span(text, mark.start()))
        for mark in _MARK.finditer(text)
        if 1 <= (number := int(mark[1])) <= len(chunks)
    ]
    if marked:
        return marked
    documents: dict[tuple[str, str], message_pb2.Citation] = {}
    for chunk in chunks:
        documents.setdefault((chunk.bank_id, chunk.document_id), _citation(chunk, 0, 0))
    return list(documents.values())


def _citation(chunk: retrieval_pb2.RetrievedChunk, start: int, end: int) -> message_pb2.Citation:
    return message_pb2.Citation(
        bank_id=chunk.bank_id,
        document_id=chunk.document_id,
        title=chunk.title,
        chunk_id=chunk.chunk_id,
        page=chunk.page,
        heading=chunk.heading,
        start_byte=start,
        end_byte=end,
        uri=chunk.uri,
    )


def _span(text: str, mark: int) -> tuple[int, int]:
    """Returns the sentence that a mark ends, in UTF-8 bytes."""
    before = text[:mark].rstrip()
    start = max((match.end() for match in _SENTENCE.finditer(before)), default=0)
    return len(text[:start].encode()), len(before.encode())


def _made(turn: turn_pb2.Turn) -> list[message_pb2.Attachment]:
    """Returns the files that the turn's tools made, in the order of the calls."""
    return [
        attachment
        for step in turn.steps
        for execution in step.tool_execution.executions
        for attachment in execution.result.attachments
    ]


def _completed(turn: turn_pb2.Turn, output: message_pb2.Message, output_step_id: str) -> event_pb2.StepEvent:
    completed = event_pb2.TurnCompleted(
        output=output,
        usage=turn.usage,
        step_ids=[each.step_id for each in turn.steps],
        output_step_id=output_step_id,
    )
    return draft(turn.turn_id, "turn_completed", completed)
