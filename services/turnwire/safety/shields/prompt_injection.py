"""`inline::prompt-injection`: attempts to give a model other instructions than its author's, by rules.

The rules (`injection_phrases`) know the usual phrases in some fifteen languages, the tokens of chat templates, turns
that are made up within a text, and requests to send things away in secret. A text is read in every form that a reader
would understand (look-alikes, leetspeak, letters spaced out, invisible characters), and what is hidden in it is read
too (Base64 and its like, and the invisible tag characters of Unicode). Findings near each other add up to a score from
0 to 1.

Rules find what is written as attempts usually are. They do not find one that is only meant, in words of its own; put a
model beside them (`inline::llama-guard`, or tools that need approval) where that matters. See `docs/safety.md` for what
was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from turnwire.common.v1 import message_pb2, shield_pb2
from turnwire.safety.shields.injection_phrases import phrases
from turnwire.safety.shields.inline import Finding, InlineConfig, Name, ShieldSettings, TextShields
from turnwire.safety.text import forms
from turnwire.safety.text.hidden import hidden, unseen_runs
from turnwire.safety.text.patterns import spans

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from turnwire.safety.shields.port import Content, Level, TextPart
    from turnwire.safety.text.patterns import Stop

_UNTRUSTED = frozenset({message_pb2.PROVENANCE_RETRIEVED, message_pb2.PROVENANCE_TOOL_RESULT})
_NEAR = 2_000
"""Findings within so many bytes belong to one attempt."""
_HIDDEN_WEIGHT = 0.6
_UNSEEN_WEIGHT = 0.4


class PromptInjectionSettings(ShieldSettings):
    """The configuration of a shield against prompt injection."""

    block_score: Annotated[float, Field(gt=0, le=1)] = 0.75
    """From this score on a finding has level ERROR."""
    warn_score: Annotated[float, Field(gt=0, le=1)] = 0.45
    """From this score on a finding has level WARN; below it there is none."""
    user_message: Annotated[str, Field(max_length=2000)] = (
        "This looks like an attempt to change my instructions, so I have not worked on it."
    )
    """What the user is told at level `error`."""
    redact: Annotated[str, Field(max_length=200)] | None = None
    """What stands in the place of a finding, as for retrieved text that is to be used all the same."""
    trust_model: bool = True
    """Whether what the model itself wrote is left out."""

    @model_validator(mode="after")
    def _ordered(self) -> PromptInjectionSettings:
        if self.warn_score > self.block_score:
            raise ValueError("`warn_score` is at most `block_score`")
        return self


class PromptInjectionProvider(TextShields):
    """Finds attempts to take the model over."""

    Settings = PromptInjectionSettings

    class Config(InlineConfig):
        """The configuration of the provider."""

        shields: dict[Name, PromptInjectionSettings] = Field(
            default_factory=lambda: {"prompt-injection": PromptInjectionSettings()}
        )
        """The shields that come with it, by name. More can be registered."""

    def __init__(self, provider_id: str, config: Config) -> None:
        """Offers the shields of its configuration."""
        super().__init__(provider_id, config, config.shields)

    def _screen(self, settings: Any) -> PromptInjectionScreen:
        return PromptInjectionScreen(settings)


@dataclass(frozen=True, slots=True)
class Hit:
    """One sign of an attempt, at these bytes of the text."""

    start: int
    end: int
    rule: str
    category: str
    weight: float


class PromptInjectionScreen:
    """The rules, ready to run."""

    def __init__(self, settings: PromptInjectionSettings) -> None:
        """Keeps the scores."""
        self._settings = settings

    def findings(self, content: Content, stop: Stop) -> Sequence[Finding]:
        """Returns the signs that together reach a score; instructions of the agent's author are none."""
        trusted = {message_pb2.PROVENANCE_SYSTEM}
        if self._settings.trust_model:
            trusted.add(message_pb2.PROVENANCE_MODEL)
        return [
            found for part in content.texts() if part.provenance not in trusted for found in self._of_part(part, stop)
        ]

    def _of_part(self, part: TextPart, stop: Stop) -> Iterator[Finding]:
        hits = signs(part.text, stop, untrusted=part.provenance in _UNTRUSTED)
        level = self._level(score(hits))
        if level == shield_pb2.VIOLATION_LEVEL_UNSPECIFIED:
            return
        for hit in reaching(hits, self._settings.warn_score):
            yield Finding(
                part, hit.start, hit.end, hit.category, level, self._settings.redact, self._settings.user_message
            )

    def _level(self, points: float) -> Level.ValueType:
        if points >= self._settings.block_score:
            return shield_pb2.VIOLATION_LEVEL_ERROR
        if points >= self._settings.warn_score:
            return shield_pb2.VIOLATION_LEVEL_WARN
        return shield_pb2.VIOLATION_LEVEL_UNSPECIFIED


def signs(text: str, stop: Stop, *, untrusted: bool) -> list[Hit]:
    """Returns all signs in a text and in what is hidden in it, by place."""
    found = list(_phrases(forms.readings(text, leetspeak=True, spaced=True), stop, untrusted=untrusted))
    for each in hidden(text, stop):
        inner = list(_phrases(forms.readings(each.text), stop, untrusted=untrusted))
        # Everything that is said in hiding stands at the place of the hiding.
        found += [Hit(each.start, each.end, hit.rule, hit.category, hit.weight) for hit in inner]
        if inner or each.unseen:
            found.append(Hit(each.start, each.end, "hidden", "hidden-text", _HIDDEN_WEIGHT))
    found += [Hit(start, end, "unseen", "hidden-text", _UNSEEN_WEIGHT) for start, end in unseen_runs(text)]
    return sorted(set(found), key=lambda hit: (hit.start, hit.end, hit.rule))


def score(hits: Sequence[Hit]) -> float:
    """Returns the highest score that hits near each other reach."""
    return max((points for points, _, _ in _places(hits)), default=0.0)


def reaching(hits: Sequence[Hit], least: float) -> list[Hit]:
    """Returns the hits that stand near others with which they reach a score."""
    marked: set[int] = set()
    for points, first, last in _places(hits):
        if points >= least:
            marked.update(range(first, last + 1))
    return [hit for index, hit in enumerate(hits) if index in marked]


def _places(hits: Sequence[Hit]) -> Iterator[tuple[float, int, int]]:
    """Returns (score, first hit, last hit) of the place that ends at each hit.

    A rule counts once within a place, so that a long text about the matter does not add up to an attempt.
    """
    first = 0
    weights: dict[str, list[float]] = {}
    for last, hit in enumerate(hits):
        weights.setdefault(hit.rule, []).append(hit.weight)
        while hit.start - hits[first].start > _NEAR:
            weights[hits[first].rule].remove(hits[first].weight)
            first += 1
        points = 1 - math.prod(1 - max(each) for each in weights.values() if each)
        yield round(points, 6), first, last


def _phrases(read: Sequence[forms.Form], stop: Stop, *, untrusted: bool) -> Iterator[Hit]:
    for phrase in phrases():
        for form in read:
            for start, end in spans(phrase.pattern, form.data, stop):
                weight = phrase.untrusted if untrusted else phrase.weight
                yield Hit(*form.span(start, end), phrase.name, phrase.category, weight)
