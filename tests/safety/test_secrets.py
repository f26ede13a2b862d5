"""`inline::secrets`: keys and passwords in free text, and what only looks like them."""

from __future__ import annotations

import base64
import random
import string

import pytest
from pydantic import ValidationError

from tests.safety.calling import WARN, content, found
from turnwire.safety.redaction import replaced
from turnwire.safety.shields.inline import judged
from turnwire.safety.shields.secrets import SecretsScreen, SecretsSettings, entropy, rules
from turnwire.safety.text.patterns import Stop

SCREEN = SecretsScreen(SecretsSettings())
_LETTERS = string.ascii_letters + string.digits


def _drawn(count: int, alphabet: str = _LETTERS, seed: int = 5) -> str:
    return "".join(random.Random(seed).choices(alphabet, k=count))


# Written in parts and drawn, so that no scanner of repositories takes this file for a leak.
SECRETS = {
    "aws-access-token": "AK" + "IA" + _drawn(16, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"),
    "github-pat": "gh" + "p_" + _drawn(36),
    "github-fine-grained-pat": "github" + "_pat_" + _drawn(82),
    "gitlab-pat": "gl" + "pat-" + _drawn(20),
    "slack-bot-token": "xo" + "xb-" + "1234567890123-1234567890123-" + _drawn(24),
    "stripe-access-token": "sk" + "_live_" + _drawn(24),
    "gcp-api-key": "AI" + "za" + _drawn(35),
    "npm-access-token": "np" + "m_" + _drawn(36, string.ascii_lowercase + string.digits),
    "anthropic-api-key": "sk-" + "ant-api03-" + _drawn(93) + "AA",
    "huggingface-access-token": "h" + "f_" + _drawn(34, string.ascii_letters),
    "sendgrid-api-token": "S" + "G." + _drawn(66),
    "sk-api-key": "sk-" + "proj-" + _drawn(40),
}


@pytest.mark.parametrize("kind", SECRETS)
def test_a_key_in_a_sentence_is_found_as_what_it_is(kind: str):
    secret = SECRETS[kind]

    assert [(kind, secret)] == found(SCREEN, f"Hi, please use {secret} for it, thanks")


def test_a_private_key_is_found_as_a_whole():
    lines = "\n".join(_drawn(64, seed=number) for number in range(4))
    key = f"-----BEGIN RSA PRIVATE KEY-----\n{lines}\n-----END RSA PRIVATE KEY-----"

    assert [("private-key", key)] == found(SCREEN, f"My key:\n{key}\nthanks")


def test_a_json_web_token_is_found():
    parts = [
        base64.urlsafe_b64encode(each).decode().rstrip("=")
        for each in (b'{"alg":"HS256","typ":"JWT"}', b'{"sub":"1234567890","name":"J"}')
    ]
    token = ".".join([*parts, _drawn(43)])

    assert [("jwt", token)] == found(SCREEN, f"curl with {token} fails")


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("my password is hunter2hunter!", "hunter2hunter!"),
        ("Passwort: Tr0ub4dor&3, bitte nicht weitersagen", "Tr0ub4dor&3"),
        ("the password for the router is «correct-horse-9»", "correct-horse-9"),
        ("пароль: Zima2024snow", "Zima2024snow"),
    ],
)
def test_a_password_that_is_told_is_found(text: str, secret: str):
    assert [("password-in-prose", secret)] == found(SCREEN, text)


def test_the_password_of_a_url_is_found_and_the_rest_of_it_stays():
    text = "postgres://bob:s3cr3t+pw@db.example.com/x"
    judgement = judged(SCREEN.findings(content(text), Stop(10)))

    assert "postgres://bob:[secret]@db.example.com/x" == replaced(text, judgement.redactions)
    assert (WARN, ["url-password"]) == (judgement.level, judgement.categories)


def test_an_assignment_of_a_random_value_is_found():
    value = _drawn(24, seed=9)

    assert [("generic-api-key", value)] == found(SCREEN, f'api_key = "{value}"')


def test_invisible_and_wide_characters_hide_nothing():
    secret = SECRETS["github-pat"]
    hidden = f"{secret[:10]}\u200b{secret[10:]}"

    assert [("github-pat", hidden)] == found(SCREEN, f"ключ {hidden} готов")


def test_a_value_that_is_not_random_is_no_secret():
    assert [] == found(SCREEN, 'api_key = "abab1212abab1212abab"')


@pytest.mark.parametrize(
    "text",
    [
        "The password is required and must be changed every month.",
        "Your password: please choose a long one",
        "commit 3f2c1e9a7b8d4c5e6f7a8b9c0d1e2f3a4b5c6d7e fixed it",
        "id 550e8400-e29b-41d4-a716-446655440000",
        "The key = to success is patience and hard-working people.",
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "postgres://user:password@localhost/db and https://example.com:8080/a@b",
        "api_key = os.environ['API_KEY'] and token = ${TOKEN}",
        "AKIA is how the ids of keys begin; ghp_ is how tokens do",
        "sk-learn is a library; task-management-and-project-planning-tool",
        "https://example.com/watch?v=dQw4w9WgXcQ&list=PLrAXtmErZgOeiKm4sgNOknGvNjby9efdf",
        "Monkeys like bananas: the access to the token ring was authorized by the secretary.",
    ],
)
def test_what_only_looks_like_a_secret_is_none(text: str):
    assert [] == found(SCREEN, text)


def test_a_place_is_named_once():
    secret = SECRETS["github-pat"]

    assert [("github-pat", secret)] == found(SCREEN, f'token = "{secret}"')


def test_a_disabled_rule_finds_nothing_and_an_unknown_one_is_refused():
    screen = SecretsScreen(SecretsSettings(disabled_rules=["github-pat", "generic-api-key"]))

    assert [] == found(screen, f"use {SECRETS['github-pat']} now")
    with pytest.raises(ValidationError, match="no rules nonsense"):
        SecretsSettings(disabled_rules=["nonsense"])


def test_the_rules_are_those_of_the_maintained_set_and_our_own():
    ids = [rule.id for rule in rules()]

    assert len(ids) == len(set(ids))
    assert len(ids) > 220
    assert {"url-password", "password-in-prose", "generic-api-key", "private-key"} <= set(ids)


def test_entropy_is_in_bits_a_byte():
    assert 0 == entropy(b"aaaa")
    assert 1 == entropy(b"abab")
    assert 3 == entropy(b"abcdefgh")
