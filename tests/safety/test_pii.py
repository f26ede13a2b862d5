"""`inline::pii`: personal data by checksum and form, with near misses of each."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from tests.safety.calling import content, found
from turnwire.errors import InvalidArgument
from turnwire.safety.redaction import replaced
from turnwire.safety.shields.inline import judged
from turnwire.safety.shields.pii import PiiProvider, PiiScreen, PiiSettings
from turnwire.safety.text.patterns import Stop
from turnwire.safety.v1 import shield_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

SCREEN = PiiScreen(PiiSettings(), None)
ABROAD = PiiScreen(PiiSettings(regions=["DE", "GB", "FR"]), None)


@pytest.mark.parametrize(
    "number",
    [
        "4111111111111111",
        "4111 1111 1111 1111",
        "5500-0000-0000-0004",
        "2223 0031 2200 3222",
        "378282246310005",
        "3782 822463 10005",
        "30569309025904",
        "6011 1111 1111 1117",
        "3530 1113 3330 0000",
        "４１１１　１１１１　１１１１　１１１１",
        "4111\u200b111111111111",
        "4111\u00a01111\u00a01111\u00a01111",
    ],
)
def test_a_card_is_found(number: str):
    assert [("credit-card", number)] == found(SCREEN, f"Karte {number}, gültig")


@pytest.mark.parametrize(
    "text",
    [
        "4111111111111112",  # the checksum
        "4111 1111 1111 1112",
        "1234567890123456",  # no issuer
        "0000 0000 0000 0000",
        "41111111111111111111111",  # too long
        "4111 1111-1111 1111",  # no grouping of a card
        "x4111111111111111",  # a part of something longer
        "4111111111111111px",
        "3.4111111111111111",
        "550000000000000",  # the length
    ],
)
def test_a_number_that_is_no_card_is_left(text: str):
    assert [] == found(SCREEN, f"no {text}.")


def test_other_numbers_before_a_card_do_not_hide_it():
    assert [("credit-card", "4111 1111 1111 1111")] == found(SCREEN, "orders 12 345 4111 1111 1111 1111 99")


@pytest.mark.parametrize(
    "number",
    [
        "DE89 3704 0044 0532 0130 00",
        "DE89370400440532013000",
        "GB82WEST12345698765432",
        "fr14 2004 1010 0505 0001 3M02 606",
        "NO93 8601 1117 947",
        "MT84MALT011000012345MTLCAST001S",
    ],
)
def test_an_iban_is_found_to_its_last_character(number: str):
    assert [("iban", number)] == found(SCREEN, f"IBAN: {number} danke")


@pytest.mark.parametrize("text", ["DE88 3704 0044 0532 0130 00", "XX89370400440532013000", "DE8937040044053201300"])
def test_a_wrong_iban_is_left(text: str):
    assert [] == [kind for kind, _ in found(SCREEN, text) if kind == "iban"]


def test_mail_addresses_are_found_and_handles_are_not():
    text = "Write to bob.smith+x@example.co.uk, jürgen@müller.de or <a@b.com>; not @bob, a@b, user@localhost, x @ y.com"

    assert ["bob.smith+x@example.co.uk", "jürgen@müller.de", "a@b.com"] == [place for _, place in found(SCREEN, text)]


def test_phones_are_found_as_their_countries_write_them():
    assert [("phone", "+49 30 901820"), ("phone", "(415) 555-2671"), ("phone", "+33 1 42 68 53 00")] == found(
        SCREEN, "Call +49 30 901820, (415) 555-2671 or +33 1 42 68 53 00."
    )
    assert [("phone", "030/901820"), ("phone", "020 7946 0018"), ("phone", "01 42 68 53 00")] == found(
        ABROAD, "Call 030/901820, 020 7946 0018 or 01 42 68 53 00."
    )


def test_phones_in_a_row_are_all_found():
    numbers = ["415-555-2671", "415-555-2672", "(415) 555-2673", "415-555-2674", "415-555-2675"]

    assert numbers == [place for _, place in found(SCREEN, " ".join(numbers))]


@pytest.mark.parametrize(
    "text",
    [
        "4155552671",
        "2026-11-25 04:13:05",
        "12.05.2024 - 12.06.2024",
        "ISBN 978-3-16-148410-0",
        "1-2-3-4-5-6-7",
        "+1 000-000-0000",
        "10.0.0.1:8080",
        "100 000 000 000",
    ],
)
def test_other_numbers_are_no_phones(text: str):
    assert [] == found(SCREEN, f"see {text} there")


def test_social_security_numbers_need_hyphens_and_a_range_in_use():
    assert [("us-ssn", "123-45-6789")] == found(SCREEN, "123-45-6789 000-12-3456 666-12-3456 078-05-1120 123456789")


def test_addresses_of_the_internet_only_when_asked_and_only_public_ones():
    text = "8.8.8.8, 192.168.1.1, 127.0.0.1, 999.1.1.1, v1.2.3.4, 2001:4860:4860::8888, 12:30:45"
    screen = PiiScreen(PiiSettings(kinds=["ip-address"]), None)

    assert [("ip-address", "8.8.8.8"), ("ip-address", "2001:4860:4860::8888")] == found(screen, text)
    assert [] == found(SCREEN, text)


def test_a_place_is_of_one_kind():
    assert [("email", "415-555-2671@example.com")] == found(SCREEN, "write to 415-555-2671@example.com")


def test_what_is_found_is_replaced_by_its_kind():
    text = "Bob, bob@example.com, 4111 1111 1111 1111 ÄÖ +49 30 901820!"
    judgement = judged(SCREEN.findings(content(text), Stop(10)))

    assert "Bob, [email], [credit-card] ÄÖ [phone]!" == replaced(text, judgement.redactions)
    assert ["email", "credit-card", "phone"] == judgement.categories
    assert [] == judged(PiiScreen(PiiSettings(redact=False), None).findings(content(text), Stop(10))).redactions


def test_only_the_kinds_that_were_asked_for():
    assert [("email", "a@b.com")] == found(PiiScreen(PiiSettings(kinds=["email"]), None), "a@b.com 4111111111111111")


def test_an_unknown_country_is_refused():
    with pytest.raises(ValidationError, match="no numbering plan is known for XX"):
        PiiSettings(regions=["XX"])


def _shield(config: str) -> shield_pb2.Shield:
    return shield_pb2.Shield(shield_id="names", provider_shield_id="names", config_json=config)


async def test_names_without_the_model_are_refused_when_the_shield_is_registered():
    provider = PiiProvider("pii", PiiProvider.Config(names_model="no_such_model"))
    try:
        await provider.accept(_shield("{}"))
        with pytest.raises(InvalidArgument, match="no_such_model") as refused:
            await provider.accept(_shield('{"names": true}'))
        assert ["config_json.names"] == [violation.field for violation in refused.value.violations]
    finally:
        await provider.close()


def test_names_without_the_model_are_refused_in_the_configuration():
    config = PiiProvider.Config(names_model="no_such_model", shields={"pii": PiiSettings(names=True)})

    with pytest.raises(InvalidArgument, match=r"providers\.safety\[pii\]\.config\.shields\.pii\.names needs packages"):
        PiiProvider("pii", config)


async def test_names_of_a_model_are_found_at_their_places(monkeypatch: pytest.MonkeyPatch):
    # The packages are not among those of the tests: a module of the same shape stands for them.
    spacy: Any = ModuleType("spacy")
    spacy.__spec__ = ModuleSpec("spacy", None)
    spacy.load = _model
    model = ModuleType("names_model")
    model.__spec__ = ModuleSpec("names_model", None)
    monkeypatch.setitem(sys.modules, "spacy", spacy)
    monkeypatch.setitem(sys.modules, "names_model", model)
    provider = PiiProvider("pii", PiiProvider.Config(names_model="names_model"))
    text = "Größe: " + "ä " * 4000 + "Alice Johnson met Bob in Paris."
    try:
        judgement = await provider.judge(_shield('{"names": true}'), content(text), 10)
    finally:
        await provider.close()

    assert text.replace("Alice Johnson", "[person]") == replaced(text, judgement.redactions)
    assert ["person"] == judgement.categories


def _model(name: str, exclude: list[str]) -> Callable[[str], SimpleNamespace]:
    assert "names_model" == name
    assert "ner" not in exclude

    def read(text: str) -> SimpleNamespace:
        ents = [
            SimpleNamespace(label_=label, start_char=text.index(words), end_char=text.index(words) + len(words))
            for words, label in (("Alice Johnson", "PERSON"), ("Paris", "GPE"))
            if words in text
        ]
        return SimpleNamespace(ents=ents)

    return read
