"""Turns as a model reads them: messages in order, each tool call followed by its one result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnwire.agent.turn.steps import retrieved
from turnwire.agent.v1 import step_pb2, turn_pb2
from turnwire.common.v1 import message_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from turnwire.common.v1 import retrieval_pb2

_BEFORE_EXCERPTS = "Excerpts from documents:"
_AFTER_EXCERPTS = "Where they answer the question, answer from them in words and name them as [1]."


def instructions(text: str) -> list[message_pb2.Message]:
    """Returns the agent's instructions as the first message; none when there are none."""
    if not text:
        return []
    part = message_pb2.ContentPart(text=text, provenance=message_pb2.PROVENANCE_SYSTEM)
    return [message_pb2.Message(role=message_pb2.ROLE_SYSTEM, parts=[part])]


def past_messages(turn: turn_pb2.Turn) -> list[message_pb2.Message]:
    """Returns what later turns read of an ended one.

    A failed turn leaves nothing: its caller says it again. A cancelled one leaves what was said, and the text that
    its user has seen. What a shield blocked is in no event; where that was the input, the whole turn is left out.
    What was retrieved for a turn is left out: later turns look things up for themselves.
    """
    said = [_with_notes(message, files_go_to_interpreter=False) for message in turn.input]
    if not said or turn.status not in {turn_pb2.TURN_STATUS_COMPLETED, turn_pb2.TURN_STATUS_CANCELLED}:
        return []
    messages = [*said, *_iterations(turn, with_cut_text=turn.status == turn_pb2.TURN_STATUS_CANCELLED)]
    if turn.output.stop_reason == message_pb2.STOP_REASON_SHIELD:
        messages.append(message_pb2.Message(role=message_pb2.ROLE_ASSISTANT, parts=turn.output.parts))
    return messages


def present_messages(turn: turn_pb2.Turn, *, files_go_to_interpreter: bool = False) -> list[message_pb2.Message]:
    """Returns what the next inference of a running turn reads of it.

    What was retrieved stands in its last message of the user, marked as such, before what the user said: small models
    answer what they read last.
    """
    said = [_with_notes(message, files_go_to_interpreter=files_go_to_interpreter) for message in turn.input]
    text = excerpts([chunk for each in retrieved(turn) for chunk in each.chunks])
    if text and said:
        framed = f"{_BEFORE_EXCERPTS}\n\n{text}\n\n{_AFTER_EXCERPTS}\n\n"
        part = message_pb2.ContentPart(text=framed, provenance=message_pb2.PROVENANCE_RETRIEVED)
        own = list(said[-1].parts)
        del said[-1].parts[:]
        said[-1].parts.extend([part, *own])
    return [*said, *_iterations(turn, with_cut_text=False)]


def excerpts(chunks: Sequence[retrieval_pb2.RetrievedChunk]) -> str:
    """Returns retrieved chunks as a model reads them, numbered from 1."""
    return "\n\n".join(f"[{number}] {_place(chunk)}\n{chunk.text}" for number, chunk in enumerate(chunks, start=1))


def _place(chunk: retrieval_pb2.RetrievedChunk) -> str:
    page = f"page {chunk.page}" if chunk.page else ""
    return ", ".join(part for part in (chunk.title or chunk.document_id, chunk.heading, page) if part)


def _with_notes(message: message_pb2.Message, *, files_go_to_interpreter: bool) -> message_pb2.Message:
    """A message of the input, copied, with a line for each file that came with it."""
    noted = message_pb2.Message()
    noted.CopyFrom(message)
    del noted.attachments[:]
    for attachment in message.attachments:
        name = attachment.name or attachment.url or "a file"
        where = "is in the working directory of code_interpreter" if files_go_to_interpreter else "came with this"
        noted.parts.add(text=f"\n[{name} {where}]", provenance=message_pb2.PROVENANCE_SYSTEM)
    return noted


def _iterations(turn: turn_pb2.Turn, *, with_cut_text: bool) -> Iterable[message_pb2.Message]:
    executions = {
        execution.call.call_id: execution
        for step in turn.steps
        if step.type == step_pb2.STEP_TYPE_TOOL_EXECUTION
        for execution in step.tool_execution.executions
    }
    for step in turn.steps:
        if step.type != step_pb2.STEP_TYPE_INFERENCE:
            continue
        if step.status != step_pb2.STEP_STATUS_COMPLETED:
            if with_cut_text and step.inference.text:
                yield _answer(step, [])
            continue
        # A call without a result (the turn reached its last iteration, or was cancelled) is not shown to a model:
        # every server refuses such a transcript.
        answered = [
            call
            for call in step.inference.tool_calls
            if call.call_id in executions and executions[call.call_id].HasField("result")
        ]
        blocked = step.inference.stop_reason == message_pb2.STOP_REASON_SHIELD
        if answered or step.inference.text or not (step.inference.tool_calls or blocked):
            yield _answer(step, answered)
        for call in answered:
            yield _result(call.call_id, _latest(call.call_id, executions))


def _answer(step: step_pb2.Step, calls: Sequence[message_pb2.ToolCall]) -> message_pb2.Message:
    message = message_pb2.Message(role=message_pb2.ROLE_ASSISTANT, stop_reason=step.inference.stop_reason)
    if step.inference.text:
        message.parts.add(text=step.inference.text, provenance=message_pb2.PROVENANCE_MODEL)
    message.tool_calls.extend(calls)
    return message


def _latest(call_id: str, executions: Mapping[str, step_pb2.ToolExecution]) -> message_pb2.ToolResult:
    """Returns what became of a call: the result of the last one that repeats it, where its outcome was lost."""
    result = executions[call_id].result
    again = {execution.call.retry_of: execution for execution in executions.values() if execution.call.retry_of}
    while (execution := again.get(call_id)) is not None and execution.HasField("result"):
        call_id, result = execution.call.call_id, execution.result
    return result


def _result(call_id: str, result: message_pb2.ToolResult) -> message_pb2.Message:
    text = result.content
    if result.HasField("failure"):
        text = f"{text}\nError: {result.failure.message}" if text else f"Error: {result.failure.message}"
    part = message_pb2.ContentPart(text=text, provenance=message_pb2.PROVENANCE_TOOL_RESULT, source=result.name)
    return message_pb2.Message(role=message_pb2.ROLE_TOOL, parts=[part], call_id=call_id)


def check(messages: Sequence[message_pb2.Message]) -> None:
    """Refuses a transcript in which a tool call has not exactly one result, right after it, in order.

    Raises:
        AssertionError: the transcript is not sound; that is a defect of Turnwire.
    """
    open_calls: list[str] = []
    for message in messages:
        if message.role == message_pb2.ROLE_TOOL:
            assert open_calls, f"the result of {message.call_id} answers no call"
            expected = open_calls.pop(0)
            assert expected == message.call_id, f"a result of {expected} was due, not of {message.call_id}"
            continue
        assert not open_calls, f"the call {open_calls[0]} has no result"
        open_calls = [call.call_id for call in message.tool_calls]
    assert not open_calls, f"the call {open_calls[0]} has no result"
