"""What the services say of their providers' settings, before any of them is started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnwire.inference import providers as inference
from turnwire.memory import banks as memory
from turnwire.safety import shields as safety
from turnwire.tool_executor import tools as tool_executor

if TYPE_CHECKING:
    from turnwire.runtime.settings import Check

CHECKS: tuple[Check, ...] = (inference.problems, safety.problems, memory.problems, tool_executor.problems)
"""One a service."""
