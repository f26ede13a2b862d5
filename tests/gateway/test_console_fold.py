"""The fold of the console, in Node.js: what the page shows of a turn is what the service has of it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from google.protobuf import json_format

import turnwire_gateway
from tests.agent.turns import TURN, delta, inference_completed, numbered, started, step_started
from turnwire.agent.log.writer import draft
from turnwire.agent.v1 import event_pb2, step_pb2
from turnwire.common.v1 import message_pb2
from turnwire.fold import TurnFold

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLD = Path(turnwire_gateway.__file__).parent / "console" / "fold.js"
_READING = """
import { readFileSync } from "node:fs";
import { Turn } from "./fold.mjs";
const turn = new Turn("turn_1");
for (const event of JSON.parse(readFileSync(0, "utf8"))) turn.take(event);
const calls = turn.steps.flatMap((step) => (step.type === "TOOL_EXECUTION" ? step.calls : []));
console.log(JSON.stringify(calls.map((call) => [call.callId, call.output.text])));
"""


def _shown(folder: Path, events: Sequence[event_pb2.StepEvent]) -> list[list[str]]:
    """The calls that the page has of some events: their ids, and what their tools have written."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js")
    shutil.copy(FOLD, folder / "fold.mjs")
    (folder / "reading.mjs").write_text(_READING)
    told = json.dumps([json_format.MessageToDict(event) for event in events])
    ran = subprocess.run([node, folder / "reading.mjs"], input=told, capture_output=True, text=True, check=False)
    assert 0 == ran.returncode, ran.stderr
    return json.loads(ran.stdout)


def _had(events: Sequence[event_pb2.StepEvent]) -> list[list[str]]:
    """The same as the service has it."""
    fold = TurnFold(TURN)
    for event in events:
        fold.apply(event)
    executions = [each for step in fold.turn.steps for each in step.tool_execution.executions]
    return [[each.call.call_id, each.output] for each in executions]


def test_what_tools_have_written_is_void_after_a_recovery_but_for_those_that_have_answered(tmp_path: Path):
    calls = [message_pb2.ToolCall(call_id=f"call_{n}", name="web_search", arguments_json="{}") for n in range(3)]
    plan = event_pb2.StepStarted(
        type=step_pb2.STEP_TYPE_TOOL_EXECUTION,
        iteration=1,
        tool_execution=event_pb2.ToolExecutionPlan(inference_step_id="s1", call_ids=[each.call_id for each in calls]),
    )

    def wrote(call: message_pb2.ToolCall, text: str) -> event_pb2.StepEvent:
        return delta("s2", 0, text, part=event_pb2.DELTA_PART_TOOL_OUTPUT, call_id=call.call_id)

    result = message_pb2.ToolResult(call_id=calls[0].call_id, name="web_search", content="42")
    events = numbered(
        started(),
        step_started("s1"),
        inference_completed("s1", *calls),
        draft(TURN, "step_started", plan, "s2"),
        *(wrote(call, "begun") for call in calls),
        draft(TURN, "tool_call_completed", event_pb2.ToolCallCompleted(result=result), "s2"),
        draft(TURN, "turn_recovered", event_pb2.TurnRecovered(epoch=2)),
        wrote(calls[1], "anew"),
    )

    assert ["begun", "anew", ""] == [output for _, output in _had(events)]
    assert _had(events) == _shown(tmp_path, events)
