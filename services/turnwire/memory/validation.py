"""What a request to the memory service has to look like; all violations at once."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING

from turnwire.common.v1 import message_pb2
from turnwire.runtime.validation import Violations

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnwire.memory.v1 import bank_pb2, document_pb2, memory_bank_service_pb2, memory_service_pb2

MAX_CONTENT = 1024 * 1024
MAX_DOCUMENTS = 1000
MAX_BANKS = 32
MAX_CHUNKS = 200
MAX_QUESTION = 64 * 1024
_BANK_ID = re.compile(r"[A-Za-z0-9._:-]{1,200}")
_MAX_PIECES = 5_000


def check_register(request: memory_bank_service_pb2.RegisterMemoryBankRequest) -> None:
    """Requires a bank that can be made."""
    violations = Violations()
    bank = request.bank
    if not _BANK_ID.fullmatch(bank.bank_id):
        violations.add("bank.bank_id", "is required: 1 to 200 letters, digits, `.`, `_`, `:`, `-`")
    for field in ("provider_id", "name"):
        if len(getattr(bank, field)) > 400:
            violations.add(f"bank.{field}", "is longer than 400 characters")
    if len(request.request_id) > 400:
        violations.add("request_id", "is longer than 400 characters")
    _check_labels(violations, "bank.metadata", bank.metadata)
    match bank.WhichOneof("config"):
        case None:
            violations.add("bank.config", "is required: set `vector`, `keyword`, `keyvalue` or `graph`")
        case "vector":
            if len(bank.vector.embedding_model) > 400:
                violations.add("bank.vector.embedding_model", "is longer than 400 characters")
            _check_chunking(violations, "bank.vector", bank.vector)
        case "keyword":
            _check_chunking(violations, "bank.keyword", bank.keyword)
        case "graph":
            if not 0 <= bank.graph.depth <= 2:
                violations.add("bank.graph.depth", f"is {bank.graph.depth}; 1 and 2 are taken")
        case "keyvalue":
            pass
    violations.raise_if_any()


def check_bank(bank_id: str) -> None:
    """Requires the name of a bank."""
    violations = Violations()
    _check_id(violations, "bank_id", bank_id)
    violations.raise_if_any()


def check_document(bank_id: str, document_id: str) -> None:
    """Requires the names of a bank and of a document."""
    violations = Violations()
    _check_id(violations, "bank_id", bank_id)
    _check_id(violations, "document_id", document_id)
    violations.raise_if_any()


def check_insert(request: memory_service_pb2.InsertDocumentsRequest) -> None:
    """Requires documents, each with an id of its own and a content."""
    violations = Violations()
    _check_id(violations, "bank_id", request.bank_id)
    if not 1 <= len(request.documents) <= MAX_DOCUMENTS:
        violations.add("documents", f"are {len(request.documents)}; 1 to {MAX_DOCUMENTS} are taken")
    if len(request.request_id) > 400:
        violations.add("request_id", "is longer than 400 characters")
    ids: set[str] = set()
    for index, document in enumerate(request.documents[:MAX_DOCUMENTS]):
        field = f"documents[{index}]"
        _check_id(violations, f"{field}.document_id", document.document_id)
        if document.document_id in ids:
            violations.add(f"{field}.document_id", f"{document.document_id[:64]!r} is there twice")
        ids.add(document.document_id)
        _check_one(violations, field, document)
    violations.raise_if_any()


def check_query(request: memory_service_pb2.QueryRequest) -> None:
    """Requires banks and a question."""
    violations = Violations()
    if not 1 <= len(request.bank_ids) <= MAX_BANKS:
        violations.add("bank_ids", f"are {len(request.bank_ids)}; 1 to {MAX_BANKS} are taken")
    for index, bank_id in enumerate(request.bank_ids[:MAX_BANKS]):
        _check_id(violations, f"bank_ids[{index}]", bank_id)
        if bank_id in request.bank_ids[:index]:
            violations.add(f"bank_ids[{index}]", f"{bank_id[:64]!r} is there twice")
    asked = question(request)
    if not asked.strip():
        violations.add("messages", "are required: the last message of a user has no text")
    elif len(asked) > MAX_QUESTION:
        violations.add("messages", f"ask with {len(asked)} characters; at most {MAX_QUESTION} are taken")
    if not 0 <= request.max_chunks <= MAX_CHUNKS:
        violations.add("max_chunks", f"is {request.max_chunks}; at most {MAX_CHUNKS} are given")
    if request.max_tokens_in_context < 0:
        violations.add("max_tokens_in_context", "must not be negative")
    if math.isnan(request.min_score):
        # Nothing is as high as it: every search would find nothing, without an error.
        violations.add("min_score", "is no number")
    _check_labels(violations, "filters", request.filters)
    violations.raise_if_any()


def question(request: memory_service_pb2.QueryRequest) -> str:
    """Returns the text of the last message of a user, empty where there is none."""
    for message in reversed(request.messages):
        if message.role == message_pb2.ROLE_USER:
            return "\n".join(part.text for part in message.parts if part.WhichOneof("content") == "text")
    return ""


def _check_one(violations: Violations, field: str, document: document_pb2.Document) -> None:
    for name in ("title", "mime_type", "uri"):
        if len(getattr(document, name)) > 4_000:
            violations.add(f"{field}.{name}", "is longer than 4000 characters")
    _check_labels(violations, f"{field}.metadata", document.metadata)
    match document.WhichOneof("content"):
        case None:
            violations.add(field, "has no content: set `text`, `data`, `artifact_id`, `url`, `key_value` or `graph`")
        case "text":
            _check_size(violations, f"{field}.text", len(document.text.encode()))
        case "data":
            _check_size(violations, f"{field}.data", len(document.data))
        case "artifact_id":
            _check_id(violations, f"{field}.artifact_id", document.artifact_id)
        case "url":
            if not 1 <= len(document.url) <= 4_000:
                violations.add(f"{field}.url", "has 1 to 4000 characters")
        case "key_value":
            _check_value(violations, f"{field}.key_value", document.key_value)
        case "graph":
            _check_graph(violations, f"{field}.graph", document.graph)


def _check_value(violations: Violations, field: str, value: document_pb2.KeyValue) -> None:
    _check_id(violations, f"{field}.key", value.key)
    _check_size(violations, f"{field}.value_json", len(value.value_json.encode()))
    try:
        json.loads(value.value_json, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        violations.add(f"{field}.value_json", f"is no JSON value: {str(error)[:200]}")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is JavaScript's")


def _check_graph(violations: Violations, field: str, graph: document_pb2.GraphFragment) -> None:
    count = len(graph.entities) + len(graph.relations)
    if not 1 <= count <= _MAX_PIECES:
        violations.add(field, f"has {count} entities and relations; 1 to {_MAX_PIECES} are taken")
        return
    ids: set[str] = set()
    for index, entity in enumerate(graph.entities):
        _check_id(violations, f"{field}.entities[{index}].entity_id", entity.entity_id)
        if entity.entity_id in ids:
            violations.add(f"{field}.entities[{index}].entity_id", f"{entity.entity_id[:64]!r} is there twice")
        ids.add(entity.entity_id)
    for index, relation in enumerate(graph.relations):
        _check_id(violations, f"{field}.relations[{index}].from_entity_id", relation.from_entity_id)
        _check_id(violations, f"{field}.relations[{index}].to_entity_id", relation.to_entity_id)
        _check_id(violations, f"{field}.relations[{index}].type", relation.type)


def _check_chunking(
    violations: Violations, field: str, config: bank_pb2.VectorBankConfig | bank_pb2.KeywordBankConfig
) -> None:
    size, overlap = config.chunk_size_tokens, config.overlap_tokens
    if size and not 16 <= size <= 8192:
        violations.add(f"{field}.chunk_size_tokens", f"is {size}; 16 to 8192 are taken")
    elif overlap < 0 or (overlap and overlap * 2 > (size or 256)):
        violations.add(f"{field}.overlap_tokens", f"is {overlap}; at most half a chunk is taken")


def _check_size(violations: Violations, field: str, size: int) -> None:
    if size == 0:
        violations.add(field, "is empty")
    elif size > MAX_CONTENT:
        violations.add(field, f"has {size} bytes; more than {MAX_CONTENT} go first through UploadArtifact")


def _check_id(violations: Violations, field: str, name: str) -> None:
    if not name:
        violations.add(field, "is required")
    elif len(name) > 400:
        violations.add(field, f"is {len(name)} characters long; names have at most 400")


def _check_labels(violations: Violations, field: str, labels: Mapping[str, str]) -> None:
    if len(labels) > 32:
        violations.add(field, f"has {len(labels)} entries; at most 32 are taken")
    for key, value in labels.items():
        if not key or len(key) > 64 or len(value) > 512:
            violations.add(f"{field}[{key[:64]!r}]", "keys have 1 to 64 characters, values at most 512")
