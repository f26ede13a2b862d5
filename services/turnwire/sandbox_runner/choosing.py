"""Which engine a runner uses: the strongest that works here, tried before anything else is served."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import structlog

from turnwire.errors import IsolationUnavailable
from turnwire.sandbox_runner import probe
from turnwire.sandbox_runner.engines.bubblewrap import Bubblewrap
from turnwire.sandbox_runner.engines.landlock import Landlock
from turnwire.sandbox_runner.engines.port import EngineUnusable

if TYPE_CHECKING:
    from turnwire.runtime.settings import SandboxSettings
    from turnwire.sandbox_runner.cage import Cage
    from turnwire.sandbox_runner.engines.port import Engine, Site

_log = structlog.get_logger(__name__)

_ADVICE = (
    "install bubblewrap and allow user namespaces (`sysctl kernel.unprivileged_userns_clone=1`,"
    " `kernel.apparmor_restrict_unprivileged_userns=0`), or use Linux 6.12 or newer with Landlock; see docs/sandbox.md"
)


async def choose(settings: SandboxSettings, site: Site) -> tuple[Engine, Cage]:
    """Returns an engine that was seen to isolate, and the sandbox that it was seen with.

    Raises:
        IsolationUnavailable: there is none; it says why for each, and what to do.
    """
    if sys.platform != "linux":
        raise IsolationUnavailable(f"sandboxes need Linux, and this is {sys.platform}")
    reasons: list[str] = []
    for engine in _candidates(settings):
        try:
            await asyncio.to_thread(engine.prepare, site)
            place = await asyncio.to_thread(engine.place)
            cage = await probe.check(place, site)
        except (EngineUnusable, OSError, NotImplementedError) as error:
            reason = f"{engine.name}: {error}"
            if reason not in reasons:
                reasons.append(reason)
            _log.info("engine_unusable", engine=engine.name, reason=str(error))
            continue
        return engine, cage
    raise IsolationUnavailable(f"{'; '.join(reasons)}. To do: {_ADVICE}")


def _candidates(settings: SandboxSettings) -> list[Engine]:
    # Some containers refuse a /proc of one's own, and nothing in a sandbox needs it.
    bubblewrap: list[Engine] = [Bubblewrap(settings.bubblewrap), Bubblewrap(settings.bubblewrap, proc=False)]
    match settings.engine:
        case "bubblewrap":
            return bubblewrap
        case "landlock":
            return [Landlock()]
        case "auto":
            return [*bubblewrap, Landlock()]
