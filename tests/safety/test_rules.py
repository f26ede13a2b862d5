"""`inline::rules`: patterns and words, on what a reader sees, with exact places."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.safety.calling import ERROR, INFO, content, found
from turnwire.safety.shields.inline import judged
from turnwire.safety.shields.rules import Rule, RulesScreen, RulesSettings
from turnwire.safety.text.patterns import Stop, Stopped


def _screen(*rules: dict[str, Any]) -> RulesScreen:
    return RulesScreen(RulesSettings.model_validate({"rules": rules}))


def test_a_pattern_is_found_as_often_as_it_stands_there():
    screen = _screen({"category": "ticket", "patterns": [r"\bTCK-\d{3}\b"]})

    assert [("ticket", "TCK-123"), ("ticket", "tck-456")] == found(screen, "See TCK-123, tck-456 and TCK-7890.")


def test_the_exact_form_reads_the_very_characters():
    screen = _screen({"category": "ticket", "patterns": ["TCK"], "form": "exact"})

    assert [("ticket", "TCK")] == found(screen, "TCK tck ＴＣＫ")


@pytest.mark.parametrize(
    "written",
    ["bluebird", "BlueBird", "ｂｌｕｅｂｉｒｄ", "blue\u200bbird", "blüebird", "bluеbird", "𝓫𝓵𝓾𝓮𝓫𝓲𝓻𝓭"],
)
def test_a_word_is_found_however_it_is_written(written: str):
    screen = _screen({"category": "project", "words": ["Bluebird"]})

    assert [("project", written)] == found(screen, f"¿The «{written}» plan?")


def test_words_are_whole_in_every_script():
    screen = _screen({"category": "w", "words": ["кот", "über", "cat"]})

    assert [("w", "Кот"), ("w", "ÜBER"), ("w", "cat")] == found(screen, "Кот, который; ÜBER überall: cat concat cats")


def test_within_other_words_only_when_asked():
    screen = _screen({"category": "w", "words": ["禁止"], "whole_words": False})

    assert [("w", "禁止")] == found(screen, "これは禁止されている")
    assert [] == found(_screen({"category": "w", "words": ["禁止"]}), "これは禁止されている")


def test_neighbouring_words_share_what_is_between_them():
    screen = _screen({"category": "w", "words": ["no"]})

    assert [("w", "no")] * 3 == found(screen, "no no,no")


def test_a_phrase_bridges_any_white_space_and_the_longer_one_is_found():
    screen = _screen({"category": "w", "words": ["blue", "blue bird"]})

    assert [("w", "Blue\n  bird"), ("w", "blue")] == found(screen, "Blue\n  bird, blue")


def test_digits_are_letters_only_when_asked():
    text = "sp4mm3r $p4mmer"

    assert [("w", "sp4mm3r"), ("w", "$p4mmer")] == found(
        _screen({"category": "w", "words": ["spammer"], "leetspeak": True}), text
    )
    assert [] == found(_screen({"category": "w", "words": ["spammer"]}), text)


def test_signs_in_words_are_taken_literally():
    screen = _screen({"category": "w", "words": ["c++", "a.b"]})

    assert [("w", "C++"), ("w", "a.b")] == found(screen, "C++ and a.b, not acb or c")


def test_a_judgement_has_the_gravest_level_and_the_words_of_its_rule():
    screen = _screen(
        {"category": "note", "words": ["one"], "level": "info", "redact": "[1]"},
        {"category": "stop", "words": ["two"], "user_message": "No."},
    )

    judgement = judged(screen.findings(content("one two one"), Stop(10)))

    assert (ERROR, "No.", ["note", "stop"]) == (judgement.level, judgement.user_message, judgement.categories)
    assert [(0, 3), (8, 11)] == [(each.start_byte, each.end_byte) for each in judgement.redactions]
    assert INFO == judged(screen.findings(content("one"), Stop(10))).level
    assert {"found.note": "2", "found.stop": "1"} == judgement.metadata


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"patterns": ["("]}, "is no RE2 pattern"),
        ({"patterns": ["(?=x)y"]}, "is no RE2 pattern"),
        ({"patterns": ["a*"]}, "matches the empty text"),
        ({"words": ["\u200b"]}, "no visible character"),
        ({}, "set `patterns` or `words`"),
        ({"words": ["x"], "leetspeak": True, "form": "exact"}, "does not go together"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_with_its_reason(rule: dict[str, Any], told: str):
    with pytest.raises(ValidationError, match=told):
        Rule.model_validate({"category": "x", **rule})


def test_the_work_ends_when_its_time_is_over():
    with pytest.raises(Stopped):
        _screen({"category": "x", "patterns": ["a"]}).findings(content("a" * 1000), Stop(0))


def test_thousands_of_words_are_found_at_their_places():
    words = [f"forbidden{number}" for number in range(5000)]
    screen = _screen({"category": "w", "words": words})

    assert [("w", "forbidden17"), ("w", "Forbidden4999")] == found(screen, "forbidden17 forbidden5000 Forbidden4999")
