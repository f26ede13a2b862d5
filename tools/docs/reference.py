"""`python -m tools.docs.reference [--check]`: docs/reference and docs/errors.md out of the comments of the protos."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pb2

from tools.dev.layout import BIN, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_TYPES = {
    number: name.removeprefix("TYPE_").lower() for name, number in descriptor_pb2.FieldDescriptorProto.Type.items()
}
_HEAD = "<!-- Generated out of the protos by `./dev generate`. Do not edit. -->\n\n"


class _Comments:
    """The comments of a file, by the path of what they stand above."""

    def __init__(self, file: descriptor_pb2.FileDescriptorProto) -> None:
        self._texts = {
            tuple(location.path): location.leading_comments.strip()
            for location in file.source_code_info.location
            if location.leading_comments
        }

    def of(self, *path: int) -> str:
        lines = [line.strip() for line in self._texts.get(path, "").splitlines()]
        return " ".join(line for line in lines if not line.startswith("buf:lint"))


def pages() -> dict[Path, str]:
    """Returns the text of every page."""
    files = [file for file in _descriptors().file if file.package.startswith("turnwire.")]
    packages = sorted({file.package for file in files})
    result = {
        ROOT / "docs" / "reference" / f"{package.split('.')[1]}.md": _package(
            package, [file for file in files if file.package == package]
        )
        for package in packages
    }
    errors = next(file for file in files if file.name.endswith("common/v1/error.proto"))
    result[ROOT / "docs" / "errors.md"] = _errors(errors)
    return result


def main(arguments: list[str]) -> int:
    """Writes the pages, or with `--check` says which differ; returns an exit code."""
    made = pages()
    if "--check" in arguments:
        stale = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
        for path in stale:
            sys.stdout.write(f"{path.relative_to(ROOT)} is not what the protos say: run ./dev generate\n")
        return 1 if stale else 0
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


def _descriptors() -> descriptor_pb2.FileDescriptorSet:
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.binpb"
        command = [str(BIN / "buf"), "build", "--as-file-descriptor-set", "-o", str(image)]
        subprocess.run(command, cwd=ROOT, check=True)
        return descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes())


def _package(package: str, files: Iterable[descriptor_pb2.FileDescriptorProto]) -> str:
    lines = [f"# `{package}`", ""]
    ordered = list(files)
    for file in ordered:
        comments = _Comments(file)
        for index, service in enumerate(file.service):
            lines += [f"## Service {service.name}", "", comments.of(6, index), ""]
            lines += ["| RPC | takes | gives | |", "|---|---|---|---|"]
            lines += [_rpc(method, comments.of(6, index, 2, number)) for number, method in enumerate(service.method)]
            lines.append("")
    for file in ordered:
        comments = _Comments(file)
        for index, message in enumerate(file.message_type):
            lines += _message(message, comments, (4, index), "")
        for index, enum in enumerate(file.enum_type):
            lines += _enum(enum, comments, (5, index), "")
    return _HEAD + "\n".join(lines).rstrip() + "\n"


def _rpc(method: descriptor_pb2.MethodDescriptorProto, text: str) -> str:
    takes = f"{'stream ' if method.client_streaming else ''}`{_short(method.input_type)}`"
    gives = f"{'stream ' if method.server_streaming else ''}`{_short(method.output_type)}`"
    return f"| `{method.name}` | {takes} | {gives} | {_cell(text)} |"


def _message(
    message: descriptor_pb2.DescriptorProto, comments: _Comments, path: tuple[int, ...], outer: str
) -> Iterator[str]:
    if message.options.map_entry:
        return
    name = f"{outer}{message.name}"
    yield from (f"### {name}", "", comments.of(*path), "")
    if message.field:
        yield from ("| field | type | |", "|---|---|---|")
    for index, field in enumerate(message.field):
        text = comments.of(*path, 2, index)
        if field.HasField("oneof_index") and not field.proto3_optional:
            text = f"One of `{message.oneof_decl[field.oneof_index].name}`. {text}"
        yield f"| `{field.name}` = {field.number} | {_type(field, message)} | {_cell(text)} |"
    yield ""
    for index, inner in enumerate(message.nested_type):
        yield from _message(inner, comments, (*path, 3, index), f"{name}.")
    for index, enum in enumerate(message.enum_type):
        yield from _enum(enum, comments, (*path, 4, index), f"{name}.")


def _enum(
    enum: descriptor_pb2.EnumDescriptorProto, comments: _Comments, path: tuple[int, ...], outer: str
) -> Iterator[str]:
    yield from (f"### {outer}{enum.name}", "", comments.of(*path), "", "| value | |", "|---|---|")
    for index, value in enumerate(enum.value):
        yield f"| `{value.name}` = {value.number} | {_cell(comments.of(*path, 2, index))} |"
    yield ""


def _type(field: descriptor_pb2.FieldDescriptorProto, message: descriptor_pb2.DescriptorProto) -> str:
    name = _short(field.type_name) if field.type_name else _TYPES[field.type]
    entry = next((inner for inner in message.nested_type if inner.name == name and inner.options.map_entry), None)
    if entry is not None:
        key, value = entry.field
        return f"map of {_TYPES[key.type]} to {_short(value.type_name) or _TYPES[value.type]}"
    if field.label == descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated `{name}`"
    return f"optional `{name}`" if field.proto3_optional else f"`{name}`"


def _errors(file: descriptor_pb2.FileDescriptorProto) -> str:
    comments = _Comments(file)
    enum_index = next(index for index, enum in enumerate(file.enum_type) if enum.name == "ErrorReason")
    lines = [
        "# Errors",
        "",
        "Every error that a service sends carries `google.rpc.ErrorInfo` with the domain `turnwire`, the reason below,",
        "and the metadata that is named here. INVALID_ARGUMENT carries `google.rpc.BadRequest` with every violation;",
        "RESOURCE_EXHAUSTED may carry `google.rpc.RetryInfo`. A failure that is part of a turn's history is a",
        "`turnwire.common.v1.Failure` with the same reasons. Messages say what happened, where, and what to do next.",
        "",
        "| reason | when, and its metadata |",
        "|---|---|",
    ]
    values: Any = file.enum_type[enum_index].value
    lines += [
        f"| `{value.name}` | {_cell(comments.of(5, enum_index, 2, index))} |"
        for index, value in enumerate(values)
        if value.number
    ]
    return _HEAD + "\n".join(lines) + "\n"


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
