"""Pages of lists, as AIP-158 has them: opaque tokens that hold the position after which a page begins."""

from __future__ import annotations

import base64
import binascii
import json

from turnwire.errors import InvalidArgument

DEFAULT_PAGE_SIZE = 50
LARGEST_PAGE_SIZE = 200


def page_size(requested: int) -> int:
    """Returns the size of a page: 0 is the default, more than the largest is cut to it.

    Raises:
        InvalidArgument: it is negative.
    """
    if requested < 0:
        raise InvalidArgument.one("page_size", f"must not be negative; it is {requested}")
    return min(requested or DEFAULT_PAGE_SIZE, LARGEST_PAGE_SIZE)


def encode_position(*parts: int | str) -> str:
    """Returns the token of a position."""
    text = json.dumps(parts, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_position(token: str, start: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Returns the position of a token, `start` for an empty one; the types are those of `start`.

    Raises:
        InvalidArgument: the token was not made by this list.
    """
    if not token:
        return start
    try:
        padded = token + "=" * (-len(token) % 4)
        parts = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        parts = None
    if not isinstance(parts, list) or [type(part) for part in parts] != [type(part) for part in start]:
        raise InvalidArgument.one("page_token", "is not a token of this list; begin with an empty one")
    for part in parts:
        if isinstance(part, int) and not -(2**63) <= part < 2**63:
            raise InvalidArgument.one("page_token", "is not a token of this list; begin with an empty one")
    return tuple(parts)
