"""Methods that the contract has and this version does not serve yet."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar, cast

from turnwire.errors import Unimplemented

if TYPE_CHECKING:
    from collections.abc import Callable

_F = TypeVar("_F", bound="Callable[..., Any]")

MARK = "__turnwire_unimplemented__"


def unimplemented(method: str, instead: str = "") -> Callable[[_F], _F]:
    """Makes a method of a servicer answer UNIMPLEMENTED, naming it and what works instead."""

    def wrap(function: _F) -> _F:
        @functools.wraps(function)
        async def answer(*_: object) -> object:
            raise Unimplemented(f"the method {method}", instead)

        setattr(answer, MARK, True)
        return cast("_F", answer)

    return wrap
