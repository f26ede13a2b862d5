"""Hostile texts cost in proportion to their length: twice the text, about twice the time."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import pytest

from tests.safety.calling import content
from turnwire.safety.shields.pii import PiiScreen, PiiSettings
from turnwire.safety.shields.prompt_injection import PromptInjectionScreen, PromptInjectionSettings
from turnwire.safety.shields.rules import RulesScreen, RulesSettings
from turnwire.safety.shields.secrets import SecretsScreen, SecretsSettings
from turnwire.safety.text.patterns import Stop

if TYPE_CHECKING:
    from turnwire.safety.shields.inline import Screen

_RULES = {
    "rules": [
        {"category": "x", "patterns": ["(a+)+$", "(a|aa)+b", "(.*a){20}c", "(x+x+)+y"], "leetspeak": True},
        {"category": "w", "words": ["bad thing", *(f"word{number}" for number in range(500))], "leetspeak": True},
    ]
}
SCREENS: dict[str, Screen] = {
    "rules": RulesScreen(RulesSettings.model_validate(_RULES)),
    "secrets": SecretsScreen(SecretsSettings()),
    "pii": PiiScreen(PiiSettings(regions=["US", "DE"]), None),
    "prompt-injection": PromptInjectionScreen(PromptInjectionSettings()),
}
TEXTS = {
    "one letter": "a",
    "leet": "a1",
    "spaced": "a b c d ",
    "verbs without objects": "ignore the ",
    "keys without values": "password is key = token: ",
    "begins of keys": "-----BEGIN PRIVATE KEY-----",
    "addresses": "http://a:b@a.a@",
    "digits": "1 22 333 4444 ",
    "cards": "4111 ",
    "ibans": "DE89 ",
    "percent": "%41",
    "base64": "QUJD",
    "accents": "e\u0301",
    "look-alikes": "аbс1 ",
    "tags": "\U000e0041",
    "brackets": "<|",
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("shield", SCREENS)
def test_time_grows_as_the_text_does(shield: str, text: str):
    screen, piece = SCREENS[shield], TEXTS[text]
    length = 8_000

    def seconds(size: int) -> float:
        # One word of letters and digits has each form of the text made.
        judged = content("g1 " + piece * (size // len(piece)))
        # The time of this thread: other work on the machine hardly counts.
        begun = time.thread_time()
        screen.findings(judged, Stop(100))
        return time.thread_time() - begun

    seconds(length)
    short = max(min(seconds(length) for _ in range(3)), 0.0005)
    # What is quadratic takes 64 times as long, what is linear 8 times. Other work only adds: one good look is enough.
    ratio = math.inf
    for _ in range(3):
        ratio = min(ratio, seconds(length * 8) / short)
        if ratio < 24:
            break
    assert ratio < 24
