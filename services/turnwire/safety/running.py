"""Several shields on one content: at once, each with its own time, none the reason for another's failure."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog

from turnwire.common.v1 import error_pb2, shield_pb2
from turnwire.errors import TurnwireError
from turnwire.runtime.failpoints import Boundary
from turnwire.runtime.identity import remaining

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.safety.registry import Found
    from turnwire.safety.shields.port import Content, Judgement

_log = structlog.get_logger(__name__)
_MARGIN_SECONDS = 0.2
"""So much before the caller's deadline a shield is given up: the verdicts of the others still reach the caller."""
_LEAST_SECONDS = 0.05
_JUDGING = Boundary("safety.verdict")


async def run_all(found: Sequence[Found], content: Content) -> list[shield_pb2.ShieldVerdict]:
    """Returns the verdict of each shield, in order. A shield that could not judge says so in its verdict."""
    return list(await asyncio.gather(*(_run(each, content) for each in found)))


async def _run(found: Found, content: Content) -> shield_pb2.ShieldVerdict:
    shield, provider = found.shield, found.provider
    verdict = shield_pb2.ShieldVerdict(shield_id=shield.shield_id, provider_id=shield.provider_id)
    begun = time.monotonic()
    if provider is None:
        _fail(verdict, "its provider is not configured here", retryable=False)
    else:
        seconds = _seconds(provider.timeout_seconds)
        try:
            async with asyncio.timeout(seconds):
                async with _JUDGING:
                    judgement = await provider.judge(shield, content, seconds)
            _tell(verdict, judgement, content)
        except TimeoutError:
            _fail(verdict, f"it took longer than {seconds:.3g} s", retryable=True)
        except TurnwireError as error:
            _fail(verdict, error.message, retryable=error.retryable, cause=error.reason_name)
        except Exception:
            # A defect of one shield must not hide what the others found.
            _log.exception("shield_defect", shield_id=shield.shield_id, provider_id=shield.provider_id)
            _fail(verdict, "a defect of its provider; the log of the safety service has it", retryable=False)
    _log.info(
        "shield_ran",
        shield_id=shield.shield_id,
        provider_id=shield.provider_id,
        point=shield_pb2.ShieldPoint.Name(content.point),
        level=shield_pb2.ViolationLevel.Name(verdict.level),
        categories=list(verdict.categories),
        redactions=len(verdict.redactions),
        failed=verdict.failure.message if verdict.HasField("failure") else None,
        milliseconds=round((time.monotonic() - begun) * 1000, 1),
    )
    return verdict


def _seconds(most: float) -> float:
    left = remaining()
    return most if left is None else min(most, max(_LEAST_SECONDS, left - _MARGIN_SECONDS))


def _tell(verdict: shield_pb2.ShieldVerdict, judgement: Judgement, content: Content) -> None:
    verdict.level = judgement.level
    if judgement.level == shield_pb2.VIOLATION_LEVEL_ERROR:
        verdict.user_message = judgement.user_message
    verdict.categories.extend(judgement.categories)
    verdict.metadata.update(judgement.metadata)
    verdict.redactions.extend(judgement.redactions)
    unread = content.unread()
    if unread:
        # That a picture was not looked at is for the caller's policy to know.
        verdict.metadata["unread_parts"] = str(unread)


def _fail(verdict: shield_pb2.ShieldVerdict, why: str, *, retryable: bool, cause: str = "") -> None:
    metadata = {"shield": verdict.shield_id}
    if cause:
        metadata["cause"] = cause
    verdict.failure.CopyFrom(
        error_pb2.Failure(
            reason=error_pb2.ERROR_REASON_SHIELD_UNAVAILABLE,
            message=f"The shield {verdict.shield_id!r} could not judge: {why}",
            retryable=retryable,
            metadata=metadata,
        )
    )
