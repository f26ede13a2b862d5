"""What a request to the sandbox runner must look like."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from turnwire.runtime.validation import Violations
from turnwire.sandbox_runner.interior.workspace import can_travel

if TYPE_CHECKING:
    from turnwire.sandbox_runner.v1 import sandbox_runner_service_pb2 as messages

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_LONGEST_SECONDS = 3600.0


def check_id(sandbox_id: str) -> None:
    """Raises InvalidArgument unless it is the id of a sandbox."""
    violations = Violations()
    _check_id(violations, sandbox_id)
    violations.raise_if_any()


def check_run(request: messages.RunCodeRequest) -> None:
    """Raises InvalidArgument with all that is wrong."""
    violations = Violations()
    _check_id(violations, request.sandbox_id)
    if _ID.fullmatch(request.call_id) is None:
        violations.add("call_id", "is required: letters, digits, `_` and `-`, at most 128")
    if not request.code:
        violations.add("code", "is required")
    elif "\0" in request.code:
        violations.add("code", "must not contain a zero byte")
    if request.HasField("limit"):
        seconds = request.limit.seconds + request.limit.nanos / 1e9
        if not 0 < seconds <= _LONGEST_SECONDS:
            violations.add("limit", f"must be above 0 and at most {_LONGEST_SECONDS:g} s")
    violations.raise_if_any()


def check_file(request: messages.WriteFilesRequest, *, expected_offset: int, size: int, most: int) -> None:
    """Raises InvalidArgument unless it is the next piece of a file."""
    violations = Violations()
    file = request.file
    if not can_travel(file.path):
        violations.add("file.path", "is required: a relative path of printable characters, without `..`")
    if file.offset not in {expected_offset, 0}:
        violations.add("file.offset", f"must be {expected_offset}, where the piece before has ended, or 0")
    if size > most:
        violations.add("file.data", f"is too much: the files of a sandbox have {most} bytes together")
    violations.raise_if_any()


def _check_id(violations: Violations, sandbox_id: str) -> None:
    if _ID.fullmatch(sandbox_id) is None:
        violations.add("sandbox_id", "is required: letters, digits, `_` and `-`, at most 128")
