"""`inline::secrets`: keys, tokens and passwords, by the maintained rules of gitleaks and some of our own for prose.

Each rule is a pattern that runs in linear time, words one of which must be near (so that most rules never search), a
least entropy in bits a character, and lists of what is no secret after all. A category is the name of the rule, as
`aws-access-token` or `private-key`. Nothing is sent anywhere to be verified.
"""

from __future__ import annotations

import math
import tomllib
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from turnwire.safety.shields.inline import Finding, InlineConfig, LevelName, Name, ShieldSettings, TextShields, level_of
from turnwire.safety.text import forms
from turnwire.safety.text.patterns import compiled, matches

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from turnwire.safety.shields.port import Content
    from turnwire.safety.text.patterns import Stop

_FILES = ("gitleaks.toml", "prose_secrets.toml")
_MEMORY = 64 * 1024 * 1024
_LINE = 2_000
"""So much around a match is held against what is allowed in a line."""


class SecretsSettings(ShieldSettings):
    """The configuration of a shield against secrets."""

    level: LevelName = "warn"
    """How grave a finding is."""
    user_message: Annotated[str, Field(max_length=2000)] = (
        "This contains a key or a password. Take it out, and replace it where it is in use."
    )
    """What the user is told at level `error`."""
    redact: Annotated[str, Field(max_length=200)] | None = "[secret]"
    """What stands in the place of a secret; null: it stays."""
    disabled_rules: list[Name] = Field(default_factory=list[str])
    """Rules that are not tried, by name, as `generic-api-key`."""

    @field_validator("disabled_rules")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        known = {rule.id for rule in rules()}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"there are no rules {', '.join(unknown)}")
        return names


class SecretsProvider(TextShields):
    """Finds secrets."""

    Settings = SecretsSettings

    class Config(InlineConfig):
        """The configuration of the provider."""

        shields: dict[Name, SecretsSettings] = Field(default_factory=lambda: {"secrets": SecretsSettings()})
        """The shields that come with it, by name. More can be registered."""

    def __init__(self, provider_id: str, config: Config) -> None:
        """Offers the shields of its configuration."""
        super().__init__(provider_id, config, config.shields)

    def _screen(self, settings: Any) -> SecretsScreen:
        return SecretsScreen(settings)


@dataclass(frozen=True, slots=True)
class _Allowed:
    """What is no secret after all: patterns and words, of which one (or all, with `every`) must fit."""

    target: str
    patterns: tuple[Any, ...]
    stopwords: tuple[bytes, ...]
    every: bool

    def fits(self, secret: bytes, match: bytes, line: bytes) -> bool:
        text = {"match": match, "line": line}.get(self.target, secret)
        checks: list[bool] = []
        if self.patterns:
            checks.append(any(pattern.search(text) is not None for pattern in self.patterns))
        if self.stopwords:
            lowered = secret.lower()
            checks.append(any(word in lowered for word in self.stopwords))
        return bool(checks) and (all(checks) if self.every else any(checks))


@dataclass(frozen=True, slots=True)
class SecretRule:
    """One rule."""

    id: str
    pattern: Any
    group: int | None
    entropy: float
    keywords: tuple[bytes, ...]
    allowed: tuple[_Allowed, ...]
    mixed: bool
    """Letters alone are no secret of this kind."""

    def secrets(self, data: bytes, stop: Stop) -> Iterator[tuple[int, int]]:
        """Returns the places of secrets."""
        for match in matches(self.pattern, data, stop):
            start, end = match.span(self._group(match))
            secret = data[start:end]
            if not secret or (self.entropy and entropy(secret) < self.entropy):
                continue
            if self.mixed and not any(byte in b"0123456789!$%&*+?#^~" for byte in secret):
                continue
            line = data[max(0, match.start() - _LINE) : match.end() + _LINE]
            line = _line_of(line, min(match.start(), _LINE))
            if not any(allowed.fits(secret, match.group(), line) for allowed in self.allowed):
                yield start, end

    def _group(self, match: Any) -> int:
        if self.group is not None:
            return self.group
        # As gitleaks: the first group that has anything, or the whole match.
        return next((number for number in range(1, self.pattern.groups + 1) if match.group(number)), 0)


class SecretsScreen:
    """Rules, ready to run."""

    def __init__(self, settings: SecretsSettings) -> None:
        """Leaves out the disabled rules."""
        self._settings = settings
        self._rules = [rule for rule in rules() if rule.id not in settings.disabled_rules]

    def findings(self, content: Content, stop: Stop) -> Sequence[Finding]:
        """Returns the secrets of all texts; a place that several rules know is named by the first of them."""
        level = level_of(self._settings.level)
        found: list[Finding] = []
        for part in content.texts():
            form = forms.plain(part.text)
            lowered = form.data.decode().lower().encode()
            taken: set[tuple[int, int]] = set()
            for rule in self._rules:
                stop.check()
                if rule.keywords and not any(word in lowered for word in rule.keywords):
                    continue
                for place in rule.secrets(form.data, stop):
                    start, end = form.span(*place)
                    if (start, end) not in taken:
                        taken.add((start, end))
                        found.append(
                            Finding(
                                part, start, end, rule.id, level, self._settings.redact, self._settings.user_message
                            )
                        )
        return found


@lru_cache(maxsize=1)
def rules() -> tuple[SecretRule, ...]:
    """Returns all rules, those of one maker before those that fit any key."""
    result: list[SecretRule] = []
    for name in _FILES:
        content = tomllib.loads((Path(__file__).parent / "data" / name).read_text(encoding="utf-8"))
        common = [content["allowlist"]] if "allowlist" in content else []
        result += [_rule(entry, common) for entry in content["rules"] if "regex" in entry]
    return tuple(sorted(result, key=lambda rule: rule.id.startswith(("generic", "sk-", "password"))))


def entropy(data: bytes) -> float:
    """Returns the entropy of bytes, in bits a byte."""
    total = len(data)
    return -sum(count / total * math.log2(count / total) for count in Counter(data).values())


def _rule(entry: Mapping[str, Any], common: Sequence[Mapping[str, Any]]) -> SecretRule:
    return SecretRule(
        id=entry["id"],
        pattern=compiled(entry["regex"], memory=_MEMORY),
        group=entry.get("secretGroup"),
        entropy=float(entry.get("entropy", 0)),
        keywords=tuple(word.lower().encode() for word in entry.get("keywords", ())),
        allowed=tuple(_allowed(each) for each in (*entry.get("allowlists", ()), *common)),
        # gitleaks itself asks for a digit in what its generic rules find.
        mixed=entry.get("mixed", entry["id"].startswith("generic")),
    )


def _allowed(entry: Mapping[str, Any]) -> _Allowed:
    every = entry.get("condition", "OR") == "AND"
    if every and entry.get("paths"):
        # A text has no path, so this never fits as a whole.
        return _Allowed("secret", (), (), every=True)
    return _Allowed(
        target=entry.get("regexTarget", "secret"),
        patterns=tuple(compiled(source, memory=_MEMORY) for source in entry.get("regexes", ())),
        stopwords=tuple(word.lower().encode() for word in entry.get("stopwords", ())),
        every=every,
    )


def _line_of(data: bytes, position: int) -> bytes:
    start = data.rfind(b"\n", 0, position) + 1
    end = data.find(b"\n", position)
    return data[start : end if end >= 0 else len(data)]
