"""`./dev` as a newcomer meets it: over a checkout in small, whose packages are in the folder itself."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.packaging.processes import pid_in
from tools.dev.layout import ROOT

# Builds what the little checkout installs: a line that puts the folder on the path. It takes the place of hatchling,
# which the lock would bring.
_BACKEND = """
import pathlib, zipfile

def get_requires_for_build_editable(config_settings=None):
    return []

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    root = pathlib.Path.cwd()
    name = "turnwire-0-py3-none-any.whl"
    info = "turnwire-0.dist-info"
    files = {
        "turnwire.pth": f"{root}\\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\\nName: turnwire\\nVersion: 0\\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        f"{info}/entry_points.txt": "[console_scripts]\\nturnwire = turnwire.command:main\\n",
    }
    with zipfile.ZipFile(pathlib.Path(wheel_directory) / name, "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{path},,\\n" for path in [*files, f"{info}/RECORD"]))
    with open("installs", "a") as log:
        log.write("x\\n")
    return name
"""
_FILES = {
    "pyproject.toml": """
        [build-system]
        requires = []
        build-backend = "backend"
        backend-path = ["."]
        [project]
        name = "turnwire"
        version = "0"
        """,
    "backend.py": _BACKEND,
    "requirements/all.txt": "# nothing\n",
    "xllamacpp.py": "",
    "turnwire/__init__.py": "",
    "turnwire/command.py": """
        import os, sys
        def main():
            print("turnwire", *sys.argv[1:], "in", os.getcwd(), "with", os.environ.get("TURNWIRE_DATA_DIR", "-"))
        """,
    "turnwire/weights/__init__.py": "",
    "turnwire/weights/__main__.py": """
        import os
        print("weights in", os.environ.get("TURNWIRE_WEIGHTS_DIR", "the cache"))
        """,
    "tools/__init__.py": "",
    "tools/dev/__init__.py": "",
    "tools/dev/__main__.py": """
        import os, sys
        print("tools", *sys.argv[1:], "in", os.getcwd())
        """,
}
slow = pytest.mark.wheel
"""For those that make an environment: seconds each, and nothing that an everyday change would break."""
_PATH = f"{Path(sys.base_prefix) / 'bin'}:/usr/local/bin:/usr/bin:/bin"


class Checkout:
    """A little checkout with the real `./dev`."""

    def __init__(self, folder: Path) -> None:
        """Writes it into a new folder."""
        self.folder = folder
        for name, text in _FILES.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text).lstrip())
        shutil.copy(ROOT / "dev", folder / "dev")

    @property
    def dev(self) -> Path:
        return self.folder / "dev"

    @property
    def packages(self) -> Path:
        return next(self.folder.glob(".venv/lib/python*/site-packages"))

    @property
    def installs(self) -> int:
        """How many times packages were installed."""
        return len((self.folder / "installs").read_text().splitlines())

    def run(
        self, *arguments: str, cwd: Path | None = None, dev: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs `./dev` as a login shell would."""
        return subprocess.run(
            [dev or self.dev, *arguments],
            cwd=cwd or self.folder,
            env={"PATH": _PATH, "HOME": str(self.folder), **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout that is set up."""
    checkout = Checkout(tmp_path_factory.mktemp("ready") / "turnwire")
    done = checkout.run("set-up")
    assert 0 == done.returncode, done.stderr
    assert "making .venv with Python 3." in done.stderr
    assert "weights in the cache\n" == done.stdout
    return checkout


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder with the few programs that `./dev` needs to say what is missing: a system without Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "env", "dirname", "readlink", "cat", "sha256sum", "cut", "rm", "flock"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    return folder


def program(folder: Path, name: str, script: str) -> Path:
    """Writes a program into a folder."""
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)
    return path


def has_run(done: subprocess.CompletedProcess[str], *arguments: str) -> bool:
    """Returns whether the command `turnwire` was run with these arguments."""
    return done.returncode == 0 and done.stdout.splitlines()[-1].startswith(f"turnwire {' '.join(arguments)} in ")


def test_what_is_set_up_is_not_set_up_again(ready: Checkout):
    before = ready.installs
    done = ready.run("turnwire", "status", "--json")

    assert has_run(done, "status", "--json")
    assert "" == done.stderr
    assert before == ready.installs


def test_up_fetches_the_weights_first_and_runs_in_the_checkout(ready: Checkout, tmp_path: Path):
    done = ready.run("up", "--detach", cwd=tmp_path, TURNWIRE_WEIGHTS_DIR="/elsewhere")

    assert f"weights in /elsewhere\nturnwire up --detach in {ready.folder} with -\n" == done.stdout


@pytest.mark.parametrize("command", ["test", "check", "faults", "generate", "format", "lock"])
def test_the_developers_commands_run_in_the_checkout_with_their_arguments(ready: Checkout, command: str):
    done = ready.run(command, "a b", "-c", cwd=Path("/"))

    assert f"tools {command} a b -c in {ready.folder}" == done.stdout.splitlines()[-1]


def test_it_is_called_through_a_link_from_anywhere(ready: Checkout, tmp_path: Path):
    link = tmp_path / "link"
    link.symlink_to(ready.dev)
    second = tmp_path / "second"
    second.symlink_to("link")
    done = ready.run("turnwire", "x", cwd=tmp_path, dev=second)

    assert f"turnwire x in {tmp_path} with -\n" == done.stdout


def test_outside_the_checkout_its_own_running_mesh_is_meant(ready: Checkout, tmp_path: Path):
    run_file = ready.folder / ".turnwire" / "run" / "mesh.json"
    run_file.parent.mkdir(parents=True)
    run_file.touch()
    try:
        outside = ready.run("turnwire", "x", cwd=tmp_path)
        chosen = ready.run("turnwire", "x", cwd=tmp_path, TURNWIRE_DATA_DIR="/data")
        inside = ready.run("turnwire", "x", cwd=ready.folder / "tools")
    finally:
        shutil.rmtree(ready.folder / ".turnwire")

    assert outside.stdout.endswith(f" with {ready.folder}/.turnwire\n")
    assert chosen.stdout.endswith(" with /data\n")
    assert inside.stdout.endswith(f"in {ready.folder / 'tools'} with -\n")


def test_a_changed_lock_is_installed(ready: Checkout):
    before = ready.installs
    with (ready.folder / "requirements" / "all.txt").open("a") as lock:
        lock.write("# changed\n")
    done = ready.run("turnwire")

    assert 0 == done.returncode
    assert "making" not in done.stderr
    assert before + 1 == ready.installs


def test_a_package_that_pip_was_killed_over_is_installed_again(ready: Checkout):
    (ready.folder / ".venv" / ".set-up").unlink()
    half = ready.packages / "half-1.0.dist-info"
    half.mkdir()
    (half / "METADATA").write_text("Metadata-Version: 2.1\nName: half\nVersion: 1.0\n")
    moved = ready.packages / "~alf"
    moved.mkdir()
    done = ready.run("turnwire")

    assert 0 == done.returncode, done.stderr
    assert not half.exists()
    assert not moved.exists()
    assert "making" not in done.stderr


@slow
@pytest.mark.parametrize("damage", ["no pip", "no interpreter", "another place"])
def test_an_environment_that_cannot_be_gone_on_with_is_made_anew(ready: Checkout, damage: str):
    venv = ready.folder / ".venv"
    (venv / ".set-up").unlink()
    match damage:
        case "no pip":  # killed while the environment was made
            shutil.rmtree(ready.packages / "pip")
        case "no interpreter":  # the system's Python was replaced by another one
            (venv / "bin" / "python").unlink()
            (venv / "bin" / "python").symlink_to("/nowhere/python3.11")
        case _:  # a copied checkout: the scripts name the interpreter of the other one
            (venv / ".place").write_text("/elsewhere/turnwire")
    done = ready.run("turnwire", "ok")

    assert has_run(done, "ok"), done.stderr
    assert "making .venv" in done.stderr


@slow
def test_an_interpreter_that_went_away_is_noticed_though_set_up_was_complete(ready: Checkout):
    (ready.folder / ".venv" / "bin" / "python").unlink()
    done = ready.run("turnwire", "ok")

    assert has_run(done, "ok"), done.stderr
    assert "making .venv" in done.stderr


@slow
def test_a_moved_checkout_is_set_up_again(ready: Checkout, tmp_path: Path):
    moved = Checkout(tmp_path / "moved")
    shutil.copytree(ready.folder / ".venv", moved.folder / ".venv", symlinks=True)
    done = moved.run("turnwire", "ok")

    assert has_run(done, "ok"), done.stderr
    assert "making .venv" in done.stderr


@slow
def test_a_set_up_that_was_killed_is_gone_on_with(tmp_path: Path):
    checkout = Checkout(tmp_path / "turnwire")
    backend = checkout.folder / "backend.py"
    whole = backend.read_text()
    backend.write_text("import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [checkout.dev, "turnwire"], env={"PATH": _PATH}, stderr=subprocess.DEVNULL, start_new_session=True
    )
    pid_in(checkout.folder / "pid")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    backend.write_text(whole)
    done = checkout.run("turnwire", "ok")

    assert has_run(done, "ok"), done.stderr
    assert "making" not in done.stderr


@slow
def test_two_commands_at_once_set_up_once(tmp_path: Path):
    checkout = Checkout(tmp_path / "turnwire")
    environment = {"PATH": _PATH}
    running = [
        subprocess.Popen([checkout.dev, "turnwire"], env=environment, stdout=-1, stderr=-1, text=True) for _ in range(2)
    ]
    told = [process.communicate(timeout=100) for process in running]

    assert [0, 0] == [process.returncode for process in running]
    assert 1 == checkout.installs
    assert 1 == sum("waiting for it" in errors for _, errors in told)


def other_python() -> str | None:
    """Returns a Python that runs and is of another version than this one, and no older than 3.11."""
    found = [
        *(Path.home() / ".pyenv" / "versions").glob("3.*/bin/python"),
        *Path("/usr/bin").glob("python3.[1-9][0-9]"),
    ]
    for python in found:
        command = [python, "-c", "import sys, venv, ensurepip; print(tuple(sys.version_info[:3]))"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        version = done.stdout.strip()
        if done.returncode == 0 and version >= "(3, 11" and version != str(tuple(sys.version_info[:3])):
            return str(python)
    return None


@slow
def test_the_python_that_is_asked_for_makes_the_environment_anew(ready: Checkout):
    other = other_python()
    if other is None:
        pytest.skip("there is one Python of 3.11 or newer on this system")
    wanted = ready.run("turnwire", "ok", TURNWIRE_PYTHON=other)
    again = ready.run("turnwire", "ok", TURNWIRE_PYTHON=other)
    unasked = ready.run("turnwire", "ok")

    assert has_run(wanted, "ok"), wanted.stderr
    assert "making .venv" in wanted.stderr
    assert ("", "") == (again.stderr, unasked.stderr)


@pytest.mark.parametrize("script", ["exit 127", '[ "$1" != -c ]'], ids=["a shim of nothing", "too old"])
def test_a_python_that_is_asked_for_and_does_not_do_is_refused(tmp_path: Path, script: str):
    checkout = Checkout(tmp_path / "turnwire")
    python = program(tmp_path, "python3.9", script)
    done = checkout.run("turnwire", TURNWIRE_PYTHON=str(python))

    assert 1 == done.returncode
    assert f"TURNWIRE_PYTHON={python} is no Python 3.11 or newer that runs.\n" == done.stderr


def test_without_python_a_user_is_told_the_one_command(tmp_path: Path, tools: Path):
    program(tools, "id", "echo 1000")
    program(tools, "apt-get", "exit 99")
    done = Checkout(tmp_path / "turnwire").run("up", PATH=str(tools))

    assert 1 == done.returncode
    assert "Turnwire needs: python3 python3-venv. Run:  sudo apt-get install -y python3 python3-venv\n" == done.stderr


@slow
def test_without_python_root_installs_it(tmp_path: Path, tools: Path):
    program(tools, "id", "echo 0")
    python = shutil.which("python3", path=_PATH)
    # After the "installation" there is a Python, which `exec` runs in its own place.
    install = f"printf '#!/bin/bash\\nexec {python} \"$@\"\\n' >{tools}/python3; /bin/chmod +x {tools}/python3"
    program(tools, "apt-get", f'echo "$@" >>{tmp_path}/apt; [ "$1" = update ] || {{ {install}; }}')
    done = Checkout(tmp_path / "turnwire").run("turnwire", "ok", PATH=str(tools))

    assert has_run(done, "ok"), done.stderr
    assert "update -qq\ninstall -y -qq python3 python3-venv\n" == (tmp_path / "apt").read_text()


def test_without_apt_the_packages_are_named(tmp_path: Path, tools: Path):
    done = Checkout(tmp_path / "turnwire").run("up", PATH=str(tools))

    assert 1 == done.returncode
    assert done.stderr.startswith("Turnwire needs what Debian calls python3 python3-venv.")


@slow
def test_an_engine_that_does_not_load_is_not_passed_over(tmp_path: Path, tools: Path):
    checkout = Checkout(tmp_path / "turnwire")
    (checkout.folder / "xllamacpp.py").write_text("raise ImportError('libgomp.so.1: cannot open shared object file')\n")
    program(tools, "id", "echo 0")
    program(tools, "apt-get", f'echo "$@" >>{tmp_path}/apt')
    done = checkout.run("turnwire", PATH=f"{tools}:{_PATH}")

    assert 1 == done.returncode
    assert "libgomp.so.1" in done.stderr
    assert "install -y -qq libgomp1\n" in (tmp_path / "apt").read_text()
    assert not (checkout.folder / ".venv" / ".set-up").exists()


def test_ci_counts_set_up_as_a_stage_with_a_limit(ready: Checkout):
    done = ready.run("ci")

    assert "== set-up (limit 6 min) ==\n" == done.stderr
    assert f"weights in the cache\ntools ci in {ready.folder}\n" == done.stdout


def test_a_ci_whose_set_up_fails_says_so(ready: Checkout):
    weights = ready.folder / "turnwire" / "weights" / "__main__.py"
    kept = weights.read_text()
    weights.write_text("raise SystemExit('no network')")
    done = ready.run("ci")
    weights.write_text(kept)

    assert 1 == done.returncode
    assert "no network\nthe set-up failed, or took longer than its limit\n" in done.stderr
    assert "" == done.stdout


@slow
def test_clean_stops_the_mesh_and_leaves_the_sources(tmp_path: Path):
    checkout = Checkout(tmp_path / "turnwire")
    assert 0 == checkout.run("set-up").returncode
    for folder in (".venv-gen", ".turnwire/run"):
        (checkout.folder / folder).mkdir(parents=True)
    (checkout.folder / ".turnwire" / "run" / "mesh.json").touch()
    done = checkout.run("clean", cwd=Path("/"))

    assert has_run(done, "down")
    assert {"installs", "__pycache__"} >= {path.name for path in checkout.folder.iterdir()} - {
        "dev",
        *(name.partition("/")[0] for name in _FILES),
    }
    assert 0 == checkout.run("clean").returncode


@pytest.mark.parametrize("arguments", [(), ("help",), ("-h",), ("--help",)])
def test_help_needs_no_set_up_and_names_every_command(tmp_path: Path, arguments: tuple[str, ...]):
    checkout = Checkout(tmp_path / "turnwire")
    done = checkout.run(*arguments)

    assert 0 == done.returncode
    assert not (checkout.folder / ".venv").exists()
    for command in ("up", "down", "turnwire", "check", "test", "ci", "faults", "bench", "generate", "lock", "clean"):
        assert f"./dev {command}" in done.stdout


def test_an_unknown_command_is_refused(tmp_path: Path):
    done = Checkout(tmp_path / "turnwire").run("tset")

    assert 2 == done.returncode
    assert "no such command: tset" == done.stderr.splitlines()[0]
    assert "" == done.stdout
