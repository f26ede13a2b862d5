"""An upstream of the bench that is right but for one thing: two tokens of a longer answer have changed places."""

from __future__ import annotations

from typing import TYPE_CHECKING

import uvloop

from bench.upstream import application, serve

if TYPE_CHECKING:
    from bench.script import Script


def swapped(script: Script) -> list[str]:
    """Returns the tokens of an answer; beyond eight of them, the third and the fourth have changed places."""
    words = script.words
    if len(words) > 8:
        words[2], words[3] = words[3], words[2]
    return words


if __name__ == "__main__":
    uvloop.run(serve(application(swapped)))
