"""Settings: a wrong file is refused with key, line and what was expected; the environment goes on top."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.authority import Authority
from tests.runtime.serving import ROOT
from turnwire.inference import providers
from turnwire.runtime.directory import Directory
from turnwire.runtime.settings import (
    Settings,
    SettingsError,
    find_settings_file,
    load_settings,
    settings_schema,
)

EXAMPLES = ROOT / "examples" / "settings"
SECRET = "hunter2-hunter2-hunter2"


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "turnwire.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _refused(tmp_path: Path, text: str, environ: dict[str, str] | None = None, **more: Any) -> SettingsError:
    path = _file(tmp_path, text)
    with pytest.raises(SettingsError) as refused:
        load_settings(path, environ or {}, **more)
    return refused.value


# Wrong files


@pytest.mark.parametrize(
    ("text", "line", "key", "expected"),
    [
        ("listen:\n  prot_offset: 1\n", 2, "listen.prot_offset", "is no setting; did you mean 'port_offset'?"),
        ("\nlisten_on: {}\n", 2, "listen_on", "is no setting; did you mean 'listen'?"),
        ("zzz: 1\n", 1, "zzz", "is no setting; there are: listen, addresses, data_dir"),
        ("listen:\n  port_offset: many\n", 2, "listen.port_offset", "valid integer"),
        ("listen:\n  port_offset: 1.5\n", 2, "listen.port_offset", "valid integer"),
        ("listen:\n  port_offset: -1\n", 2, "listen.port_offset", "greater than or equal to 0"),
        ("listen:\n  port_offset: 20000\n", 2, "listen.port_offset", "less than or equal to 15000"),
        ("listen: 5\n", 1, "listen", "is a mapping"),
        ("listen: [127.0.0.1]\n", 1, "listen", "is a mapping"),
        ("reflection: perhaps\n", 1, "reflection", "valid boolean"),
        ("telemetry:\n  log_level: loud\n", 2, "telemetry.log_level", "'debug', 'info', 'warning' or 'error'"),
        ("telemetry:\n  otlp_endpoint: collector:4317\n", 2, "telemetry.otlp_endpoint", "pattern '^https?://"),
        ("store:\n  url: mysql://db\n", 2, "store.url", "is `sqlite` or begins with `postgresql://`"),
        ("addresses:\n  agnet: a:1\n", 2, "addresses.agnet", "'agent', 'inference'"),
        ("addresses:\n  agent: 5\n", 2, "addresses.agent", "valid string"),
        ("access:\n  api_keys: ann\n", 2, "access.api_keys", "is a list"),
        ("access:\n  api_keys:\n    - name: ann\n", 3, "access.api_keys[0]", "set either `key` or `sha256`"),
        ("access:\n  api_keys:\n    - {key: 0123456789abcdef}\n", 3, "access.api_keys[0].name", "is required"),
        (
            "access:\n  api_keys:\n    - {name: ann, key: 0123456789abcdef}\n    - name: bob\n      roles: [root]\n",
            5,
            "access.api_keys[1].roles[0]",
            "'admin', 'user' or 'viewer'",
        ),
        ("tls:\n  certificate: x.pem\n", 1, "tls", "`certificate` and `key` go together"),
        ("agent:\n  heartbeat_seconds: 0\n", 2, "agent.heartbeat_seconds", "greater than 0"),
        ("limits:\n  message_bytes: 10\n", 2, "limits.message_bytes", "greater than or equal to 1024"),
        ("providers:\n  inference:\n    - {}\n", 3, "providers.inference[0].provider_id", "is required"),
        (
            "providers:\n  inference:\n    - provider_id: a b\n      provider_type: inline::x\n",
            3,
            "providers.inference[0].provider_id",
            "pattern",
        ),
        (
            "providers:\n  inference:\n    - provider_id: a\n      provider_type: openai\n",
            4,
            "providers.inference[0].provider_type",
            "(inline|remote)::",
        ),
        (
            "providers:\n  safety:\n  - {provider_id: a, provider_type: 'inline::x'}\n"
            "  - {provider_id: a, provider_type: 'inline::y'}\n",
            1,
            "providers",
            "safety: the provider_id 'a' is there twice",
        ),
        ("listen:\n  host: a\nlisten:\n  host: b\n", 3, "listen", "is there twice, first in line 1"),
        ("- listen\n", 1, "", "is a mapping of sections"),
        ("just text\n", 1, "", "is a mapping of sections"),
        ("listen:\n  host: [\n", 3, "", "is no YAML"),
        ("listen:\n\thost: a\n", 2, "", "is no YAML"),
        ("listen: &a {host: x}\nstore: *b\n", 2, "", "is no YAML"),
        ("listen: !!python/object:os.system {}\n", 1, "", "is no YAML"),
        ("? [a, b]\n: 1\n", 1, "", "is no YAML"),
        ("1: x\n", 1, "1", "is no setting"),
        ("data_dir: ${env.NOT_SET}\n", 1, "data_dir", "variable NOT_SET is not set, and there is no default"),
        ("store: {url: '${env.DB:mysql://}'}\n", 1, "store.url", "is `sqlite` or begins"),
    ],
)
def test_a_wrong_file_is_refused_with_key_line_and_what_was_expected(
    tmp_path: Path, text: str, line: int, key: str, expected: str
):
    error = _refused(tmp_path, text)
    assert (key, line) == (error.key, error.line), error
    assert expected in error.expected
    assert str(error).startswith(f"{tmp_path / 'turnwire.yaml'}, line {line}: {key}")


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"listen: \xff", "cannot be read"), (b"listen: \x01", "is no YAML"), (b"[" * 5000, "nested too deep")],
)
def test_what_is_no_text_is_refused_in_words(tmp_path: Path, content: bytes, told: str):
    path = tmp_path / "turnwire.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=told):
        load_settings(path, {})


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(SettingsError, match=r"none\.yaml: cannot be read"):
        load_settings(tmp_path / "none.yaml", {})
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(tmp_path, {})


@pytest.mark.parametrize(
    "text",
    [
        f"access:\n  mesh_secret: [{SECRET}]\n",
        f"access:\n  api_keys: [{{name: a, key: [{SECRET}]}}]\n",
        f"access:\n  api_keys: [{{name: a, key: {SECRET}, sha256: {SECRET}}}]\n",
        "access:\n  api_keys: [{name: a, key: hunter2}]\n",
        "access: {mesh_secret: ['${env.SECRET}']}\n",
        f"store: {{url: 'mysql://root:{SECRET}@db'}}\n",
    ],
)
def test_a_refusal_shows_no_secret(tmp_path: Path, text: str):
    error = _refused(tmp_path, text, {"SECRET": SECRET})
    assert "hunter2" not in str(error)
    assert error.__suppress_context__


def test_a_refused_variable_shows_no_secret(tmp_path: Path):
    error = _refused(tmp_path, "", {"TURNWIRE_ACCESS_API_KEYS": json.dumps([{"name": "a", "key": [SECRET]}])})
    assert SECRET not in str(error)


# What is in the file


def test_variables_are_put_in_with_their_defaults(tmp_path: Path):
    path = _file(
        tmp_path,
        "data_dir: ${env.HOME_DIR}/data\n"
        "listen: {port_offset: '${env.OFFSET:0}', host: '${env.HOST:127.0.0.1}'}\n"
        "reflection: ${env.REFLECT:false}\n"
        "agent: {heartbeat_seconds: '${env.BEAT:2.5}', assistant: {model: '${env.MODEL:}'}}\n"
        "telemetry: {otlp_endpoint: '${env.OTLP:null}'}\n"
        "store: {url: 'postgresql://${env.WHO:me}@${env.WHERE:db}'}\n",
    )
    settings = load_settings(path, {"HOME_DIR": "/home/ann", "OFFSET": "1000", "WHERE": "elsewhere"})
    assert Path("/home/ann/data") == settings.data_dir
    assert (1000, "127.0.0.1") == (settings.listen.port_offset, settings.listen.host)
    assert settings.reflection is False
    assert (2.5, "") == (settings.agent.heartbeat_seconds, settings.agent.assistant.model)
    assert settings.telemetry.otlp_endpoint is None
    assert "postgresql://me@elsewhere" == settings.store.url


def test_a_key_that_consists_of_digits_stays_a_key(tmp_path: Path):
    path = _file(tmp_path, "access: {api_keys: [{name: ann, key: '${env.KEY}'}], mesh_secret: '${env.SECRET}'}\n")
    settings = load_settings(path, {"KEY": "00123456789012345678", "SECRET": "true"})
    assert "00123456789012345678" == settings.access.api_keys[0].key
    assert "true" == settings.access.mesh_secret


def test_what_a_variable_holds_is_not_read_as_yaml(tmp_path: Path):
    path = _file(tmp_path, "data_dir: '${env.WHERE}'\n")
    assert Path("a: {b") == load_settings(path, {"WHERE": "a: {b"}).data_dir
    assert Path("${env.OTHER}") == load_settings(path, {"WHERE": "${env.OTHER}"}).data_dir


def test_an_empty_file_is_the_defaults(tmp_path: Path):
    assert Settings() == load_settings(_file(tmp_path, "# nothing\n"), {})
    assert Settings() == load_settings(_file(tmp_path, "listen: {}\n"), {})


def test_the_file_is_found_as_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert find_settings_file(None, {}) is None
    here = _file(tmp_path, "")
    assert here.name == str(find_settings_file(None, {}))
    assert Path("/named.yaml") == find_settings_file(None, {"TURNWIRE_CONFIG": "/named.yaml"})
    assert Path("/given.yaml") == find_settings_file(Path("/given.yaml"), {"TURNWIRE_CONFIG": "/named.yaml"})


# The environment


@pytest.mark.parametrize(
    ("variable", "text", "path", "value"),
    [
        ("TURNWIRE_LISTEN_HOST", "0.0.0.0", "listen.host", "0.0.0.0"),
        ("TURNWIRE_LISTEN_PORT_OFFSET", "1000", "listen.port_offset", 1000),
        ("TURNWIRE_REFLECTION", "false", "reflection", False),
        ("TURNWIRE_AGENT_HEARTBEAT_SECONDS", "0.5", "agent.heartbeat_seconds", 0.5),
        ("TURNWIRE_DATA_DIR", "/data", "data_dir", Path("/data")),
        ("TURNWIRE_TELEMETRY_LOG_LEVEL", "debug", "telemetry.log_level", "debug"),
        ("TURNWIRE_TELEMETRY_OTLP_ENDPOINT", "http://c:4317", "telemetry.otlp_endpoint", "http://c:4317"),
        ("TURNWIRE_ACCESS_MESH_SECRET", "12345", "access.mesh_secret", "12345"),
        ("TURNWIRE_ADDRESSES", '{"agent": "a:1"}', "addresses", {"agent": "a:1"}),
        ("TURNWIRE_STORE_URL", "postgres://db", "store.url", "postgres://db"),
        ("TURNWIRE_LIMITS_CONCURRENT_CALLS", "7", "limits.concurrent_calls", 7),
    ],
)
def test_each_kind_of_field_has_a_variable_that_goes_before_the_file(
    tmp_path: Path, variable: str, text: str, path: str, value: object
):
    file = _file(tmp_path, "listen: {host: 127.0.0.9, port_offset: 5}\nagent: {heartbeat_seconds: 9}\n")
    found: Any = load_settings(file, {variable: text})
    for part in path.split("."):
        found = getattr(found, part)
    assert value == found


def _leaves(schema: dict[str, Any], properties: dict[str, Any], path: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Returns the paths of all fields that hold no section."""
    found: list[tuple[str, ...]] = []
    for name, each in properties.items():
        reference = each.get("$ref", "").rpartition("/")[2]
        inner = schema["$defs"].get(reference, {}).get("properties")
        found += _leaves(schema, inner, (*path, name)) if inner else [(*path, name)]
    return found


def test_every_field_has_a_variable():
    """The variables are those of the schema: a field that is added has one, and this test needs no change."""
    schema = settings_schema()
    fields = _leaves(schema, schema["properties"], ())
    assert len(fields) > 25
    for field in fields:
        variable = "TURNWIRE_" + "_".join(field).upper()
        # A value that no field takes: that it is refused shows that the variable is read.
        with pytest.raises(SettingsError, match=re.escape(f"the environment variable {variable}: {'.'.join(field)}")):
            load_settings(None, {variable: '{"no": ["field", "takes", "this"]}'})


def test_the_schema_says_what_is_written_below_each_field():
    schema = settings_schema()
    expected = "The address to bind. Anything but loopback needs `access` to be configured."
    assert expected == schema["$defs"]["ListenSettings"]["properties"]["host"]["description"]
    assert "Where embedded stores and logs lie." == schema["properties"]["data_dir"]["description"]
    untold = [
        f"{name}.{field}"
        for name, section in schema["$defs"].items()
        for field, each in section.get("properties", {}).items()
        if "description" not in each and "$ref" not in each
    ]
    # Four lists, of which the section says what they are.
    assert ["ProvidersSettings"] * 4 == [each.partition(".")[0] for each in untold]


def test_lists_are_written_as_json_however_deep():
    keys = [{"name": "ann", "key": "0123456789abcdef", "roles": ["admin", "viewer"]}]
    entries = [{"provider_id": "gpu", "provider_type": "remote::openai", "config": {"models": [{"a": [1]}]}}]
    settings = load_settings(
        None,
        {"TURNWIRE_ACCESS_API_KEYS": json.dumps(keys), "TURNWIRE_PROVIDERS_INFERENCE": json.dumps(entries)},
    )
    assert ["admin", "viewer"] == settings.access.api_keys[0].roles
    assert {"models": [{"a": [1]}]} == settings.providers.inference[0].config


@pytest.mark.parametrize(
    ("variable", "text", "key", "expected"),
    [
        ("TURNWIRE_LISTEN_PORT_OFFSET", "many", "listen.port_offset", "valid integer"),
        ("TURNWIRE_ACCESS_API_KEYS", "ann", "access.api_keys", "is a list, written as JSON"),
        ("TURNWIRE_ACCESS_API_KEYS", '[{"name": ', "access.api_keys", "is a list, written as JSON"),
        ("TURNWIRE_ACCESS_API_KEYS", '[{"nam": "x"}]', "access.api_keys[0].nam", "did you mean 'name'?"),
        ("TURNWIRE_ADDRESSES", "agent=a:1", "addresses", "is a mapping, written as JSON"),
        ("TURNWIRE_REFLECTION", "", "reflection", "valid boolean"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, variable: str, text: str, key: str, expected: str):
    error = _refused(tmp_path, "listen: {port_offset: 1}\n", {variable: text})
    assert f"the environment variable {variable}" == error.source
    assert key == error.key
    assert error.line is None
    assert expected in error.expected


def test_a_variable_does_not_hide_a_section_that_is_none(tmp_path: Path):
    error = _refused(tmp_path, "listen: 5\n", {"TURNWIRE_LISTEN_HOST": "127.0.0.1"})
    assert ("listen", 1, "is a mapping") == (error.key, error.line, error.expected)


def test_a_service_is_found_by_variable_settings_or_port():
    settings = Settings.model_validate({"addresses": {"inference": "dns:///gpu:1"}, "listen": {"port_offset": 10}})
    environ = {"TURNWIRE_AGENT_ADDRESS": "elsewhere:2"}
    directory = Directory(settings, own_service="agent", mesh_secret=None, environ=environ)
    assert ["elsewhere:2", "dns:///gpu:1", "127.0.0.1:50063"] == [
        directory.address(service) for service in ("agent", "inference", "safety")
    ]


# Providers


@pytest.mark.parametrize(
    ("config", "line", "key", "expected"),
    [
        ("{base_ulr: 'http://a'}", 5, "config.base_ulr", "is no setting; did you mean 'base_url'?"),
        ("{}", 5, "config.base_url", "is required"),
        ("\n        base_url: gpu:8000", 6, "config.base_url", "pattern"),
        ("\n        base_url: http://gpu\n        connect_seconds: 0", 7, "config.connect_seconds", "greater than 0"),
        (
            "\n        base_url: http://gpu\n        models:\n        - {mdl: a}",
            8,
            "config.models[0].mdl",
            "no setting",
        ),
    ],
)
def test_a_wrong_configuration_of_a_provider_is_refused_with_its_line(
    tmp_path: Path, config: str, line: int, key: str, expected: str
):
    before = "providers:\n  inference:\n    - provider_id: gpu\n      provider_type: remote::openai\n"
    text = f"{before}      config: {config}\n"
    error = _refused(tmp_path, text, checks=(providers.problems,))
    assert (f"providers.inference[0].{key}", line) == (error.key, error.line), error
    assert expected in error.expected


def test_an_unknown_provider_is_refused_with_those_there_are(tmp_path: Path):
    text = "providers:\n  inference:\n    - provider_id: gpu\n      provider_type: remote::opneai\n"
    error = _refused(tmp_path, text, checks=(providers.problems,))
    assert ("providers.inference[0].provider_type", 4) == (error.key, error.line)
    assert "'remote::opneai' is unknown; there are: inline::llama-cpp" in error.expected
    load_settings(tmp_path / "turnwire.yaml", {})  # nothing but the hook knows the providers


def test_a_provider_of_a_variable_is_refused_by_its_name(tmp_path: Path):
    entries = json.dumps([{"provider_id": "gpu", "provider_type": "remote::openai", "config": {"base_url": 5}}])
    error = _refused(tmp_path, "", {"TURNWIRE_PROVIDERS_INFERENCE": entries}, checks=(providers.problems,))
    assert "the environment variable TURNWIRE_PROVIDERS_INFERENCE" == error.source
    assert "providers.inference[0].config.base_url" == error.key


# Examples


def _environment(tmp_path: Path) -> dict[str, str]:
    authority = Authority(tmp_path)
    certificate, key = authority.pair("server")
    for file, name in ((certificate, "tls.crt"), (key, "tls.key"), (authority.certificate, "ca.crt")):
        (tmp_path / name).write_bytes(file.read_bytes())
    key_of = "a key of sufficient length for {}".format
    return {
        "TURNWIRE_TLS": str(tmp_path),
        "TURNWIRE_DATABASE": "postgresql://turnwire@db/turnwire",
        **{name: key_of(name) for name in ("TURNWIRE_ANN_KEY", "TURNWIRE_CI_KEY", "TURNWIRE_GATEWAY_KEY")},
        **{name: key_of(name) for name in ("TURNWIRE_OPERATOR_KEY", "TURNWIRE_SECRET")},
        **{name: key_of(name) for name in ("TURNWIRE_S3_KEY", "TURNWIRE_S3_SECRET")},
    }


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.name)
def test_the_examples_are_good(file: Path, tmp_path: Path):
    settings = load_settings(file, _environment(tmp_path), checks=(providers.problems,))
    assert settings.providers.inference


def test_there_are_the_three_examples():
    assert ["cluster.yaml", "laptop.yaml", "vllm-postgresql.yaml"] == sorted(file.name for file in EXAMPLES.iterdir())


def test_the_laptop_is_what_holds_without_a_file():
    laptop = load_settings(EXAMPLES / "laptop.yaml", {})
    # Its providers spell out what their own defaults are.
    assert Settings() == laptop.model_copy(update={"providers": Settings().providers})
    assert [entry.provider_type for entry in Settings().providers.inference] == [
        entry.provider_type for entry in laptop.providers.inference
    ]
