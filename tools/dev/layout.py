"""Where things are in the checkout."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "protos"
SERVICES = ROOT / "services"
GENERATION_ENVIRONMENT = ROOT / ".venv-gen"
BIN = Path(sys.executable).parent
"""The programs of the environment that runs this."""
