"""The settings of a mesh: one file, each field overridable by environment."""

from turnwire.runtime.settings.errors import SettingsError
from turnwire.runtime.settings.loading import (
    Check,
    Place,
    find_settings_file,
    load_settings,
    problems_of,
)
from turnwire.runtime.settings.models import (
    PORTS,
    AccessSettings,
    AgentSettings,
    ApiKeySettings,
    ArtifactSettings,
    AssistantSettings,
    GatewaySettings,
    LimitSettings,
    ListenSettings,
    ProviderSettings,
    ProvidersSettings,
    SandboxSettings,
    Settings,
    StoreSettings,
    TelemetrySettings,
    TlsSettings,
)
from turnwire.runtime.settings.schema import settings_schema

__all__ = [
    "PORTS",
    "AccessSettings",
    "AgentSettings",
    "ApiKeySettings",
    "ArtifactSettings",
    "AssistantSettings",
    "Check",
    "GatewaySettings",
    "LimitSettings",
    "ListenSettings",
    "Place",
    "ProviderSettings",
    "ProvidersSettings",
    "SandboxSettings",
    "Settings",
    "SettingsError",
    "StoreSettings",
    "TelemetrySettings",
    "TlsSettings",
    "find_settings_file",
    "load_settings",
    "problems_of",
    "settings_schema",
]
