"""Who listens to which topic of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnwire.runtime.storage.port import Heard

_log = structlog.get_logger(__name__)


class Listeners:
    """The listeners of one store. Used on its loop only."""

    def __init__(self) -> None:
        """Nobody listens yet."""
        self._of: dict[str, list[Heard]] = {}

    @property
    def topics(self) -> list[str]:
        """What somebody listens to."""
        return list(self._of)

    def add(self, topic: str, heard: Heard) -> Callable[[], None]:
        """Adds a listener; returns what takes it away again."""
        self._of.setdefault(topic, []).append(heard)

        def end() -> None:
            listening = self._of.get(topic, [])
            if heard in listening:
                listening.remove(heard)
            if not listening:
                self._of.pop(topic, None)

        return end

    def tell(self, topic: str, text: str) -> None:
        """Passes a notice on to each listener of its topic."""
        for heard in list(self._of.get(topic, ())):
            try:
                heard(text)
            except Exception:
                # One listener's defect is not the others', nor the store's.
                _log.exception("store_listener_failed", topic=topic)
