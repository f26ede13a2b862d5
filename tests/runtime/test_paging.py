"""Page tokens: opaque, and whatever a stranger sends as one is refused."""

from __future__ import annotations

import base64
import json

import pytest

from turnwire.errors import InvalidArgument
from turnwire.runtime.paging import LARGEST_PAGE_SIZE, decode_position, encode_position, page_size


def _token(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


@pytest.mark.parametrize("position", [(5, "turn_1"), (0, ""), (-(2**63), "ü/+"), (2**63 - 1, "x" * 500)])
def test_a_token_gives_its_position_back(position: tuple[int, str]):
    token = encode_position(*position)
    assert position == decode_position(token, (0, ""))
    assert "=" not in token


def test_an_empty_token_is_the_start():
    assert (7, "a") == decode_position("", (7, "a"))


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "hello world",
        "ü",
        "====",
        _token({"a": 1}),
        _token([1]),
        _token([1, 2]),
        _token([1, "a", 2]),
        _token([True, "a"]),
        _token([1.0, "a"]),
        _token([None, "a"]),
        _token([2**63, "a"]),
        _token([-(2**63) - 1, "a"]),
        base64.b64encode(b"\xff\xfe").decode(),
        base64.urlsafe_b64encode(b"[" * 100_000).decode(),
        base64.urlsafe_b64encode(b"9" * 10_000).decode(),
        base64.urlsafe_b64encode(b"[" + b"9" * 10_000 + b', "a"]').decode(),
    ],
    ids=range(17),
)
def test_what_is_no_token_of_the_list_is_refused(token: str):
    with pytest.raises(InvalidArgument) as refused:
        decode_position(token, (0, ""))
    assert ["page_token"] == [violation.field for violation in refused.value.violations]


def test_sizes_of_pages():
    assert 50 == page_size(0)
    assert 1 == page_size(1)
    assert LARGEST_PAGE_SIZE == page_size(2**31 - 1)
    with pytest.raises(InvalidArgument, match="page_size"):
        page_size(-1)
