"""A settings file that is refused."""

from __future__ import annotations


class SettingsError(Exception):
    """Says which key of which file is wrong, in which line, and what was expected."""

    def __init__(self, source: str, key: str, expected: str, *, line: int | None = None) -> None:
        """`source` is a file's path, or the name of an environment variable."""
        where = f"{source}, line {line}" if line is not None else source
        super().__init__(f"{where}: {key}: {expected}" if key else f"{where}: {expected}")
        self.source = source
        self.key = key
        self.expected = expected
        self.line = line
