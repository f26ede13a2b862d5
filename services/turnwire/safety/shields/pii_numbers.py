"""Numbers and addresses that identify people, found by form and made sure by checksum or numbering plan."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import phonenumbers
from stdnum import iban, luhn
from stdnum.exceptions import ValidationError as NumberError
from stdnum.us import ssn

from turnwire.safety.text.patterns import compiled, spans

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from turnwire.safety.text.patterns import Stop

_IBAN = compiled(r"(?i)(?:^|[^A-Za-z0-9])([A-Z]{2}[0-9]{2}(?:[ .-]?[A-Z0-9]){11,40})")
_SSN = compiled(r"(?:^|[^0-9-])([0-9]{3}-[0-9]{2}-[0-9]{4})(?:$|[^0-9-])")
_IPV4 = compiled(r"(?:^|[^\pL0-9._-])((?:[0-9]{1,3}\.){3}[0-9]{1,3})(?:$|[^0-9.]|\.(?:$|[^0-9]))")
_IPV6 = compiled(r"(?i)(?:^|[^0-9a-z:.])([0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7})(?:$|[^0-9a-z:])")
# A run of digits with what people write between them; a plan decides what of it is a number.
_PHONE = compiled(r"(\+?[(]?[0-9]{1,14}[)]?(?:[ ./-]{1,2}[(]?[0-9][)]?)?(?:[ ./-]{0,2}[(]?[0-9]{2,14}[)]?){1,6})")
_LEAST_PHONE_DIGITS = 7
_DIGITS = re.compile(rb"[0-9]+")

# Issuer prefixes with the lengths in use (ISO/IEC 7812, as the issuers publish them).
_CARDS: tuple[tuple[re.Pattern[str], frozenset[int]], ...] = (
    (re.compile("4"), frozenset({13, 16, 19})),  # Visa
    (re.compile("5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), frozenset({16})),  # Mastercard
    (re.compile("3[47]"), frozenset({15})),  # American Express
    (re.compile("30[0-5]|3095|3[689]"), frozenset({14, 16, 17, 18, 19})),  # Diners
    (re.compile("6011|64[4-9]|65|622"), frozenset({16, 17, 18, 19})),  # Discover, UnionPay
    (re.compile("62|81"), frozenset({16, 17, 18, 19})),  # UnionPay
    (re.compile("35(?:2[89]|[3-8])"), frozenset({16, 17, 18, 19})),  # JCB
    (re.compile("50|5[6-9]|6[0-9]"), frozenset({13, 15, 16, 18, 19})),  # Maestro and its like
)
_GROUPINGS = (
    (4, 4, 4, 4),
    (4, 6, 5),
    (4, 6, 4),
    (4, 4, 4, 4, 3),
    (4, 4, 4, 4, 2),
    (4, 4, 4, 4, 1),
    (6, 13),
    (4, 4, 4, 1),
)
_BETWEEN = frozenset({b" ", b"-", b".", b"\xc2\xa0"})


def places(kind: str, data: bytes, stop: Stop, regions_at_home: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Returns the places of one kind in a plain text, from left to right."""
    match kind:
        case "email":
            if b"@" in data:
                yield from spans(_email(), data, stop, group=1)
        case "iban":
            yield from _ibans(data, stop)
        case "credit-card":
            yield from _cards(data, stop)
        case "us-ssn":
            yield from (place for place in spans(_SSN, data, stop, group=1) if ssn.is_valid(_text(data, place)))
        case "phone":
            yield from _phones(data, stop, regions_at_home)
        case "ip-address":
            for pattern in (_IPV4, _IPV6):
                yield from (place for place in spans(pattern, data, stop, group=1) if _is_public(_text(data, place)))
        case _:
            raise AssertionError(kind)


@lru_cache(maxsize=1)
def _email() -> Any:
    # RE2 takes a third of a second for the repeated letters of all scripts: no process starts later for that. It does
    # so beside the loop, in the thread of the judgement.
    return compiled(
        r"(?i)(?:^|[^\pL\pN._%+-])"
        r"([\pL\pN](?:[\pL\pN._%+'-]{0,62}[\pL\pN_+-])?"
        r"@(?:[\pL\pN](?:[\pL\pN-]{0,61}[\pL\pN])?\.){1,8}(?:\pL{2,24}|xn--[a-z0-9]{2,59}))"
        r"(?:$|[^\pL\pN@-])"
    )


@lru_cache(maxsize=1)
def regions() -> frozenset[str]:
    """Returns the countries with a known numbering plan."""
    return frozenset(phonenumbers.SUPPORTED_REGIONS)


def is_card(digits: str) -> bool:
    """True for the number of a payment card: prefix, length, checksum, and not one digit alone."""
    known = any(pattern.match(digits) and len(digits) in lengths for pattern, lengths in _CARDS)
    return known and len(set(digits)) > 1 and luhn.is_valid(digits)


def _cards(data: bytes, stop: Stop) -> Iterator[tuple[int, int]]:
    """A card stands in one group of digits, or in groups as cards are printed: so each is tried once only."""
    groups = [match.span() for match in _DIGITS.finditer(data)]
    index = 0
    while index < len(groups):
        if index % 1024 == 0:
            stop.check()
        taken = _card_at(data, groups, index)
        if taken:
            yield groups[index][0], groups[index + taken - 1][1]
        index += taken or 1


def _card_at(data: bytes, groups: Sequence[tuple[int, int]], index: int) -> int:
    start, end = groups[index]
    if _word_before(data, start):
        return 0
    if 13 <= end - start <= 19:
        return 1 if is_card(_text(data, (start, end))) and not _word_after(data, end) else 0
    for grouping in _GROUPINGS:
        last = index + len(grouping) - 1
        if last >= len(groups) or any(
            groups[index + offset][1] - groups[index + offset][0] != size for offset, size in enumerate(grouping)
        ):
            continue
        between = {data[groups[place][1] : groups[place + 1][0]] for place in range(index, last)}
        digits = "".join(_text(data, groups[place]) for place in range(index, last + 1))
        if len(between) == 1 and between <= _BETWEEN and is_card(digits) and not _word_after(data, groups[last][1]):
            return len(grouping)
    return 0


def _ibans(data: bytes, stop: Stop) -> Iterator[tuple[int, int]]:
    position = 0
    for start, end in spans(_IBAN, data, stop, group=1):
        # What follows a number may look like more of it: its country says how long it is.
        for length in range(end - start, 14, -1):
            place = (start, start + length)
            if place[1] < len(data) and _word_after(data, place[1]):
                continue
            if start >= position and _is_iban(_text(data, place)):
                position = place[1]
                yield place
                break


def _is_iban(text: str) -> bool:
    if not text[-1].isalnum():
        return False
    compact = re.sub("[ .-]", "", text).upper()
    if not 15 <= len(compact) <= 34:
        return False
    try:
        iban.validate(compact)
    except NumberError:
        return False
    return True


def _phones(data: bytes, stop: Stop, regions_at_home: Sequence[str]) -> Iterator[tuple[int, int]]:
    position = 0
    while True:
        stop.check()
        match = _PHONE.search(data, position)
        if match is None:
            return
        start, position = match.span(1)
        if _word_before(data, start):
            continue
        for first, last in _phones_in(_text(data, (start, position)), regions_at_home):
            if not _word_after(data, start + last):
                yield start + first, start + last
                # A run of digits may end within the next number: the search goes on after what was one.
                position = start + last


def _phones_in(text: str, regions_at_home: Sequence[str]) -> list[tuple[int, int]]:
    """The numbers in a run of digits, by the first plan that knows any; the run is in ASCII."""
    if sum(character.isdigit() for character in text) < _LEAST_PHONE_DIGITS:
        return []
    at_home = regions_at_home if re.search("[ ()./-]", text) else ()
    for region in [None, *at_home] if "+" in text else at_home:
        # Without a `+` the digits have to be written as people of the country write a number.
        leniency = phonenumbers.Leniency.VALID if region is None else phonenumbers.Leniency.STRICT_GROUPING
        matcher: Any = phonenumbers.PhoneNumberMatcher(text, region, leniency=leniency)
        found = [(number.start, number.end) for number in matcher]
        if found:
            return sorted([*found, *_phones_between(text, found, regions_at_home)])
    return []


def _phones_between(
    text: str, found: Sequence[tuple[int, int]], regions_at_home: Sequence[str]
) -> Iterator[tuple[int, int]]:
    """The numbers before each that was found: in a row of them the library passes over one now and then."""
    before = 0
    for start, end in found:
        for first, last in _phones_in(text[before:start].rstrip(), regions_at_home):
            yield before + first, before + last
        before = end


def _is_public(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _text(data: bytes, place: tuple[int, int]) -> str:
    return data[place[0] : place[1]].decode()


def _word_before(data: bytes, position: int) -> bool:
    """True when a number is the end of something longer, as of an identifier or a decimal fraction."""
    before = data[max(0, position - 2) : position]
    if not before:
        return False
    within = len(before) == 2 and before[:1].isdigit() and before[-1:] in b".,:/"
    return before[-1:].isalnum() or before[-1:] == b"_" or within


def _word_after(data: bytes, position: int) -> bool:
    after = data[position : position + 2]
    if not after:
        return False
    within = len(after) == 2 and after[1:].isdigit() and after[:1] in b".,:/"
    return after[:1].isalnum() or after[:1] == b"_" or within
