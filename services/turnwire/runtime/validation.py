"""Violations of a request, gathered, so that a caller learns of all of them at once."""

from __future__ import annotations

from turnwire.errors import FieldViolation, InvalidArgument


class Violations:
    """Gathers what is wrong with a request."""

    def __init__(self) -> None:
        """Nothing is wrong yet."""
        self._found: list[FieldViolation] = []

    def add(self, field: str, description: str) -> None:
        """Notes that a field is wrong; `description` goes on from the field's name, as `is required`."""
        self._found.append(FieldViolation(field, description))

    def raise_if_any(self) -> None:
        """Ends the call if anything is wrong.

        Raises:
            InvalidArgument: with everything that was noted.
        """
        if self._found:
            raise InvalidArgument(self._found)
