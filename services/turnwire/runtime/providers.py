"""The providers of a service: a table of their types, and how one is built from its settings."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from turnwire.errors import FieldViolation, InvalidArgument
from turnwire.runtime.settings import problems_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from turnwire.runtime.settings import Place, ProviderSettings, Settings


class ProviderTable:
    """Provider types of one service, each as `module:class`; a module is imported when a configuration names it."""

    def __init__(self, service: str, classes: Mapping[str, str]) -> None:
        """`service` is the section below `providers` in the settings, and the name of the extra."""
        self._service = service
        self._classes = dict(classes)

    def build(self, entry: ProviderSettings) -> Any:
        """Returns a provider, not started yet.

        Raises:
            InvalidArgument: there is no such type, its configuration is wrong, or a package of it is missing.
        """
        where = f"providers.{self._service}[{entry.provider_id}]"
        if entry.provider_type not in self._classes:
            raise InvalidArgument.one(f"{where}.provider_type", self._unknown(entry.provider_type))
        try:
            provider_class = self._class_of(entry.provider_type)
        except ModuleNotFoundError as error:
            raise InvalidArgument.one(f"{where}.provider_type", self._missing(error)) from None
        try:
            config = provider_class.Config.model_validate(entry.config)
        except ValidationError as error:
            found = problems_of(error, provider_class.Config)
            raise InvalidArgument(
                [FieldViolation(f"{where}.config.{_dotted(place)}", expected) for place, expected in found]
            ) from None
        return provider_class(entry.provider_id, config)

    def problems(self, settings: Settings) -> Iterator[tuple[Place, str]]:
        """Returns what is wrong with the configured providers, and where: a check for `load_settings`."""
        entries: Sequence[ProviderSettings] = getattr(settings.providers, self._service)
        for index, entry in enumerate(entries):
            place: Place = ("providers", self._service, index)
            if entry.provider_type not in self._classes:
                yield (*place, "provider_type"), self._unknown(entry.provider_type)
                continue
            try:
                provider_class = self._class_of(entry.provider_type)
                provider_class.Config.model_validate(entry.config)
            except ModuleNotFoundError as error:
                yield (*place, "provider_type"), self._missing(error)
            except ValidationError as error:
                for inner, expected in problems_of(error, self._class_of(entry.provider_type).Config):
                    yield (*place, "config", *inner), expected

    def _class_of(self, provider_type: str) -> Any:
        module_name, _, class_name = self._classes[provider_type].partition(":")
        return getattr(import_module(module_name), class_name)

    def _unknown(self, provider_type: str) -> str:
        return f"{provider_type!r} is unknown; there are: {', '.join(sorted(self._classes))}"

    def _missing(self, error: ModuleNotFoundError) -> str:
        if (error.name or "").startswith("turnwire"):
            raise error
        return f"needs the package {error.name}: install `turnwire[{self._service.replace('_', '-')}]`"


def _dotted(place: Place) -> str:
    return ".".join(str(part) for part in place)
