"""What a request to the safety service has to look like; all violations at once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from turnwire.common.v1 import message_pb2, shield_pb2
from turnwire.runtime.validation import Violations

if TYPE_CHECKING:
    from turnwire.safety.v1 import safety_service_pb2, shield_service_pb2

MAX_SHIELDS = 32
MAX_CONFIG = 256 * 1024
_SHIELD_ID = re.compile(r"[A-Za-z0-9._:-]+(/[A-Za-z0-9._:-]+)*")


def check_shield(violations: Violations, field: str, name: str) -> None:
    """Requires the name of a shield."""
    if not name:
        violations.add(field, "is required; `ListShields` tells what there is")
    elif len(name) > 400:
        violations.add(field, f"is {len(name)} characters long; names have at most 400")


def check_run(request: safety_service_pb2.RunShieldsRequest) -> None:
    """Requires shields, and contents that they can judge."""
    violations = Violations()
    if not 1 <= len(request.shield_ids) <= MAX_SHIELDS:
        violations.add("shield_ids", f"are {len(request.shield_ids)}; 1 to {MAX_SHIELDS} are taken")
    for index, name in enumerate(request.shield_ids[:MAX_SHIELDS]):
        check_shield(violations, f"shield_ids[{index}]", name)
        if name in request.shield_ids[:index]:
            violations.add(f"shield_ids[{index}]", f"{name[:64]!r} is there twice")
    if request.point not in shield_pb2.ShieldPoint.values():
        violations.add("point", f"{request.point} is unknown to this version")
    for field in ("turn_id", "call_id"):
        if len(getattr(request, field)) > 400:
            violations.add(field, "is longer than 400 characters")
    if not request.messages:
        violations.add("messages", "is required: at least one message")
    for index, message in enumerate(request.messages):
        if message.role not in message_pb2.Role.values() or message.role == message_pb2.ROLE_UNSPECIFIED:
            violations.add(f"messages[{index}].role", "is required")
        for number, part in enumerate(message.parts):
            if part.WhichOneof("content") is None:
                violations.add(f"messages[{index}].parts[{number}]", "has no content: set `text`")
    violations.raise_if_any()


def check_register(request: shield_service_pb2.RegisterShieldRequest) -> None:
    """Requires a registration that can be made."""
    violations = Violations()
    if not request.shield_id:
        violations.add("shield_id", "is required")
    elif len(request.shield_id) > 200 or not _SHIELD_ID.fullmatch(request.shield_id):
        violations.add("shield_id", "has letters, digits, `.`, `_`, `-`, `:`, and `/` within; at most 200")
    for field in ("provider_id", "provider_shield_id", "request_id"):
        if len(getattr(request, field)) > 400:
            violations.add(field, "is longer than 400 characters")
    if len(request.config_json.encode()) > MAX_CONFIG:
        violations.add("config_json", f"is longer than {MAX_CONFIG} bytes")
    if len(request.metadata) > 32:
        violations.add("metadata", f"has {len(request.metadata)} entries; at most 32 are kept")
    for key, value in request.metadata.items():
        if not key or len(key) > 64 or len(value) > 512:
            violations.add(f"metadata[{key[:64]!r}]", "keys have 1 to 64 characters, values at most 512")
    violations.raise_if_any()
