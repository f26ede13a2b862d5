"""`turnwire doctor`: each check against the real cause that it is there for."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.command import command, environment, listener, turnwire
from tests.cli.conftest import start_mesh
from turnwire.cli.checks import engine, machine
from turnwire.cli.services import SERVICES
from turnwire.runtime.settings import PORTS, Settings
from turnwire.testing.mesh import free_port_offset

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from turnwire.testing.postgres import Postgres

_SCRIPTED = 'providers: {inference: [{provider_id: scripted, provider_type: "inline::scripted"}]}\n'
_ROOT = os.geteuid() == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose settings need no weights."""
    (tmp_path / "turnwire.yaml").write_text(_SCRIPTED, encoding="utf-8")
    return tmp_path


def _findings(out: str) -> dict[str, dict[str, str]]:
    return {each["check"]: each for each in json.loads(out)["findings"]}


def _doctor(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> dict[str, dict[str, str]]:
    offset = free_port_offset(SERVICES)
    ended = turnwire("doctor", "--json", "--port-offset", str(offset), *arguments, cwd=folder, env=env)
    return _findings(ended.out)


def _problem(finding: dict[str, str], said: str, todo: str) -> None:
    assert "problem" == finding["state"], finding
    assert said in finding["said"]
    assert todo in finding["todo"]


def _within(wrapper: str, folder: Path, *arguments: str) -> dict[str, dict[str, str]]:
    """Runs doctor in namespaces of its own, after `wrapper` has changed them."""
    made = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip("this machine lets nobody make namespaces")
    words = command("doctor", "--json", "--port-offset", str(free_port_offset(SERVICES)), *arguments)
    script = f'set -e\n{wrapper}\nexec "$@"'
    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *words],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.stdout, ended.stderr
    return _findings(ended.stdout)


def test_a_sound_machine_has_no_problems(folder: Path):
    arguments = ("--port-offset", str(free_port_offset(SERVICES)))
    ended = turnwire("doctor", *arguments, cwd=folder)
    assert 0 == ended.code
    assert "no problems found" == ended.out.splitlines()[-1]
    found = turnwire("doctor", "--json", *arguments, cwd=folder).json()
    assert found["ok"]
    states = {each["check"]: each["state"] for each in found["findings"]}
    sound = ("python", "settings", "data directory", "ports", "stores", "engine", "weights", "weights disk", "memory")
    assert dict.fromkeys(sound, "ok") == {check: states[check] for check in sound}
    assert "note" == states["mesh"]
    # Looking leaves nothing behind.
    assert ["turnwire.yaml"] == [path.name for path in folder.iterdir()]


def test_a_problem_is_told_with_what_to_do_and_ends_with_1(folder: Path):
    (folder / "turnwire.yaml").write_text("listen: {prot_offset: 1}\n", encoding="utf-8")
    ended = turnwire("doctor", cwd=folder)
    assert 1 == ended.code
    lines = ended.out.splitlines()
    wrong = next(index for index, line in enumerate(lines) if line.startswith("problem  settings: "))
    assert "turnwire.yaml, line 1: listen.prot_offset: is no setting; did you mean 'port_offset'?" in lines[wrong]
    assert lines[wrong + 1].startswith("         → ")
    assert lines[-1].endswith(" found")


def test_an_old_python_is_told():
    finding = machine.python((3, 10))
    assert "problem" == finding.state
    assert "this is Python 3.10" in finding.said
    assert machine.OLDEST_PYTHON == (3, 11)


def test_a_wrong_configuration_of_a_provider_is_told(folder: Path):
    (folder / "turnwire.yaml").write_text(_SCRIPTED.replace('scripted"}', 'scripted", config: {ruls: []}}'))
    _problem(_doctor(folder)["settings"], "providers.inference[0].config.ruls", "config schema")


def _on(url: str, folder: Path) -> dict[str, str]:
    (folder / "turnwire.yaml").write_text(f"{_SCRIPTED}store: {{url: '{url}'}}\n", encoding="utf-8")
    return _doctor(folder)["stores"]


def test_a_postgresql_that_does_not_answer_is_told_without_its_password(folder: Path):
    found = _on("postgresql://me:s3cret@127.0.0.1:1/turnwire", folder)
    _problem(found, "PostgreSQL at 127.0.0.1:1, database turnwire", "store.url")
    assert "is PostgreSQL running there" in found["said"]
    assert "s3cret" not in str(found)


def test_what_is_in_postgresql_is_told(folder: Path, postgres: str, postgres_server: Postgres):
    assert "agent not there yet" in _on(postgres, folder)["said"]
    turnwire("store", "migrate", "inference", cwd=folder)
    found = _on(postgres, folder)
    assert "ok" == found["state"]
    assert "inference 1" in found["said"]
    database = postgres.partition("?")[0].rpartition("/")[2]
    postgres_server.psql("INSERT INTO turnwire_inference.schema_version VALUES (99)", database)
    _problem(_on(postgres, folder), "has schema version 99, and this Turnwire knows up to", "store.url")


def test_a_taken_port_is_told_with_who_has_it(folder: Path):
    offset = free_port_offset(SERVICES)
    port = PORTS["safety"] + offset + 100
    with listener(port) as pid:
        found = turnwire("doctor", "--json", "--port-offset", str(offset), cwd=folder)
    told = f"port {port} of safety is taken by process {pid} ({sys.executable}"
    _problem(_findings(found.out)["ports"], told, "--port-offset")
    assert 1 == found.code


@contextmanager
def _small_disk(place: Path, size: str) -> Generator[Path]:
    """Gives a disk of its own, which is full but for some bytes."""
    if not _ROOT:
        pytest.skip("only root mounts a disk")
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=False)
    if mounted.returncode != 0:
        pytest.skip("this machine lets nobody mount a disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_full_disk_of_the_data_is_told(folder: Path):
    with _small_disk(folder / "disk", "8m") as disk:
        found = _doctor(folder, "--data-dir", str(disk / "data"))["data directory"]
    _problem(found, "is full: only 8.4 MB free", "--data-dir")


def test_a_disk_without_inodes_is_told(folder: Path):
    with _small_disk(folder / "disk", "200m,nr_inodes=2") as disk:
        (disk / "one").touch()
        found = _doctor(folder, "--data-dir", str(disk / "data"))["data directory"]
    _problem(found, "its inodes are used up", "--data-dir")


def test_a_full_disk_of_the_weights_is_told(folder: Path):
    (folder / "turnwire.yaml").unlink()
    with _small_disk(folder / "disk", "8m") as disk:
        found = _doctor(folder, env={"TURNWIRE_WEIGHTS_DIR": str(disk)})
    _problem(
        found["weights disk"], "too full for the weights: 582.7 MB are missing, 8.4 MB free", "TURNWIRE_WEIGHTS_DIR"
    )


def test_a_data_directory_that_cannot_be_written_is_told(folder: Path):
    found = _within("mkdir -p fixed && mount -t tmpfs -o ro tmpfs fixed", folder, "--data-dir", "fixed/data")
    _problem(found["data directory"], "cannot be written by this user", "--data-dir")


def test_missing_weights_are_told(folder: Path):
    (folder / "turnwire.yaml").unlink()
    found = _doctor(folder, env={"TURNWIRE_WEIGHTS_DIR": str(folder / "none")})["weights"]
    _problem(
        found, "the weights of qwen2.5-coder-0.5b are not ready", "`turnwire models pull qwen2.5-coder-0.5b minilm`"
    )


def test_a_missing_file_of_a_model_is_told(folder: Path):
    entry = '{provider_id: a, provider_type: "inline::llama-cpp", config: {models: [{model_id: m, path: /no/m.gguf}]}}'
    (folder / "turnwire.yaml").write_text(f"providers: {{inference: [{entry}]}}\n", encoding="utf-8")
    _problem(_doctor(folder)["weights"], "there is no file /no/m.gguf for m", "correct `path`")


def test_too_little_memory_is_told(folder: Path):
    (folder / "turnwire.yaml").unlink()
    weights = folder / "model.gguf"
    with weights.open("wb") as file:
        file.truncate(400_000_000)
    config = f"{{models: [{{model_id: m, path: {weights}}}]}}"
    entry = f'{{provider_id: a, provider_type: "inline::llama-cpp", config: {config}}}'
    (folder / "turnwire.yaml").write_text(f"providers: {{inference: [{entry}]}}\n", encoding="utf-8")
    assert "ok" == _doctor(folder)["memory"]["state"]
    found = _within("ulimit -v 1200000", folder)["memory"]
    _problem(found, "1.23 GB free (by `ulimit -v`)", "lower `parallel` or `context_tokens`")


def test_the_limit_of_a_control_group_counts_but_not_its_cache(folder: Path):
    if "memory" not in Path("/proc/self/cgroup").read_text(encoding="utf-8"):
        pytest.skip("the control groups of this machine are of version 2 only")
    limit = """
mount -t tmpfs tmpfs /sys/fs/cgroup && mkdir /sys/fs/cgroup/memory && cd /sys/fs/cgroup/memory
echo 1000000000 >memory.limit_in_bytes && echo 900000000 >memory.usage_in_bytes
printf 'active_file 100000000\ninactive_file 200000000\nrss 600000000\n' >memory.stat
cd "$OLDPWD"
"""
    found = _within(limit, folder)["memory"]
    _problem(found, "about 600.0 MB needed, 400.0 MB free (of the control group)", "end other programs")


def test_a_missing_library_of_the_engine_is_told_with_its_package(folder: Path):
    (folder / "turnwire.yaml").unlink()
    libraries = Path("/usr/lib/x86_64-linux-gnu")
    if not (_ROOT and (libraries / "libgomp.so.1").exists()):
        pytest.skip("only root hides libgomp from a process, where Debian has it")
    # A whiteout over the folder of the libraries: in this namespace, libgomp is not installed.
    hide = f"""
mkdir layer && mount -t tmpfs tmpfs layer && mkdir layer/upper layer/work
mknod layer/upper/libgomp.so.1 c 0 0
mount -t overlay overlay -o lowerdir={libraries},upperdir=layer/upper,workdir=layer/work {libraries}
"""
    found = _within(hide, folder)["engine"]
    _problem(
        found, "xllamacpp cannot be imported: ImportError: libgomp.so.1: cannot open", "apt-get install -y libgomp1"
    )


def test_a_missing_package_of_a_provider_is_told(folder: Path):
    (folder / "turnwire.yaml").unlink()
    # `-S` would hide all packages: only this one is hidden, by a path hook in a folder of its own.
    hook = folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import sys, importlib.machinery as m\n"
        "class Hidden(m.PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        "        return None if name == 'xllamacpp' else m.PathFinder.find_spec(name, path, target)\n"
        "sys.meta_path = [Hidden if each is m.PathFinder else each for each in sys.meta_path]\n",
        encoding="utf-8",
    )
    found = _doctor(folder, env={"PYTHONPATH": f"{hook}:{environment()['PYTHONPATH']}"})["engine"]
    _problem(found, "the package xllamacpp is not installed", "pip install 'turnwire[inference]'")


def test_forbidden_user_namespaces_are_a_note(folder: Path):
    made = subprocess.run(["unshare", "-Ur", "true"], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip("this machine lets nobody make user namespaces: the check says so of the machine itself")
    words = ["unshare", "-Ur", "sh", "-c", 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"', "sh"]
    ended = subprocess.run(
        [*words, *command("doctor", "--json", "--port-offset", str(free_port_offset(SERVICES)))],
        cwd=folder,
        env=environment(),
        capture_output=True,
        check=False,
    )
    found = _findings(ended.stdout.decode())["user namespaces"]
    assert "note" == found["state"]
    assert "only where Landlock can hold it" in found["said"]
    assert "sysctl user.max_user_namespaces" in found["todo"]
    assert 0 == ended.returncode


def _hub(endpoint: str, folder: Path) -> dict[str, str]:
    return _doctor(folder, env={"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": ""})["hub"]


def test_a_hub_that_cannot_be_reached_is_a_note(folder: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found = _hub(f"http://127.0.0.1:{free.getsockname()[1]}", folder)
    assert "note" == found["state"]
    assert "cannot be reached ([Errno 111] Connection refused)" in found["said"]


def test_a_hub_that_answers_is_reached_whatever_it_says(folder: Path):
    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        found = _hub(f"http://127.0.0.1:{server.server_port}", folder)
        server.shutdown()
    assert "ok" == found["state"]


def _store(path: Path, version: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE schema_version (version BIGINT NOT NULL)")
        connection.execute("INSERT INTO schema_version (version) VALUES (?)", (version,))


def test_a_store_of_a_newer_version_is_told(folder: Path):
    _store(folder / ".turnwire" / "inference.sqlite3", 99)
    found = _doctor(folder)["stores"]
    _problem(found, "inference.sqlite3 has schema version 99, and this Turnwire knows up to", "--data-dir")


def test_a_store_that_is_none_is_told(folder: Path):
    path = folder / ".turnwire" / "agent.sqlite3"
    path.parent.mkdir()
    path.write_bytes(b"no database" * 500)
    _problem(_doctor(folder)["stores"], "cannot be read: file is not a database", "put back a copy")


@pytest.mark.mesh
def test_a_store_that_another_process_has_is_told(folder: Path):
    code = """
import asyncio, sys
from pathlib import Path
from turnwire.agent.store.schema import SCHEMA
from turnwire.runtime.storage import SqliteStore

async def hold():
    store = await SqliteStore.open(Path(sys.argv[1]), SCHEMA)
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await store.close()

asyncio.run(hold())
"""
    path = folder / ".turnwire" / "agent.sqlite3"
    words = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        found = _doctor(folder)["stores"]
        holder.communicate()
    _problem(found, f"agent.sqlite3 is locked by process {holder.pid} ({sys.executable}", "end that process")
    assert "ok" == _doctor(folder)["stores"]["state"]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A mesh that wants a key."""
    keys = [
        {"name": "ada", "key": "ada-has-this-key-1", "roles": ["user"]},
        {"name": "eve", "key": "eve-has-this-key-1", "roles": ["viewer"]},
    ]
    secret = "the-secret-of-this-mesh"
    yield from start_mesh(tmp_path_factory.mktemp("guarded"), access={"api_keys": keys, "mesh_secret": secret})


def _asked(guarded: Any, key: str) -> tuple[int, dict[str, dict[str, str]]]:
    offset = free_port_offset(SERVICES)
    env = {"TURNWIRE_API_KEY": key} if key else None
    ended = guarded.turnwire("doctor", "--json", "--port-offset", str(offset), env=env)
    return ended.code, _findings(ended.out)


@pytest.mark.mesh
def test_a_key_that_the_mesh_does_not_know_is_told(guarded: Any):
    code, found = _asked(guarded, "a-key-of-somebody-else")
    assert (1, "ok") == (code, found["services"]["state"])
    _problem(found["key"], "does not know the key in TURNWIRE_API_KEY", "a key of `access.api_keys`")
    refused = guarded.turnwire("ask", "hello", env={"TURNWIRE_API_KEY": "a-key-of-somebody-else"})
    assert 1 == refused.code
    assert "TURNWIRE_API_KEY holds another key." in refused.err


@pytest.mark.mesh
def test_a_missing_key_is_told(guarded: Any):
    _problem(_asked(guarded, "")[1]["key"], "the mesh wants a key and there is none", "set TURNWIRE_API_KEY")
    refused = guarded.turnwire("agents", "list")
    assert 1 == refused.code
    assert "The command line sends the key in TURNWIRE_API_KEY." in refused.err
    states = {each["service"]: each for each in json.loads(guarded.turnwire("status", "--json").out)["services"]}
    assert ("up", "it refuses the key: set TURNWIRE_API_KEY") == (states["agent"]["state"], states["agent"]["detail"])


@pytest.mark.mesh
def test_a_good_key_is_told_with_its_owner(guarded: Any):
    _, found = _asked(guarded, "ada-has-this-key-1")
    assert ("ok", "ada, tenant default, user") == (found["key"]["state"], found["key"]["said"])
    assert "ok" == found["first token"]["state"]


@pytest.mark.mesh
def test_a_service_that_is_down_is_told(tmp_path: Path):
    for mesh in start_mesh(tmp_path):
        mesh.run(mesh.running.kill("inference"))
        ended = mesh.turnwire("doctor", "--json", "--port-offset", str(free_port_offset(SERVICES)))
        assert 1 == ended.code
        told = f"no answer from inference at {mesh.running.address('inference')}"
        _problem(_findings(ended.out)["services"], told, "`turnwire down` and `turnwire up`")


@pytest.mark.mesh
def test_an_agent_that_does_not_answer_is_told(tmp_path: Path):
    provider = {
        "provider_id": "scripted",
        "provider_type": "inline::scripted",
        "config": {"rules": [{"error": "PROVIDER_ERROR"}]},
    }
    for mesh in start_mesh(tmp_path, providers={"inference": [provider]}):
        ended = mesh.turnwire("doctor", "--json", "--port-offset", str(free_port_offset(SERVICES)))
        assert 1 == ended.code
        _problem(_findings(ended.out)["first token"], "assistant does not answer: The provider scripted fails", "")


def test_the_need_of_memory_grows_with_the_context():
    def need(**config: Any) -> str:
        provider = {"provider_id": "a", "provider_type": "inline::llama-cpp", "config": config}
        return engine.memory(Settings.model_validate({"providers": {"inference": [provider]}})).said.partition(
            " needed"
        )[0]

    assert need(parallel=1) != need(parallel=4)
