"""`python -m tools.docs.third_party [--check]`: THIRD_PARTY.md out of the locks, what is installed, and the weights."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from tools.dev import generation
from tools.dev.layout import ROOT
from turnwire.weights import MODELS, Model, in_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

PAGE = ROOT / "THIRD_PARTY.md"
_LOCKS = ROOT / "requirements"

# What the metadata of a package does not say in one of the usual places, or says of a system that this one is not.
_BY_HAND = {
    canonicalize_name("colorama"): "BSD-3-Clause",  # Windows only
    canonicalize_name("httpx2-jsfetch"): "BSD-3-Clause",  # browsers only
    canonicalize_name("python-dateutil"): "Apache-2.0 OR BSD-3-Clause",  # it says "Dual License"
    canonicalize_name("tzdata"): "Apache-2.0",  # Windows and browsers only
    canonicalize_name("tiktoken"): "MIT",  # the whole text stands where its name belongs
}
# Words of older metadata, as SPDX has them.
_SPDX = {
    "apache 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd license": "BSD",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
}


@dataclass(frozen=True)
class Locked:
    """A package of a lock."""

    name: str
    version: str
    marker: str
    block: str
    """Its lines in the lock, hashes included."""

    @property
    def key(self) -> NormalizedName:
        """The name that all spellings share."""
        return canonicalize_name(self.name)


def locked(lock: Path) -> list[Locked]:
    """Returns the packages of a lock, in its order; one may stand there twice, for different Pythons."""
    found: list[Locked] = []
    for block in re.split(r"\n(?=\S)", lock.read_text(encoding="utf-8").strip()):
        requirement = Requirement(block.partition("\\")[0].strip())
        version = str(requirement.specifier).removeprefix("==")
        found.append(Locked(requirement.name, version, str(requirement.marker or ""), block))
    return found


def needed_by(extras: Sequence[str], installed: Mapping[NormalizedName, Distribution]) -> set[NormalizedName]:
    """Returns what an installation of Turnwire with these extras needs on this system, at any remove."""
    seen: set[tuple[NormalizedName, str]] = set()
    waiting = [(canonicalize_name("turnwire"), extra) for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen or name not in installed:
            continue
        seen.add((name, extra))
        for line in installed[name].requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(requirement.name), wanted) for wanted in ("", *requirement.extras)]
    return {name for name, _ in seen} - {canonicalize_name("turnwire")}


def installed_in(paths: Sequence[str]) -> dict[NormalizedName, Distribution]:
    """Returns the distributions of an environment by name."""
    return {canonicalize_name(found.name): found for found in distributions(path=list(paths))}


def licence_of(distribution: Distribution) -> str:
    """Returns what a package's metadata says of its licence, empty when it says nothing that names one."""
    metadata = distribution.metadata
    if "License-Expression" in metadata:
        return metadata["License-Expression"]
    text = metadata["License"].strip() if "License" in metadata else ""
    if text and "\n" not in text and len(text) <= 60:
        return _SPDX.get(text.lower(), text)
    prefix = "License :: OSI Approved :: "
    classifiers: list[str] = metadata.get_all("Classifier", [])
    named = [line.removeprefix(prefix) for line in classifiers if line.startswith(prefix)]
    return " OR ".join(sorted({_SPDX.get(name.lower(), name) for name in named}))


def page() -> tuple[str, list[str]]:
    """Returns the text of the page, and the packages whose licence nobody knows."""
    here = installed_in(sys.path)
    there = installed_in([str(path) for path in generation.environment().parents[1].glob("lib/python*/site-packages")])
    run = needed_by(["all"], here)
    everything = locked(_LOCKS / "all.txt")
    generating = locked(_LOCKS / "generate.txt")
    unknown = [
        package.name
        for packages, installed in ((everything, here), (generating, there))
        for package in packages
        if not _licence(package, installed)
    ]
    lines = [
        "<!-- Generated out of the locks and the metadata of what is installed, by `./dev generate`. Do not edit. -->",
        "",
        "# Third-party software and models",
        "",
        "Turnwire itself is under the Apache License 2.0 (`LICENSE`). Packages and models are no part of this",
        "repository: set-up fetches them, each file by its hash.",
        "",
        "## Data in this repository",
        "",
        "The patterns of the shield `secrets` are those of gitleaks 8.30.1 (MIT, Copyright (c) 2019 Zachary Rice), in",
        "`services/turnwire/safety/shields/data/gitleaks.toml`, with their licence beside them.",
        "",
        "## Packages that Turnwire runs on",
        "",
        "What `turnwire[all]` installs. An installation with fewer extras has fewer of them.",
        "",
        *_table((package for package in everything if package.key in run), here),
        "## Packages of the developer's environment",
        "",
        "Tests, checks and builds; no service imports them.",
        "",
        *_table((package for package in everything if package.key not in run), here),
        "## Packages that generate the stubs",
        "",
        "In an environment of their own, `.venv-gen`.",
        "",
        *_table(generating, there),
        "## Models",
        "",
        "The weights come from their maker's hub at the revision below, or byte for byte the same out of package",
        f"mirrors, of which only the data is read. Set-up fetches {_defaults()}, the others are fetched by name. The",
        "int8 graph of `minilm` is written from its weights on the machine that runs it.",
        "",
    ]
    for model in MODELS:
        lines += _model(model)
    return "\n".join(lines).rstrip() + "\n", unknown


def main(arguments: list[str]) -> int:
    """Writes the page, or with `--check` says whether it differs; returns an exit code."""
    text, unknown = page()
    for name in unknown:
        sys.stdout.write(f"{name} does not say its licence: look it up, and name it in tools/docs/third_party.py\n")
    if unknown:
        return 1
    if "--check" not in arguments:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    sys.stdout.write(f"{PAGE.name} is not what the locks and the manifest of weights say: run ./dev generate\n")
    return 1


def _licence(package: Locked, installed: Mapping[NormalizedName, Distribution]) -> str:
    if package.key in _BY_HAND:
        return _BY_HAND[package.key]
    found = installed.get(package.key)
    return licence_of(found) if found is not None else ""


def _table(packages: Iterable[Locked], installed: Mapping[NormalizedName, Distribution]) -> list[str]:
    rows = [
        f"| {package.name} | {package.version} | {_licence(package, installed)} | {_where(package)} |"
        for package in packages
    ]
    return ["| package | version | licence | where |", "|---|---|---|---|", *rows, ""]


def _where(package: Locked) -> str:
    return f"`{package.marker}`".replace("|", "\\|") if package.marker else "everywhere"


def _defaults() -> str:
    return " and ".join(f"`{model.name}`" for model in MODELS if model.default)


def _model(model: Model) -> list[str]:
    lines = [f"### {model.name}", "", f"{model.title}, by {model.maker}, {model.licence}, {in_bytes(model.size)}.", ""]
    lines += ["| file | bytes | sha256 | repository | revision |", "|---|---|---|---|---|"]
    lines += [
        f"| `{file.name}` | {file.size} | `{file.sha256}` | {file.hub.repository} | `{file.hub.revision}` |"
        for file in model.files
    ]
    return [*lines, ""]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
