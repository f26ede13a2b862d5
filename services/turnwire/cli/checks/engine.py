"""What the models in this process need: their weights, the engine's library, memory."""

from __future__ import annotations

import importlib.util
import os
import resource
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from turnwire.cli.checks.finding import Finding
from turnwire.weights import MODELS, WeightsError, in_bytes, locate
from turnwire.weights.hub import hub_endpoint, hub_switched_off

if TYPE_CHECKING:
    from turnwire.inference.providers.llama_cpp import LlamaCppProvider, LlamaModel
    from turnwire.runtime.settings import Settings

_LLAMA = "inline::llama-cpp"
_MINILM = "inline::minilm"
_HUB_SECONDS = 3.0
# Measured on the Qwen models: a token of context takes this part of the size of the file, and the engine's buffers
# and the other services take the rest (docs/performance.md has the figures of a turn).
_CONTEXT_SHARE = 2.5e-5
_BESIDES_BYTES = 600_000_000


def weights(settings: Settings) -> Finding:
    """Checks that the weights of the configured models are there."""
    wanted = _files(settings)
    missing = [(name, said) for name, _, said in wanted if said]
    if missing:
        pulled = [name for name, said in missing if not said.startswith("there is no file")]
        todo = f"run `turnwire models pull {' '.join(pulled)}`" if pulled else "correct `path` in the settings"
        return Finding("weights", "problem", "; ".join(said for _, said in missing), todo)
    if not wanted:
        return Finding("weights", "ok", "no configured model runs in the process")
    return Finding("weights", "ok", f"{', '.join(name for name, _, _ in wanted)} ready")


def pulled_names(settings: Settings) -> list[str]:
    """Returns the models whose weights the settings take from the cache."""
    known = {model.name for model in MODELS}
    return [name for name, _, _ in _files(settings) if name in known]


def library(settings: Settings) -> Finding:
    """Checks that the engine can be imported."""
    kinds = {provider.provider_type for provider in settings.providers.inference}
    modules = [name for kind, name in ((_LLAMA, "xllamacpp"), (_MINILM, "onnxruntime")) if kind in kinds]
    for module in modules:
        if importlib.util.find_spec(module) is None:
            return Finding(
                "engine",
                "problem",
                f"the package {module} is not installed, and a configured provider needs it",
                "pip install 'turnwire[inference]'",
            )
        # In a process of its own: a library that is broken may end the process that loads it.
        ended = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            said = ended.stderr.strip().splitlines()[-1] if ended.stderr.strip() else f"exit code {ended.returncode}"
            return Finding("engine", "problem", f"{module} cannot be imported: {said}", _library_remedy(said))
    return Finding("engine", "ok", f"{' and '.join(modules)} can be imported" if modules else "none is configured")


def memory(settings: Settings) -> Finding:
    """Checks that the models that are loaded at the start fit into the memory that is free."""
    needed = _BESIDES_BYTES
    for config in _llama_configs(settings):
        model = config.models[0]  # further ones are loaded when they are first wanted
        needed += int(_size(model) * (1 + model.context_tokens * config.parallel * _CONTEXT_SHARE))
    free, bound = _free_memory()
    said = f"about {in_bytes(needed)} needed, {in_bytes(free)} free ({bound})"
    if free < needed:
        return Finding(
            "memory",
            "problem",
            f"too little for the configured models: {said}",
            "end other programs, lower `parallel` or `context_tokens` of the provider, or use a smaller model",
        )
    return Finding("memory", "ok", said)


def hub() -> Finding:
    """Checks whether the makers' hub can be reached; only pulling weights needs it."""
    endpoint = hub_endpoint()
    host = urllib.parse.urlsplit(endpoint).netloc
    todo = "nothing, if the weights are here; pulling goes on to the package mirrors by itself"
    if hub_switched_off():
        return Finding("hub", "note", f"{host} is not asked, since HF_HUB_OFFLINE is set", todo)
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=_HUB_SECONDS):
            pass
    except urllib.error.HTTPError as error:
        error.close()  # whatever it says, it was reached
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        why = "no answer in time" if isinstance(reason, TimeoutError | socket.timeout) else str(reason)
        return Finding("hub", "note", f"{host} cannot be reached ({why}); only `turnwire models pull` needs it", todo)
    return Finding("hub", "ok", f"{host} can be reached")


def _library_remedy(said: str) -> str:
    if "libgomp" in said:
        return "install OpenMP's library: `apt-get install -y libgomp1` (Debian, Ubuntu) or `dnf install libgomp`"
    if "cannot open shared object file" in said:
        return "install the library that is named"
    return "reinstall it: pip install --force-reinstall 'turnwire[inference]'"


def _llama_configs(settings: Settings) -> list[LlamaCppProvider.Config]:
    """Returns the configurations of the llama.cpp providers; one that is wrong is the business of another check."""
    from turnwire.inference.providers.llama_cpp import LlamaCppProvider  # its packages are an extra

    configs: list[LlamaCppProvider.Config] = []
    for provider in settings.providers.inference:
        if provider.provider_type == _LLAMA:
            with suppress(ValidationError):
                configs.append(LlamaCppProvider.Config.model_validate(provider.config))
    return configs


def _files(settings: Settings) -> list[tuple[str, Path | None, str]]:
    """Returns (model, its file, why it is not there) of each model that runs in the process."""
    found = [_file(model) for config in _llama_configs(settings) for model in config.models]
    for provider in settings.providers.inference:
        if provider.provider_type == _MINILM:
            found.append(_located("minilm", precision=provider.config.get("precision", "int8")))
    return found


def _file(model: LlamaModel) -> tuple[str, Path | None, str]:
    if model.path is None:
        return _located(model.model_id)
    if model.path.is_file():
        return model.model_id, model.path, ""
    return model.model_id, None, f"there is no file {model.path} for {model.model_id}"


def _located(name: str, **options: Any) -> tuple[str, Path | None, str]:
    try:
        return name, locate(name, **options), ""
    except WeightsError as error:
        return name, None, str(error).partition(". Run ")[0]


def _size(model: LlamaModel) -> int:
    _, path, _ = _file(model)
    if path is not None:
        return path.stat().st_size
    return next((known.size for known in MODELS if known.name == model.model_id), 0)


def _free_memory() -> tuple[int, str]:
    """Returns the memory that a new process can have, and what bounds it."""
    bounds = [(_available(), "of the machine")]
    bounds += [(left, "of the control group") for left in _control_group_left()]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        bounds.append((soft, "by `ulimit -v`"))
    return min(bounds)


def _available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # no Linux: what the machine has is the best there is
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _control_group_left() -> list[int]:
    """Returns what the control groups of this process leave, of either version."""
    left: list[int] = []
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return left
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, used = "/sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit, used = "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        for folder in (Path(root + path), Path(root)):  # within a container its own group is the root
            with suppress(OSError, ValueError):  # ValueError: there is no limit, which is written as `max`
                most = int((folder / limit).read_text(encoding="utf-8"))
                taken = int((folder / used).read_text(encoding="utf-8")) - _cached(folder)
                left.append(max(0, most - taken))
    return left


def _cached(folder: Path) -> int:
    """Returns the bytes of a group's page cache, which it gives up when memory is wanted."""
    pairs = (line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
    return sum(int(value) for name, value in pairs if name in {"active_file", "inactive_file"})
