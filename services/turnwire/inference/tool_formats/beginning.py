"""The moment at which an answer turns out to be a call: from then on it can be held to the schema of one."""

from __future__ import annotations

import re

_BEGINNING = re.compile(r'\s*(?:```[a-zA-Z_]*\s*)?\{\s*"name"\s*:\s*"(?P<name>[^"\\]{1,128})"(?P<rest>[^}]*)')
_ARGUMENTS = re.compile(r'\s*,\s*"(?:arguments|parameters)"\s*:')
_LONGEST = 400


class CallBeginning:
    """Looks at the first characters of an answer.

    A JSON object that begins with the name of a tool is a call, and so is one that has arguments behind the name of a
    tool that there is not. Any other object may be an answer.
    """

    def __init__(self, tools: frozenset[str]) -> None:
        """Knows the tools by name."""
        self._tools = tools
        self._text = ""
        self.found = False
        """True once the answer is a call."""

    def feed(self, text: str) -> bool:
        """Takes the next characters; True once the answer is a call."""
        if self.found or len(self._text) > _LONGEST:
            return self.found
        self._text += text
        match = _BEGINNING.match(self._text)
        if match is not None:
            self.found = match["name"] in self._tools or _ARGUMENTS.match(match["rest"]) is not None
        return self.found
