"""What the shields that read texts in the process share: settings, threads, and judgements made of findings."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from turnwire.common.v1 import inspect_service_pb2, shield_pb2
from turnwire.errors import FieldViolation, InvalidArgument, NotServed, TurnwireError
from turnwire.runtime.settings import problems_of
from turnwire.safety.redaction import merged
from turnwire.safety.shields.port import Judgement, Level, TextPart, built_in
from turnwire.safety.text.patterns import Stop, Stopped

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from turnwire.runtime.directory import Directory
    from turnwire.safety.shields.port import Content, State
    from turnwire.safety.v1 import shield_pb2 as registry_pb2

LevelName = Literal["info", "warn", "error"]
Name = Annotated[str, Field(pattern="^[A-Za-z0-9._:-]{1,200}$")]
_log = structlog.get_logger(__name__)
_SCREENS = 64
"""So many shields are kept ready to run."""


class ShieldSettings(BaseModel):
    """The configuration of one shield."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class InlineConfig(ShieldSettings):
    """The configuration of a provider that reads texts in the process."""

    timeout_seconds: Annotated[float, Field(gt=0, le=300)] = 10.0
    """How long one judgement may take; then the shield counts as unavailable."""
    threads: Annotated[int, Field(ge=1, le=64)] = 2
    """So many judgements run at once; further ones wait, in their own time."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something found in a text, at these bytes of it."""

    part: TextPart
    start: int
    end: int
    category: str
    level: Level.ValueType
    replacement: str | None = None
    """What is to stand there instead; None: it stays."""
    user_message: str = ""


class Screen(Protocol):
    """One shield, ready to run."""

    def findings(self, content: Content, stop: Stop) -> Sequence[Finding]:
        """Returns what there is in a content. Runs in a thread, and asks `stop` between two steps."""
        ...


class TextShields(ABC):
    """A provider of shields that read texts in threads of the process (abstract)."""

    Settings: ClassVar[type[ShieldSettings]]
    """The form of `config_json` of its shields."""

    def __init__(self, provider_id: str, config: InlineConfig, shields: Mapping[str, ShieldSettings]) -> None:
        """`shields` come with the provider."""
        self.provider_id = provider_id
        self.timeout_seconds = config.timeout_seconds
        self._built_in = {
            name: built_in(provider_id, name, settings.model_dump_json(exclude_defaults=True))
            for name, settings in shields.items()
        }
        self._threads = ThreadPoolExecutor(max_workers=config.threads, thread_name_prefix=provider_id)
        self._screens: OrderedDict[str, Screen] = OrderedDict()

    @abstractmethod
    def _screen(self, settings: Any) -> Screen:
        """Returns a shield of valid settings. Runs in a thread."""

    async def start(self, directory: Directory) -> None:
        """Begins to make its own shields ready, so that the first text does not wait for that."""
        for shield in self._built_in.values():
            self._threads.submit(self._warm, shield)

    async def close(self) -> None:
        """Waits for the texts in work."""
        await asyncio.get_running_loop().run_in_executor(
            None, lambda: self._threads.shutdown(wait=True, cancel_futures=True)
        )

    def state(self) -> tuple[State.ValueType, str]:
        """Always ready."""
        return inspect_service_pb2.Provider.STATE_READY, ""

    def shields(self) -> Sequence[registry_pb2.Shield]:
        """Returns the shields of the provider's configuration."""
        return list(self._built_in.values())

    async def accept(self, shield: registry_pb2.Shield) -> None:
        """Takes settings of its form; `provider_shield_id` names one of its own shields to begin from."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self._ready, shield)

    async def judge(self, shield: registry_pb2.Shield, content: Content, seconds: float) -> Judgement:
        """Judges in a thread, which ends soon after its time, or its caller, is gone."""
        stop = Stop(seconds)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._judge, shield, content, stop)
        except Stopped:
            raise TimeoutError from None
        finally:
            stop.set()

    def _warm(self, shield: registry_pb2.Shield) -> None:
        try:
            self._ready(shield)
        except TurnwireError as error:
            # Each judgement will say so too; here it is said before anybody asks.
            _log.warning("shield_not_ready", shield_id=shield.shield_id, error=error.message)

    def _judge(self, shield: registry_pb2.Shield, content: Content, stop: Stop) -> Judgement:
        stop.check()
        return judged(self._ready(shield).findings(content, stop))

    def _ready(self, shield: registry_pb2.Shield) -> Screen:
        key = f"{shield.shield_id}\n{shield.provider_shield_id}\n{shield.config_json}"
        screen = self._screens.get(key)
        if screen is None:
            screen = self._screen(self._settings(shield))
            self._screens[key] = screen
            while len(self._screens) > _SCREENS:
                self._screens.popitem(last=False)
        return screen

    def _settings(self, shield: registry_pb2.Shield) -> ShieldSettings:
        values: dict[str, Any] = {}
        origin = self._built_in.get(shield.provider_shield_id)
        if origin is not None:
            values = json.loads(origin.config_json)
        elif shield.provider_shield_id != shield.shield_id:
            raise NotServed("shield", shield.provider_shield_id, available=list(self._built_in))
        values |= read_config(shield.config_json)
        return validated(self.Settings, values)


def read_config(config_json: str) -> dict[str, Any]:
    """Returns the settings that stand in a shield's `config_json`; none when it is empty.

    Raises:
        InvalidArgument: it is no JSON object.
    """
    if not config_json.strip():
        return {}
    try:
        values = json.loads(config_json)
    except ValueError as error:
        raise InvalidArgument.one("config_json", f"is no JSON: {error}") from None
    except RecursionError:
        raise InvalidArgument.one("config_json", "is nested too deeply") from None
    if not isinstance(values, dict):
        raise InvalidArgument.one("config_json", "is no JSON object")
    return values


def validated(model: type[ShieldSettings], values: Mapping[str, Any]) -> ShieldSettings:
    """Returns the settings of a shield.

    Raises:
        InvalidArgument: with everything that is wrong with them.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InvalidArgument(
            [
                FieldViolation(".".join(["config_json", *(str(part) for part in place)]), expected)
                for place, expected in problems_of(error, model)
            ]
        ) from None


def level_of(name: LevelName) -> Level.ValueType:
    """Returns the level of a setting."""
    return Level.Value(f"VIOLATION_LEVEL_{name.upper()}")


def judged(findings: Iterable[Finding]) -> Judgement:
    """Returns the judgement of findings: the gravest level, each category once, spans that do not overlap."""
    judgement = Judgement()
    counts: Counter[str] = Counter()
    redactions: list[shield_pb2.Redaction] = []
    for each in findings:
        if each.level > judgement.level:
            judgement.level, judgement.user_message = each.level, each.user_message
        counts[each.category] += 1
        if each.replacement is not None:
            redactions.append(
                shield_pb2.Redaction(
                    message_index=each.part.message_index,
                    part_index=each.part.part_index,
                    start_byte=each.start,
                    end_byte=each.end,
                    replacement=each.replacement,
                    category=each.category,
                )
            )
    judgement.categories = list(counts)
    judgement.metadata = {f"found.{category}": str(count) for category, count in counts.items()}
    judgement.redactions = merged(redactions)
    return judgement
