"""What a request to the tool executor service has to look like; all violations at once."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from turnwire.common.v1 import error_pb2
from turnwire.runtime.validation import Violations
from turnwire.tool_executor.limits import LONGEST
from turnwire.tool_executor.v1 import tool_executor_service_pb2

if TYPE_CHECKING:
    from google.protobuf.internal.containers import ScalarMap

    from turnwire.common.v1 import generation_pb2, message_pb2
    from turnwire.tool_executor.v1 import artifact_service_pb2, tool_service_pb2

MAX_NAME = 400
MAX_ARGUMENTS = 1024 * 1024
MAX_CONFIG = 256 * 1024
MAX_ATTACHMENTS = 64
MAX_PIECE = 1024 * 1024
_TOOL_ID = re.compile(r"[A-Za-z0-9._:-]+(/[A-Za-z0-9._:-]+)*")
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CALL_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_MIME_TYPE = re.compile(
    r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}(; ?[A-Za-z0-9_-]+=[A-Za-z0-9_.\"-]+)*"
)
_SHA256 = re.compile("[0-9a-fA-F]{64}")


def check_name(field: str, name: str) -> None:
    """Requires the name of a tool or an artifact."""
    violations = Violations()
    _check_name(violations, field, name)
    violations.raise_if_any()


def check_execute(request: tool_executor_service_pb2.ExecuteToolRequest) -> None:
    """Requires a call that can be looked at; whether its arguments fit is for its result to say."""
    violations = Violations()
    _check_call_id(violations, "call.call_id", request.call.call_id)
    _check_name(violations, "call.name", request.call.name)
    if len(request.call.arguments_json) > MAX_ARGUMENTS:
        violations.add("call.arguments_json", f"is longer than {MAX_ARGUMENTS} characters")
    if len(request.call.retry_of) > MAX_NAME:
        violations.add("call.retry_of", f"is longer than {MAX_NAME} characters")
    for field in ("turn_id", "session_id"):
        _check_name(violations, field, getattr(request, field))
    if request.owner_epoch < 0:
        violations.add("owner_epoch", "must not be negative")
    for descriptor, duration in request.limits.ListFields():
        seconds = duration.seconds + duration.nanos / 1e9
        if not 0 < seconds <= LONGEST:
            violations.add(f"limits.{descriptor.name}", f"must be above 0 and at most {LONGEST:g} s")
    if len(request.attachments) > MAX_ATTACHMENTS:
        violations.add("attachments", f"are {len(request.attachments)}; at most {MAX_ATTACHMENTS} are taken")
    for index, attachment in enumerate(request.attachments[:MAX_ATTACHMENTS]):
        _check_attachment(violations, f"attachments[{index}]", attachment)
    if len(request.authorization) > 16 * 1024 or not request.authorization.isprintable():
        violations.add("authorization", "is at most 16384 printable characters")
    violations.raise_if_any()


def check_call(turn_id: str, call_id: str, owner_epoch: int = 0) -> None:
    """Requires the names of a turn and of a call."""
    violations = Violations()
    _check_name(violations, "turn_id", turn_id)
    _check_call_id(violations, "call_id", call_id)
    if owner_epoch < 0:
        violations.add("owner_epoch", "must not be negative")
    violations.raise_if_any()


def check_resolve(request: tool_executor_service_pb2.ResolveExecutionRequest) -> None:
    """Requires a decision that can be taken."""
    violations = Violations()
    _check_name(violations, "turn_id", request.turn_id)
    _check_call_id(violations, "call_id", request.call_id)
    provides = request.resolution == tool_executor_service_pb2.RESOLUTION_PROVIDE
    if not provides and request.resolution != tool_executor_service_pb2.RESOLUTION_SKIP:
        violations.add("resolution", "is RESOLUTION_SKIP or RESOLUTION_PROVIDE")
    if request.HasField("result") != provides:
        violations.add("result", "goes with RESOLUTION_PROVIDE, which needs it")
    if request.result.call_id not in {"", request.call_id}:
        violations.add("result.call_id", "is that of the call, or empty")
    if request.result.failure.reason == error_pb2.ERROR_REASON_OUTCOME_UNKNOWN:
        violations.add("result.failure.reason", "is none that decides: choose RESOLUTION_SKIP")
    if request.result.ByteSize() > MAX_ARGUMENTS:
        violations.add("result", f"has {request.result.ByteSize()} bytes; at most {MAX_ARGUMENTS} are kept")
    violations.raise_if_any()


def check_register(request: tool_service_pb2.RegisterToolRequest) -> None:
    """Requires a registration that can be made."""
    violations = Violations()
    if not request.tool_id:
        violations.add("tool_id", "is required")
    elif len(request.tool_id) > 200 or not _TOOL_ID.fullmatch(request.tool_id):
        violations.add("tool_id", "has letters, digits, `.`, `_`, `-`, `:`, and `/` within; at most 200")
    for field in ("provider_id", "request_id"):
        if len(getattr(request, field)) > MAX_NAME:
            violations.add(field, f"is longer than {MAX_NAME} characters")
    _check_definition(violations, request.definition)
    if len(request.config_json.encode()) > MAX_CONFIG:
        violations.add("config_json", f"is longer than {MAX_CONFIG} bytes")
    _check_metadata(violations, "metadata", request.metadata)
    violations.raise_if_any()


def check_open(request: artifact_service_pb2.UploadArtifactRequest) -> None:
    """Requires the beginning of an upload."""
    violations = Violations()
    opened = request.open
    if request.WhichOneof("payload") != "open":
        violations.add("open", "is required in the first message of an upload")
    elif not opened.name:
        violations.add("open.name", "is required")
    elif len(opened.name) > 255 or not opened.name.isprintable() or {"/", "\\"} & set(opened.name):
        violations.add("open.name", "has at most 255 printable characters, without `/` and `\\`")
    if opened.mime_type and not _MIME_TYPE.fullmatch(opened.mime_type):
        violations.add("open.mime_type", "is none, as `text/markdown`; leave it empty to have it found out")
    if opened.sha256 and not _SHA256.fullmatch(opened.sha256):
        violations.add("open.sha256", "is no SHA-256 in hexadecimal")
    for field in ("session_id", "request_id"):
        if len(getattr(opened, field)) > MAX_NAME:
            violations.add(f"open.{field}", f"is longer than {MAX_NAME} characters")
    _check_metadata(violations, "open.metadata", opened.metadata)
    violations.raise_if_any()


def check_piece(request: artifact_service_pb2.UploadArtifactRequest) -> None:
    """Requires the next piece of an upload."""
    violations = Violations()
    if request.WhichOneof("payload") != "data":
        violations.add("data", "is required in all messages of an upload but the first")
    elif len(request.data) > MAX_PIECE:
        violations.add("data", f"has {len(request.data)} bytes; a piece has at most {MAX_PIECE}")
    violations.raise_if_any()


def check_download(request: artifact_service_pb2.DownloadArtifactRequest) -> None:
    """Requires a range that can be."""
    violations = Violations()
    _check_name(violations, "artifact_id", request.artifact_id)
    if request.start_byte < 0:
        violations.add("start_byte", "must not be negative")
    if request.end_byte < 0 or 0 < request.end_byte < request.start_byte:
        violations.add("end_byte", "must not lie before `start_byte`; 0 means the end of the file")
    violations.raise_if_any()


def schema_problem(schema: str) -> str:
    """Returns what keeps a text from being the schema of a tool's arguments, or nothing."""
    try:
        parsed: Any = json.loads(schema)
        if not isinstance(parsed, dict):
            return "is no JSON object"
        Draft202012Validator.check_schema(parsed)
    except SchemaError as error:
        return f"is no JSON schema: {error.message[:300]}"
    except ValueError as error:
        return f"is no JSON: {error}"
    except RecursionError:
        return "is nested too deeply"
    return ""


def _check_definition(violations: Violations, definition: generation_pb2.ToolDefinition) -> None:
    if not _TOOL_NAME.fullmatch(definition.name):
        violations.add("definition.name", "is required: 1 to 64 letters, digits, `_`, `-` or `.`")
    if len(definition.description) > 16 * 1024:
        violations.add("definition.description", "is longer than 16384 characters")
    schema = definition.parameters_json_schema
    if len(schema) > MAX_CONFIG:
        violations.add("definition.parameters_json_schema", f"is longer than {MAX_CONFIG} characters")
    elif schema and (problem := schema_problem(schema)):
        violations.add("definition.parameters_json_schema", problem)


def _check_attachment(violations: Violations, field: str, attachment: message_pb2.Attachment) -> None:
    match attachment.WhichOneof("content"):
        case None:
            violations.add(field, "has no content: set `text`, `data`, `artifact_id` or `url`")
        case "artifact_id":
            _check_name(violations, f"{field}.artifact_id", attachment.artifact_id)
        case "url" if len(attachment.url) > 8192:
            violations.add(f"{field}.url", "is longer than 8192 characters")
        case _:
            pass  # the size of a request bounds the others
    if len(attachment.name) > 255:
        violations.add(f"{field}.name", "is longer than 255 characters")


def _check_name(violations: Violations, field: str, name: str) -> None:
    if not name:
        violations.add(field, "is required")
    elif len(name) > MAX_NAME:
        violations.add(field, f"is {len(name)} characters long; names have at most {MAX_NAME}")


def _check_call_id(violations: Violations, field: str, call_id: str) -> None:
    if not _CALL_ID.fullmatch(call_id):
        violations.add(field, "is required: letters, digits, `_` and `-`, at most 128")


def _check_metadata(violations: Violations, field: str, metadata: ScalarMap[str, str]) -> None:
    if len(metadata) > 32:
        violations.add(field, f"has {len(metadata)} entries; at most 32 are kept")
    for key, value in metadata.items():
        if not key or len(key) > 64 or len(value) > 512:
            violations.add(f"{field}[{key[:64]!r}]", "keys have 1 to 64 characters, values at most 512")
