"""The mark of the full escape list."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Knows the mark wherever these tests are run from."""
    config.addinivalue_line("markers", "sandbox: every attack in every engine for every user; a stage of its own")
