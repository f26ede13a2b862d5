"""The commands for agents, sessions, turns, models, providers and settings: tables for people, JSON for programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.cli.command import turnwire
from turnwire.ids import new_id

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Mesh

pytestmark = pytest.mark.mesh


def _turn(mesh: Mesh, *arguments: str) -> str:
    turn_id = new_id("turn")
    assert mesh.turnwire("ask", *arguments, "--turn-id", turn_id).code in {0, 3}
    return turn_id


def _rows(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines()]


def _agent_file(mesh: Mesh, **config: Any) -> str:
    file = mesh.folder / f"{new_id('file')}.yaml"
    file.write_text(yaml.safe_dump({"model": "scripted", **config}), encoding="utf-8")
    return str(file)


def test_an_agent_from_its_making_to_its_end(mesh: Mesh):
    made = mesh.turnwire("agents", "create", "--from-file", _agent_file(mesh), "--name", "Ada", "--json").json()
    agent_id = made["agent_id"]
    assert ("Ada", "scripted", "1") == (made["name"], made["config"]["model"], made["version"])
    other = _agent_file(mesh, instructions="Be brief.")
    changed = mesh.turnwire("agents", "update", agent_id, "--from-file", other, "--json").json()
    assert ("2", "Be brief.") == (changed["version"], changed["config"]["instructions"])
    third = _agent_file(mesh, instructions="Be long.")
    assert f"{agent_id} version 3\n" == mesh.turnwire("agents", "update", agent_id, "--from-file", third).out
    first = mesh.turnwire("agents", "get", agent_id, "--version", "1", "--json").json()
    assert "instructions" not in first["config"]
    versions = mesh.turnwire("agents", "versions", agent_id, "--json").json()["agents"]
    assert ["3", "2", "1"] == [each["version"] for each in versions]
    assert ["3", "2", "1"] == [row[0] for row in _rows(mesh.turnwire("agents", "versions", agent_id).out)[1:]]
    assert [agent_id, "Ada", "3", "scripted"] in [row[:4] for row in _rows(mesh.turnwire("agents", "list").out)]
    listed = mesh.turnwire("agents", "list", "--json").json()["agents"]
    assert agent_id in [each["agent_id"] for each in listed]
    assert {} == mesh.turnwire("agents", "delete", agent_id, "--json").json()
    gone = mesh.turnwire("agents", "get", agent_id)
    assert 1 == gone.code
    assert f"There is no agent '{agent_id}'" in gone.err


def test_an_agent_is_shown_so_that_people_can_read_it(mesh: Mesh):
    shown = yaml.safe_load(mesh.turnwire("agents", "get", "assistant").out)
    assert shown == mesh.turnwire("agents", "get", "assistant", "--json").json()


def test_an_agent_with_sessions_is_deleted_by_force_only(mesh: Mesh):
    agent_id = mesh.turnwire("agents", "create", "--from-file", _agent_file(mesh)).out.strip()
    session_id = mesh.turnwire("sessions", "create", "--agent", agent_id).out.strip()
    refused = mesh.turnwire("agents", "delete", agent_id)
    assert 1 == refused.code
    assert "in use" in refused.err
    ended = mesh.turnwire("agents", "delete", agent_id, "--force")
    assert (0, "", "") == ended
    assert 1 == mesh.turnwire("sessions", "get", session_id).code


@pytest.mark.parametrize(
    "content", ["model: [", "mdel: scripted", "- 1", "\xff"], ids=["no YAML", "key", "list", "bytes"]
)
def test_a_wrong_file_of_an_agent_is_wrong_usage(mesh: Mesh, content: str):
    file = mesh.folder / "wrong.yaml"
    file.write_bytes(content.encode("latin-1"))
    ended = mesh.turnwire("agents", "create", "--from-file", str(file))
    assert (2, "") == (ended.code, ended.out)
    assert "is no AgentConfig" in ended.err


def test_a_session_from_its_beginning_to_its_end(mesh: Mesh):
    made = mesh.turnwire("sessions", "create", "--title", "Plans", "--json").json()
    session_id = made["session_id"]
    assert ("assistant", "Plans") == (made["agent_id"], made["title"])
    changed = mesh.turnwire("sessions", "update", session_id, "--title", "Other plans", "--json").json()
    assert "Other plans" == changed["title"]
    assert 2 == mesh.turnwire("sessions", "update", session_id).code
    assert 0 == mesh.turnwire("ask", "hello", "--session", session_id).code
    fork = mesh.turnwire("sessions", "fork", session_id, "--json").json()
    assert session_id == fork["forked_from"]["session_id"]
    listed = mesh.turnwire("sessions", "list", "--json").json()["sessions"]
    assert {session_id, fork["session_id"]} <= {each["session_id"] for each in listed}
    row = next(row for row in _rows(mesh.turnwire("sessions", "list").out) if row[0] == session_id)
    assert [session_id, "assistant", "1", "-"] == row[:4]
    assert "Other plans" == " ".join(row[-2:])
    assert "Other plans" == yaml.safe_load(mesh.turnwire("sessions", "get", session_id).out)["title"]
    assert "in use by its fork" in mesh.turnwire("sessions", "delete", session_id).err
    assert (0, "", "") == mesh.turnwire("sessions", "delete", fork["session_id"])
    assert {} == mesh.turnwire("sessions", "delete", session_id, "--json").json()
    assert 1 == mesh.turnwire("sessions", "get", session_id, "--json").code


def test_a_list_has_all_pages(mesh: Mesh):
    agent_id = mesh.turnwire("agents", "create", "--from-file", _agent_file(mesh)).out.strip()

    async def many() -> None:
        async with mesh.running.client() as client:
            for _ in range(201):  # a page holds 200 at most
                await client.create_session(agent_id)

    mesh.run(many())
    response = mesh.turnwire("sessions", "list", "--agent", agent_id, "--json").json()
    assert 201 == len({each["session_id"] for each in response["sessions"]})
    assert "next_page_token" not in response
    assert 202 == len(_rows(mesh.turnwire("sessions", "list", "--agent", agent_id).out))


def test_a_turn_is_shown_changed_and_deleted(mesh: Mesh):
    turn_id = _turn(mesh, "hello")
    turn = mesh.turnwire("turns", "get", turn_id, "--json").json()
    assert ("TURN_STATUS_COMPLETED", 1) == (turn["status"], len(turn["steps"]))
    assert turn == yaml.safe_load(mesh.turnwire("turns", "get", turn_id).out)
    listed = mesh.turnwire("turns", "list", "--session", turn["session_id"], "--json").json()["turns"]
    assert [turn_id] == [each["turn_id"] for each in listed]
    row = _rows(mesh.turnwire("turns", "list", "--session", turn["session_id"]).out)[1]
    assert ([turn_id, "1", "completed"], "hello") == (row[:3], row[-1])
    steps = mesh.turnwire("turns", "steps", turn_id, "--json").json()["steps"]
    assert turn["steps"] == steps
    row = _rows(mesh.turnwire("turns", "steps", turn_id).out)[1]
    assert [steps[0]["step_id"], "inference", "completed"] == row[:3]
    assert steps[0] == mesh.turnwire("turns", "steps", turn_id, steps[0]["step_id"], "--json").json()
    labelled = mesh.turnwire("turns", "update", turn_id, "--label", "for=a=b", "--json").json()
    assert {"for": "a=b"} == labelled["metadata"]
    assert 2 == mesh.turnwire("turns", "update", turn_id, "--label", "nothing").code
    assert {} == mesh.turnwire("turns", "delete", turn_id, "--json").json()
    gone = mesh.turnwire("turns", "get", turn_id)
    assert 1 == gone.code
    assert turn_id in gone.err


def test_a_turn_of_the_past_is_watched(mesh: Mesh):
    turn_id = _turn(mesh, "hello")
    lines = mesh.turnwire("turns", "watch", turn_id, "--json").out.splitlines()
    events = [json.loads(line) for line in lines]
    assert "turn_started" in events[0]
    assert "turn_completed" in events[-1]
    shown = mesh.turnwire("turns", "watch", turn_id)
    assert (0, "Hi there, friend.\n") == (shown.code, shown.out)
    after = mesh.turnwire("turns", "watch", turn_id, "--after", events[0]["sequence"], "--json").out.splitlines()
    assert lines[1:] == after
    # Its start is not seen, so no time is told that would be counted from there.
    late = mesh.turnwire("turns", "watch", turn_id, "--after", events[1]["sequence"])
    assert "tokens read" in late.err
    assert " s" not in late.err.replace("tokens", "")
    beyond = mesh.turnwire("turns", "watch", turn_id, "--after", "999999")
    assert 1 == beyond.code
    assert "999999" in beyond.err


def test_a_waiting_turn_is_answered_and_cancelled(mesh: Mesh, caller: str):
    turn_id = _turn(mesh, "weather", "--agent", caller)
    awaited = mesh.turnwire("turns", "get", turn_id, "--json").json()["awaited_input"]
    call_id = awaited["requests"][0]["call"]["call_id"]
    wrong = mesh.turnwire("turns", "submit", turn_id, "call_other", "sunny")
    assert 1 == wrong.code
    assert "call_other" in wrong.err
    taken = mesh.turnwire("turns", "submit", turn_id, call_id, "sunny", "--json").json()
    assert "TURN_STATUS_RUNNING" == taken["status"]
    other = _turn(mesh, "weather", "--agent", caller)
    waiting = mesh.turnwire("turns", "list", "--status", "awaiting_input", "--json").json()["turns"]
    assert [other] == [each["turn_id"] for each in waiting]
    assert [other] == [row[0] for row in _rows(mesh.turnwire("turns", "list", "--status", "awaiting_input").out)[1:]]
    cancelled = mesh.turnwire("turns", "cancel", other, "--json").json()
    assert "TURN_STATUS_CANCELLED" == cancelled["status"]
    told = mesh.turnwire("turns", "cancel", other)
    assert ("cancelled\n", f"  {cancelled['calls'][0]['call_id']} fenced\n") == (told.out, told.err)
    assert "get_weather may run on; its result is no longer taken" in mesh.turnwire("turns", "watch", other).err
    assert {} == mesh.turnwire("turns", "list", "--status", "awaiting_input", "--json").json()
    late = mesh.turnwire("turns", "submit", other, call_id, "sunny")
    assert 1 == late.code
    assert "has ended (TURN_STATUS_CANCELLED)" in late.err


def test_a_turn_is_cancelled_before_it_comes(mesh: Mesh):
    turn_id = new_id("turn")
    unknown = mesh.turnwire("turns", "cancel", turn_id)
    assert (1, True) == (unknown.code, f"There is no turn '{turn_id}'" in unknown.err)
    early = mesh.turnwire("turns", "cancel", turn_id, "--allow-missing")
    assert (0, "cancelled\n", "") == early
    late = mesh.turnwire("ask", "hello", "--turn-id", turn_id)
    assert (1, "") == (late.code, late.out)
    assert "was cancelled before it arrived" in late.err


def test_a_model_is_registered_and_unregistered(mesh: Mesh):
    made = mesh.turnwire("models", "register", "mine", "--provider-model", "scripted", "--json").json()
    assert ("mine", "scripted") == (made["model_id"], made["provider_model_id"])
    assert made == mesh.turnwire("models", "get", "mine", "--json").json()
    assert "mine" == yaml.safe_load(mesh.turnwire("models", "get", "mine").out)["model_id"]
    listed = mesh.turnwire("models", "list", "--json").json()["models"]
    assert ["scripted", "mine"] == [each["model_id"] for each in listed]
    assert ["mine", "scripted", "chat"] in [row[:3] for row in _rows(mesh.turnwire("models", "list").out)]
    assert "Hi there, friend.\n" == mesh.turnwire("ask", "hello", "--model", "mine").out
    assert {} == mesh.turnwire("models", "unregister", "mine", "--json").json()
    gone = mesh.turnwire("models", "unregister", "mine")
    assert 1 == gone.code
    assert "There is no model 'mine'. There are: scripted." in gone.err


def test_providers_are_listed(mesh: Mesh):
    listed = mesh.turnwire("providers", "--json").json()["providers"]
    assert [("scripted", "STATE_READY")] == [(each["provider_id"], each["state"]) for each in listed]
    assert ["inference", "scripted", "inline::scripted", "ready", "scripted"] == _rows(mesh.turnwire("providers").out)[
        1
    ]
    away = mesh.turnwire("providers", "--service", "safety", env={"TURNWIRE_SAFETY_ADDRESS": "127.0.0.1:9"})
    assert 1 == away.code
    assert "The safety service" in away.err


def test_status_tells_what_is_up_and_what_is_not(mesh: Mesh):
    missing = {f"TURNWIRE_{name}_ADDRESS": "127.0.0.1:9" for name in ("SAFETY", "MEMORY", "TOOL_EXECUTOR")}
    ended = mesh.turnwire("status", "--json", env={**missing, "TURNWIRE_SANDBOX_RUNNER_ADDRESS": "127.0.0.1:9"})
    assert 1 == ended.code
    states = {each["service"]: each["state"] for each in json.loads(ended.out)["services"]}
    assert {"agent", "inference"} == {service for service, state in states.items() if state == "up"}
    assert {"down"} == {state for service, state in states.items() if service not in {"agent", "inference"}}


def test_the_weights_in_the_cache_are_told_as_json(tmp_path: Path):
    # An unknown name is refused before anything is fetched.
    ended = turnwire("models", "pull", "nothing", "--json", cwd=tmp_path)
    assert (1, "") == (ended.code, ended.out)
    assert "no model is called 'nothing'; there is: " in ended.err


def test_the_schema_of_the_settings_is_printed(tmp_path: Path):
    schema = turnwire("config", "schema", cwd=tmp_path).json()
    assert {"listen", "providers", "store"} <= set(schema["properties"])


def test_a_settings_file_is_checked(tmp_path: Path):
    file = tmp_path / "turnwire.yaml"
    file.write_text("listen:\n  port_ofset: 3\n", encoding="utf-8")
    wrong = turnwire("config", "check", cwd=tmp_path)
    assert (1, "") == (wrong.code, wrong.out)
    assert "turnwire.yaml, line 2: listen.port_ofset: is no setting; did you mean 'port_offset'?" in wrong.err
    file.write_text(
        'providers:\n  inference:\n    - {provider_id: a, provider_type: "inline::scripted", config: {ruls: []}}\n',
        encoding="utf-8",
    )
    wrong = turnwire("config", "check", cwd=tmp_path)
    assert 1 == wrong.code
    assert "turnwire.yaml, line 3: providers.inference[0].config.ruls" in wrong.err
    file.write_text("listen: {port_offset: 3}\n", encoding="utf-8")
    assert (0, "turnwire.yaml is good\n", "") == turnwire("config", "check", cwd=tmp_path)


def test_secrets_are_not_shown(tmp_path: Path):
    file = tmp_path / "turnwire.yaml"
    file.write_text(
        """
access: {mesh_secret: mesh-hush-1, api_keys: [{name: ada, key: "key-hush-2-key-hush-2"}]}
store: {url: "postgresql://ada:store-hush-3@db/turnwire"}
providers:
  inference:
    - provider_id: gpu
      provider_type: "remote::openai"
      config: {base_url: "http://u:url-hush-4@gpu/v1", api_key: key-hush-5}
""",
        encoding="utf-8",
    )
    shown = turnwire("config", "show", cwd=tmp_path)
    assert "hush" not in shown.out
    assert "postgresql://ada:***@db/turnwire" == shown.json()["store"]["url"]
    assert "ada" == shown.json()["access"]["api_keys"][0]["name"]


@pytest.mark.parametrize(
    "command", ["", "ask", "chat", "up", "down", "status", "doctor", "agents", "turns", "models pull"]
)
def test_help_tells_the_exit_codes_or_the_options(tmp_path: Path, command: str):
    ended = turnwire(*command.split(), "--help", cwd=tmp_path)
    assert 0 == ended.code
    told = "Exit codes: 0" if command in {"", "ask", "chat", "up", "status", "doctor"} else "Options:"
    assert told in " ".join(ended.out.split())
