"""`turnwire turns export`, `import` and `replay` against a mesh of processes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.cli.conftest import Mesh


def _turn(mesh: Mesh) -> str:
    asked = mesh.turnwire("ask", "hello")
    assert 0 == asked.code, asked
    return mesh.ask("list_turns").turns[-1].turn_id


def test_a_turn_goes_out_as_lines_and_comes_in_again(mesh: Mesh):
    turn_id = _turn(mesh)
    file = mesh.folder / "turn.jsonl"
    assert 0 == mesh.turnwire("turns", "export", turn_id, "-o", str(file)).code
    session = mesh.ask("create_session").session_id
    imported = mesh.turnwire("turns", "import", str(file), "--session", session, "--turn-id", "turn_copy")
    taken = mesh.turnwire("turns", "import", str(file), "--session", session)

    kinds = [next(iter(json.loads(line))) for line in file.read_text().splitlines()]
    assert ("header", "end") == (kinds[0], kinds[-1])
    assert (0, "turn_copy\n") == (imported.code, imported.out)
    assert "Hi there, friend." == mesh.ask("get_turn", "turn_copy").output.parts[0].text
    assert (1, True) == (taken.code, "already" in taken.err)


def test_several_turns_go_into_one_file_and_are_replayed_one_by_one(mesh: Mesh):
    first, second = _turn(mesh), _turn(mesh)
    exported = mesh.turnwire("turns", "export", first, second)
    file = mesh.folder / "two.jsonl"
    file.write_text(exported.out)
    replayed = mesh.turnwire("turns", "replay", str(file))
    by_id = mesh.turnwire("turns", "replay", first)

    assert [first, second] == [line.partition(":")[0] for line in replayed.out.splitlines()]
    assert (0, 0) == (replayed.code, by_id.code)
    assert replayed.out.splitlines()[0] == by_id.out.strip()


def test_a_file_that_cannot_be_taken_says_why(mesh: Mesh):
    file = mesh.folder / "bad.jsonl"
    good = mesh.turnwire("turns", "export", _turn(mesh)).out
    session = mesh.ask("create_session").session_id
    for text, told in (
        ("", "has no records"),
        ("no json\n", "line 1 is no record"),
        (good.replace("Hi there", "Ho there"), "were altered"),
        ("\n".join(good.splitlines()[:-1]), "the export was cut"),
    ):
        file.write_text(text)
        for arguments in (("import", str(file), "--session", session), ("replay", str(file))):
            done = mesh.turnwire("turns", *arguments)
            assert (1, True) == (done.code, told in done.err), done
    missing = mesh.turnwire("turns", "replay", "./none.jsonl")

    assert (2, True) == (missing.code, "there is no file" in missing.err)
    assert not mesh.ask("list_turns", session_id=session).turns
