"""Each boundary of a turn has failpoints, and each failpoint stands at a boundary.

The boundaries are found in what defines them: the events, the states of executions, the points of shields, the
statements and commits of the stores, the calls between services and the RPCs. Who adds one of these without a failpoint
is told here. How a failpoint works is tested in `tests/runtime/test_failpoints.py`.
"""

from __future__ import annotations

import ast

import pytest

from tests.faults import source
from turnwire.agent.v1 import agent_service_pb2, event_pb2
from turnwire.common.v1 import shield_pb2
from turnwire.fold import TERMINAL_PAYLOADS
from turnwire.runtime.failpoints import declared, of_method
from turnwire.tool_executor.v1 import execution_pb2

STATES = [each.name for each in execution_pb2.ExecutionState.DESCRIPTOR.values]
POINTS = [each.name for each in shield_pb2.ShieldPoint.DESCRIPTOR.values]
UNWRITTEN = {"turn_steered": "TurnSteered", "compaction": "CompactionPlan", "sub_agent": "SubAgentPlan"}
"""Events and steps that no code writes, and the messages that would: whoever builds one is told."""
NEVER_COMMITTED = {
    "step_delta": "deltas are stored with the boundary event that comes after them",
    "heartbeat": "nothing happened, and nothing is stored",
}
NO_TURN = {
    "agent/agents.py": "agents are made and changed by people",
    "agent/sessions.py": "sessions are made, changed and erased beside their turns",
    "agent/transfer.py": "a turn that is imported has ended",
    "agent/turns.py": "labels are no part of what happened, and what is deleted has ended",
    "inference/registry.py": "models are registered by people",
    "safety/registry.py": "shields are registered by people",
    "tool_executor/registry.py": "tools are registered by people",
    "memory/project_docs.py": "the bank of the documentation is filled when the service starts",
    "memory/sweep.py": "banks that were removed",
    "memory/registry.py Banks.remove": "banks are removed by people, or with their session",
    "memory/registry.py Banks.drop_index": "banks are removed by people, or with their session",
    "memory/insertion.py Insertion.delete": "documents are removed by people",
    "agent/live/upkeep.py Upkeep.sweep": "request ids, tombstones and leases that are too old to count",
    "tool_executor/journal.py Journal.forget": "outcomes that are too old to be asked for",
    "tool_executor/artifacts/artifacts.py Artifacts.delete": "files are removed by people",
    "tool_executor/artifacts/artifacts.py Artifacts._is_used": "reads, behind what the writer has queued",
}
"""Commits that no turn waits for, by module, or by module and function."""
LOOK_UPS = ("Get", "List", "Download")
"""Calls that change nothing: a fault in one is a fault before what is done next."""
NOT_SERVED_TO_TURNS = {
    "agent.UpdateTurn": "labels are no part of what happened",
    "agent.DeleteTurn": "what is deleted has ended",
    "agent.ExportTurn": "reads what is stored",
    "agent.ForkSession": "what is forked has ended",
    "agent.ImportTurn": "a turn that is imported has ended",
    "agent.SteerTurn": "refused with UNIMPLEMENTED",
    "inference.Completion": "no turn completes a text",
    "inference.CountTokens": "changes nothing",
    "memory.DeleteDocument": "documents are removed by people",
    "memory.UnregisterMemoryBank": "a session's bank goes with the session, after its turns",
    "safety.ScreenStream": "refused with UNIMPLEMENTED",
    "sandbox_runner.CloseSandbox": "sandboxes end by themselves",
}
WORK_OF_TURNS = ("InferenceService", "SafetyService", "MemoryService", "ToolExecutorService", "SandboxRunnerService")
"""All methods of these do something for a turn, and those of the owners of turns."""
ISSUE = {
    "accepted": ("agent.accepted", "agent.turn_started.after"),
    "each shield": ("agent.shields.input.before", "safety.RunShields.received", "safety.verdict.before"),
    "retrieval": ("agent.search.before", "memory.Query.received", "memory.Query.ended"),
    "request to the model": ("agent.model_asked", "inference.ChatCompletion.received"),
    "first token": ("agent.first_token", "inference.first_chunk"),
    "between deltas": ("agent.between_deltas", "inference.ChatCompletion.between"),
    "tool prepared": ("tool_executor.prepared.before", "tool_executor.prepared.after"),
    "tool dispatched": ("tool_executor.dispatched.before", "tool_executor.dispatched.after"),
    "tool outcome": ("tool_executor.succeeded.before", "tool_executor.succeeded.after", "agent.tool_answered"),
    "output shield": ("agent.shields.output.before", "agent.shields.output.after"),
    "inbox": ("agent.inbox_added", "agent.inbox_taken", "agent.inbox_removed.before"),
    "lease renewal": ("agent.lease_renewed.before", "agent.lease_renewed.after", "tool_executor.lease_held.before"),
    "runner": ("sandbox_runner.RunCode.received", "sandbox_runner.cell_begun", "sandbox_runner.cell_ended"),
    "memory": ("memory.InsertDocuments.received", "memory.chunks_stored.before", "memory.chunks_stored.after"),
    "terminal": tuple(f"agent.{kind}.{when}" for kind in sorted(TERMINAL_PAYLOADS) for when in ("before", "after")),
}
"""What the first bar of the work names, and where it is."""


def names() -> set[str]:
    """All failpoints of the services."""
    source.modules()
    return {name for name in declared() if not name.startswith("test.")}


def around(name: str) -> set[str]:
    """The two of a boundary."""
    return {f"{name}.before", f"{name}.after"}


def test_each_event_that_is_committed_has_failpoints_by_its_kind():
    expected: set[str] = set()
    for kind in event_pb2.StepEvent.DESCRIPTOR.oneofs_by_name["payload"].fields:
        if kind.name in NEVER_COMMITTED or kind.name in UNWRITTEN:
            continue
        assert kind.message_type is not None
        types = kind.message_type.oneofs if kind.name in {"step_started", "step_completed"} else ()
        if not types:
            expected |= around(f"agent.{kind.name}")
        for each in types:
            for step in each.fields:
                expected |= around(f"agent.{kind.name}.{step.name}") if step.name not in UNWRITTEN else set()
    assert set() == expected - names()


def test_nothing_writes_the_events_and_steps_without_failpoints():
    built = {
        node.attr
        for path, module in source.modules().items()
        if path.startswith("agent/") and not path.startswith(("agent/replay.py", "agent/transfer.py"))
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr in UNWRITTEN.values()
    }
    assert set() == built


def test_each_state_of_an_execution_has_failpoints():
    states = [name.removeprefix("EXECUTION_STATE_").lower() for name in STATES]
    expected = {name for state in states if state != "unspecified" for name in around(f"tool_executor.{state}")}
    assert set() == expected - names()


def test_each_point_where_the_agent_runs_shields_has_failpoints():
    used = {
        node.attr
        for path, module in source.modules().items()
        if path.startswith("agent/turn/")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr in POINTS
    }
    points = [name.removeprefix("SHIELD_POINT_").lower() for name in used - {"SHIELD_POINT_UNSPECIFIED"}]
    assert len(points) >= 4
    assert set() == {name for point in points for name in around(f"agent.shields.{point}")} - names()


def test_each_commit_of_a_turn_has_a_failpoint_before_it_and_one_after_it():
    bare = _bare_commits(source.modules())
    assert [] == [each for each in bare if not _is_of_no_turn(each)]


def test_each_commit_that_needs_no_failpoint_is_there():
    bare = _bare_commits(source.modules())
    assert set() == {known for known in NO_TURN if not any(f"{each} ".startswith(f"{known} ") for each in bare)}


def test_statements_of_turns_are_carried_out_at_boundaries_only():
    writes = {
        f"{module.path.split('/')[0]}.{module.path.rsplit('/', 1)[-1].removesuffix('.py')}.{function.name}"
        for module in source.modules().values()
        if module.path in TABLES_OF_TURNS
        for function in module.tree.body
        if isinstance(function, ast.AsyncFunctionDef) and ".execute(" in ast.unparse(function)
    }
    assert len(writes) > 20
    found: set[str] = set()
    beside: set[str] = set()
    for module in source.modules().values():
        aliases = _tables_in(module)
        for place in module.places:
            match place.node:
                case ast.Attribute(value=ast.Name(id=alias), attr=function) if alias in aliases:
                    name = f"{aliases[alias]}.{function}"
                    if name in writes:
                        found.add(name)
                        if not any(module.guarded(commit) for commit in module.commits):
                            beside.add(f"{module.path} {name}")
                case _:
                    pass
    assert set() == writes - found, "a statement that nobody uses, or that this test does not see"
    assert BESIDE_TURNS.keys() == {each for each in beside if each.split()[0] not in BY_THE_COMMIT_OF_ANOTHER}


TABLES_OF_TURNS = frozenset(
    {f"agent/store/{name}.py" for name in ("events", "inbox", "leases", "ownership", "turns")}
    | {f"tool_executor/store/{name}.py" for name in ("executions", "executors", "workspaces")}
)
BY_THE_COMMIT_OF_ANOTHER = {
    "agent/live/session_queue.py": "the next turn begins with the commit that ends the one before it",
    "tool_executor/workspaces.py": "a snapshot is noted with the outcome that left it",
}
BESIDE_TURNS = {
    "agent/sessions.py agent.turns.delete": "with their session",
    "agent/turns.py agent.turns.delete": "it has ended",
    "agent/turns.py agent.turns.set_metadata": "labels are no part of what happened",
    "agent/transfer.py agent.turns.insert": "a turn that is imported has ended",
    "agent/transfer.py agent.events.pin_config": "a turn that is imported has ended",
}
"""Where else statements of turns are used, and why no fault has to come before or after."""


def test_each_call_of_another_service_has_a_failpoint_where_it_is_made():
    bare: list[str] = []
    for module in source.modules().values():
        for method, place in module.calls(_called()):
            functions = [each.function for each in module.hits]
            if place.function not in functions:
                bare.append(f"{module.path} {place.name} {method}")
    assert [] == bare


def test_each_method_that_a_turn_uses_has_failpoints_where_it_is_served():
    expected = {name for name in _served_to_turns() if name not in NOT_SERVED_TO_TURNS}
    assert len(expected) >= 15
    without = {method for full, method in source.methods().items() if method in expected and of_method(full) is None}
    assert set() == without


def test_methods_that_need_no_failpoints_have_none_and_are_there():
    assert set() == NOT_SERVED_TO_TURNS.keys() - set(source.methods().values())
    assert (
        set() == {method for full, method in source.methods().items() if of_method(full)} & NOT_SERVED_TO_TURNS.keys()
    )


@pytest.mark.parametrize("boundary", ISSUE)
def test_what_the_promise_names_is_there(boundary: str):
    assert set() == set(ISSUE[boundary]) - names()


# Each one is a boundary


def test_all_failpoints_are_constants_of_their_modules_or_stand_for_methods():
    held = {
        name
        for module in source.modules().values()
        for constant in module.constants
        for name in module.names_of(constant)
    }
    for full in source.methods():
        points = of_method(full)
        if points is not None:
            each = (points.received, points.first, points.between, points.ended)
            held |= {point.name for point in each if point is not None}
    assert names() == held


def test_each_constant_is_reached_in_its_module():
    unreached = {
        f"{module.path} {constant}"
        for module in source.modules().values()
        for constant in module.constants
        if constant not in {root for hit in module.hits for root in module.roots(hit)}
    }
    assert set() == unreached


def test_nothing_is_reached_that_is_no_constant():
    for module in source.modules().values():
        for place in module.places:
            if source.is_hit(place.node):
                assert module.roots(place), f"{module.path}:{getattr(place.node, 'lineno', 0)}"


def test_a_module_with_failpoints_has_a_boundary():
    for module in source.modules().values():
        if module.constants and module.path not in WORK:
            commits = [commit for commit in module.commits if module.guarded(commit)]
            calls = module.calls(_called())
            assert commits or calls, f"{module.path} has failpoints, and neither a commit nor a call"


WORK = {
    "agent/log/boundaries.py": "holds those of the writer's commits",
    "agent/live/takeover.py": "a turn is claimed, and about to be run here",
    "inference/service.py": "the first piece of a model",
    "sandbox_runner/sandboxes.py": "code begins and ends",
    "safety/running.py": "a shield judges",
    "tool_executor/executions.py": "a tool has answered, and its outcome is not written",
}
"""Modules whose failpoints are at work that is neither a commit nor a call of another service."""


def test_failpoints_are_reached_on_the_loop_of_their_service_only():
    """Units of work are coroutines too; SQLite drives them in a thread, where a hold would stop all others."""
    for module in source.modules().values():
        for hit in module.hits:
            for function in (each for each in hit.around if isinstance(each, source.Function)):
                parameters = {argument.arg for argument in function.args.args}
                assert "tx" not in parameters, f"{module.path}:{getattr(hit.node, 'lineno', 0)}"


def test_nothing_but_an_if_is_paid_for_a_failpoint_between_the_pieces_of_a_stream():
    for module in source.modules().values():
        for hit in module.hits:
            inner = hit.around[
                max((n for n, each in enumerate(hit.around) if isinstance(each, ast.AsyncFor)), default=-1) :
            ]
            if isinstance(inner[0], ast.AsyncFor):
                conditional = any(isinstance(each, ast.If | ast.match_case) for each in inner)
                assert conditional, f"{module.path}:{getattr(hit.node, 'lineno', 0)}"


def _bare_commits(modules: dict[str, source.Module]) -> list[str]:
    return [
        f"{module.path} {commit.name}"
        for module in modules.values()
        for commit in module.commits
        if not module.guarded(commit)
    ]


def _is_of_no_turn(commit: str) -> bool:
    return any(f"{commit} ".startswith(f"{known} ") for known in NO_TURN)


def _called() -> set[str]:
    """The methods that services call on each other, and that do something."""
    return {
        method
        for name in source.methods().values()
        if not (method := name.split(".")[1]).startswith(LOOK_UPS) and name not in NOT_SERVED_TO_TURNS
    }


def _served_to_turns() -> set[str]:
    """The methods that do something for a turn: where they are called, or by what they are asked."""
    called = {
        method
        for module in source.modules().values()
        for method, _ in module.calls({name.split(".")[1] for name in source.methods().values()})
    }
    owners = agent_service_pb2.DESCRIPTOR.services_by_name["AgentService"]
    of_turns = {each.name for each in owners.methods if "turn_id" in each.input_type.fields_by_name}
    found: set[str] = set()
    for full, name in source.methods().items():
        service, method = full.split("/")
        working = service.endswith((*WORK_OF_TURNS, "TurnOwnerService")) or method in called
        if (working or (service.endswith(".AgentService") and method in of_turns)) and not method.startswith(LOOK_UPS):
            found.add(name)
    return found


def _tables_in(module: source.Module) -> dict[str, str]:
    """The modules of statements that a module imports, by the name it gives them."""
    found: dict[str, str] = {}
    for node in module.tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").endswith(".store"):
            service = (node.module or "").split(".")[1]
            found |= {each.asname or each.name: f"{service}.{each.name}" for each in node.names}
    return found
