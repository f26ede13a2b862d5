r"""`inline::rules`: your own rules, of patterns and words.

```yaml
providers:
  safety:
    - provider_id: house
      provider_type: "inline::rules"
      config:
        shields:
          house-rules:
            rules:
              - {category: project-name, words: [bluebird], level: error, user_message: "I cannot speak of that."}
              - {category: ticket, patterns: ['\bTCK-\d{6}\b'], level: info, redact: "[ticket]"}
```

Patterns are in the syntax of RE2 (no look-around, no back references) and take time in proportion to the text, whatever
the text. A rule reads a text in each of its forms (`turnwire.safety.text.forms`): without case, with compatible
characters unified, invisible ones taken out, accents and look-alikes of other scripts resolved, and with `leetspeak`
also with digits as letters. Findings are spans of the text as it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import re2
from pydantic import Field, field_validator, model_validator

from turnwire.safety.shields.inline import Finding, InlineConfig, LevelName, Name, ShieldSettings, TextShields, level_of
from turnwire.safety.text import forms
from turnwire.safety.text.patterns import PatternError, compiled, spans

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from turnwire.safety.shields.port import Content, Level, TextPart
    from turnwire.safety.text.patterns import Stop

_WORD = r"\p{L}\p{M}\p{N}_"
_WORDS_MEMORY = 128 * 1024 * 1024


class Rule(ShieldSettings):
    """One rule: what it looks for, and what is made of it."""

    category: Name
    """What a finding is called."""
    patterns: list[Annotated[str, Field(min_length=1, max_length=4000)]] = Field(
        default_factory=list[str], max_length=200
    )
    """Regular expressions in the syntax of RE2. `\\b` and `\\w` know ASCII only: `\\pL` is any letter."""
    words: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        default_factory=list[str], max_length=10_000
    )
    """Words and phrases; any white space stands between the words of a phrase."""
    whole_words: bool = True
    """False: `words` are also found within other words, as languages without spaces need it."""
    form: Literal["seen", "exact"] = "seen"
    """`seen`: as a reader sees the text, without case. `exact`: the very characters, in their case."""
    leetspeak: bool = False
    """Also read digits and signs within words as letters."""
    level: LevelName = "error"
    """How grave a finding is."""
    user_message: Annotated[str, Field(max_length=2000)] = ""
    """What the user is told at level `error`."""
    redact: Annotated[str, Field(max_length=200)] | None = None
    """What stands in the place of a finding; unset: it stays."""

    @field_validator("patterns")
    @classmethod
    def _can_be_compiled(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                found = compiled(pattern, ignore_case=True).search(b"")
            except PatternError as error:
                raise ValueError(f"{pattern!r} is no RE2 pattern: {error}") from None
            if found is not None:
                raise ValueError(f"{pattern!r} matches the empty text")
        return patterns

    @field_validator("words")
    @classmethod
    def _can_be_seen(cls, words: list[str]) -> list[str]:
        for word in words:
            if not forms.bare_word(word).strip():
                raise ValueError(f"{word!r} has no visible character")
        return words

    @model_validator(mode="after")
    def _looks_for_something(self) -> Rule:
        if not self.patterns and not self.words:
            raise ValueError("set `patterns` or `words`")
        if self.leetspeak and self.form == "exact":
            raise ValueError("`leetspeak` does not go together with the form `exact`")
        return self


class RulesSettings(ShieldSettings):
    """The configuration of a shield of rules."""

    rules: Annotated[list[Rule], Field(min_length=1, max_length=500)]
    """All of them are tried on each text."""


class RulesProvider(TextShields):
    """Runs rules of the operator's own."""

    Settings = RulesSettings

    class Config(InlineConfig):
        """The configuration of the provider."""

        shields: dict[Name, RulesSettings] = Field(default_factory=dict[str, RulesSettings])
        """The shields that come with it, by name. More can be registered."""

    def __init__(self, provider_id: str, config: Config) -> None:
        """Offers the shields of its configuration."""
        super().__init__(provider_id, config, config.shields)

    def _screen(self, settings: Any) -> RulesScreen:
        return RulesScreen(settings)


class RulesScreen:
    """Rules, ready to run."""

    def __init__(self, settings: RulesSettings) -> None:
        """Compiles the rules."""
        self._rules = [_Compiled(rule) for rule in settings.rules]

    def findings(self, content: Content, stop: Stop) -> Sequence[Finding]:
        """Returns what the rules find, rule by rule."""
        return [found for part in content.texts() for found in self._of_part(part, stop)]

    def _of_part(self, part: TextPart, stop: Stop) -> Iterator[Finding]:
        exact = forms.Form(part.text.encode())
        seen = forms.readings(part.text)
        leet: list[forms.Form] | None = None
        for each in self._rules:
            if each.rule.leetspeak and leet is None:
                leet = forms.readings(part.text, leetspeak=True)
            read = [exact] if each.rule.form == "exact" else leet if each.rule.leetspeak and leet else seen
            for start, end in sorted({found for form in read for found in each.spans(form, stop)}):
                yield Finding(
                    part, start, end, each.rule.category, each.level, each.rule.redact, each.rule.user_message
                )


class _Compiled:
    """A rule with its patterns."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.level: Level.ValueType = level_of(rule.level)
        blind = rule.form == "seen"
        self._patterns = [compiled(pattern, ignore_case=blind) for pattern in rule.patterns]
        self._words = _words(rule) if rule.words else None

    def spans(self, form: forms.Form, stop: Stop) -> Iterator[tuple[int, int]]:
        for pattern in self._patterns:
            for start, end in spans(pattern, form.data, stop):
                yield form.span(start, end)
        if self._words is not None:
            for start, end in spans(self._words, form.data, stop, group=1):
                yield form.span(start, end)


def _words(rule: Rule) -> Any:
    written: Iterable[str] = rule.words
    if rule.form == "seen":
        # A word has the forms of a text: one of them meets the text, in whatever script both are written.
        written = [*map(forms.fold_word, rule.words), *map(forms.bare_word, rule.words)]
        if rule.leetspeak:
            plain = [forms.Form(word.encode()) for word in written]
            written = [*written, *(form.data.decode() for word in plain for form in forms.leet(word))]
    # Longer ones first: of two that begin alike the longer is found.
    words = sorted(dict.fromkeys(written), key=lambda word: (-len(word), word))
    choice = "|".join(r"\s+".join(re2.escape(piece) for piece in word.split()) for word in words)
    # RE2's `\b` knows ASCII only; what stands around a word is no part of the group.
    whole = f"(?:^|[^{_WORD}])({choice})(?:$|[^{_WORD}])"
    return compiled(whole if rule.whole_words else f"({choice})", memory=_WORDS_MEMORY)
