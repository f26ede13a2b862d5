"""Where a JSON object ends, found while it is being written."""

from __future__ import annotations


class JsonScanner:
    """Follows one JSON object, character by character."""

    def __init__(self) -> None:
        """Stands before the opening brace."""
        self.text = ""
        self.done = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> int:
        """Takes characters up to the end of the object; returns how many it took."""
        for index, character in enumerate(text):
            self._step(character)
            if self._depth == 0 and not self._in_string:
                self.done = True
                self.text += text[: index + 1]
                return index + 1
        self.text += text
        return len(text)

    def copy(self) -> JsonScanner:
        """Returns a scanner that stands at the same place."""
        other = JsonScanner()
        other.text, other.done = self.text, self.done
        other._depth, other._in_string, other._escaped = self._depth, self._in_string, self._escaped
        return other

    def _step(self, character: str) -> None:
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
