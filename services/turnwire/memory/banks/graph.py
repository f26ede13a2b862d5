"""Banks of the kind graph: entities, found by id, name, type and words, with what surrounds them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from turnwire.memory.banks import rows
from turnwire.memory.banks.port import Hit
from turnwire.memory.banks.words import phrases

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from turnwire.memory.banks.port import Entry, Place, Question
    from turnwire.runtime.storage import Row, Transaction

_ROWS = "graph_entities"
TABLES = (
    f"""
    CREATE TABLE {_ROWS} (
        id INTEGER PRIMARY KEY,
        bank TEXT NOT NULL,
        revision TEXT NOT NULL,
        entity_id TEXT NOT NULL,
        type TEXT NOT NULL COLLATE NOCASE,
        name TEXT NOT NULL COLLATE NOCASE,
        properties TEXT NOT NULL,
        UNIQUE (bank, revision, entity_id)
    )
    """,
    f"CREATE INDEX graph_by_id ON {_ROWS} (bank, entity_id COLLATE NOCASE)",
    f"CREATE INDEX graph_by_name ON {_ROWS} (bank, name)",
    f"CREATE INDEX graph_by_type ON {_ROWS} (bank, type)",
    """
    CREATE TABLE graph_relations (
        id INTEGER PRIMARY KEY,
        bank TEXT NOT NULL,
        revision TEXT NOT NULL,
        from_entity TEXT NOT NULL,
        to_entity TEXT NOT NULL,
        type TEXT NOT NULL,
        properties TEXT NOT NULL
    )
    """,
    "CREATE INDEX graph_from ON graph_relations (bank, from_entity)",
    "CREATE INDEX graph_to ON graph_relations (bank, to_entity)",
    "CREATE INDEX graph_relations_of ON graph_relations (bank, revision)",
)
_EXACT, _MENTIONED, _OF_TYPE, _BY_WORDS = 1.0, 0.9, 0.5, 0.8
_MOST_RELATIONS = 50
"""So many relations of one entity are told: a hub of thousands would fill any context."""


@dataclass(slots=True)
class _Entity:
    """An entity, from all documents that tell of it."""

    entity_id: str
    type: str
    name: str
    properties: dict[str, str]

    def called(self) -> str:
        return self.name or self.entity_id

    def heading(self) -> str:
        told = [part for part in (self.type, f"id {self.entity_id}" if self.name else "") if part]
        return f"{self.called()} ({', '.join(told)})" if told else self.called()


async def put(tx: Transaction, place: Place, entry: Entry) -> None:
    """Adds a piece of a graph."""
    assert entry.graph is not None
    for entity in entry.graph.entities:
        row = await tx.fetchrow(
            f"INSERT INTO {_ROWS} (bank, revision, entity_id, type, name, properties)"  # noqa: S608 - our own name
            " VALUES ($1, $2, $3, $4, $5, $6) RETURNING id",
            place.uid,
            entry.revision,
            entity.entity_id,
            entity.type,
            entity.name,
            _packed(entity.properties),
        )
        assert row is not None
        facts = " ".join(f"{key} {value}" for key, value in sorted(entity.properties.items()))
        text = f"{entity.name} {entity.entity_id} {entity.type} {facts}"
        await rows.put_text(tx, place, int(row[0] or 0), text)
    for relation in entry.graph.relations:
        await tx.execute(
            "INSERT INTO graph_relations (bank, revision, from_entity, to_entity, type, properties)"
            " VALUES ($1, $2, $3, $4, $5, $6)",
            place.uid,
            entry.revision,
            relation.from_entity_id,
            relation.to_entity_id,
            relation.type,
            _packed(relation.properties),
        )
    await rows.put_labels(tx, place, entry)


async def remove(tx: Transaction, place: Place, revisions: Sequence[str]) -> None:
    """Removes pieces of the graph."""
    await tx.execute(
        "DELETE FROM graph_relations WHERE bank = $1 AND revision IN (SELECT value FROM json_each($2))",
        place.uid,
        json.dumps(list(revisions)),
    )
    await rows.remove(tx, place, _ROWS, revisions)


async def revisions(tx: Transaction, place: Place) -> list[str]:
    """Returns what is there."""
    found = await tx.fetch("SELECT DISTINCT revision FROM graph_relations WHERE bank = $1", place.uid)
    return list({*await rows.revisions(tx, place, _ROWS), *(str(row[0]) for row in found)})


async def search(tx: Transaction, place: Place, question: Question) -> list[Hit]:
    """Returns entities with their surroundings: those that are named first, then of a type, then by words."""
    scored: dict[str, tuple[float, str]] = {}
    for row, score in [*await _named(tx, place, question), *await _worded(tx, place, question)]:
        entity_id, revision = str(row[0]), str(row[1])
        if score > scored.get(entity_id, (0.0, ""))[0]:
            scored[entity_id] = (score, revision)
    ranked = sorted(scored.items(), key=lambda item: (-item[1][0], item[0]))[: question.limit]
    reading = _Reading(tx, place, question)
    return [Hit(revision, 0, score, await reading.surroundings(entity_id)) for entity_id, (score, revision) in ranked]


async def _named(tx: Transaction, place: Place, question: Question) -> list[tuple[Row, float]]:
    asked = question.text.strip().lower()
    said = [phrase.lower() for phrase in phrases(question.text)]
    found: list[tuple[Row, float]] = []
    # `type` also where the question has its plural.
    singular = [phrase.removesuffix("s") for phrase in said]
    for column, wanted in (("entity_id COLLATE NOCASE", said), ("name", said), ("type", [*said, *singular])):
        matching = await tx.fetch(
            f"SELECT entity_id, revision, {column.partition(' ')[0]} FROM {_ROWS} WHERE {rows.seen(_ROWS)}"  # noqa: S608 - our own names
            f" AND {column} IN (SELECT value FROM json_each($4)) AND {column} <> '' ORDER BY id LIMIT $5",
            *rows.limits(place, question),
            json.dumps(wanted),
            question.limit,
        )
        for row in matching:
            mentioned = _OF_TYPE if column == "type" else _EXACT if str(row[2]).lower() == asked else _MENTIONED
            found.append((row, mentioned))
    return found


async def _worded(tx: Transaction, place: Place, question: Question) -> list[tuple[Row, float]]:
    by_words = await rows.by_words(tx, place, _ROWS, question)
    matching = await tx.fetch(
        f"SELECT entity_id, revision, id FROM {_ROWS} WHERE id IN (SELECT value FROM json_each($1))",  # noqa: S608 - our own name
        json.dumps(list(by_words)),
    )
    return [(row, _BY_WORDS * by_words[int(row[2] or 0)]) for row in matching]


class _Reading:
    """Reads the graph as one question may see it."""

    def __init__(self, tx: Transaction, place: Place, question: Question) -> None:
        self._tx = tx
        self._place = place
        self._limits = rows.limits(place, question)

    async def surroundings(self, entity_id: str) -> str:
        """Returns an entity and its relations, and those of its neighbours where the bank goes that far."""
        entity = await self._entity(entity_id)
        lines = [entity.heading(), *(f"{key}: {value}" for key, value in sorted(entity.properties.items()))]
        told: set[int] = set()
        border = [entity_id]
        for _ in range(self._place.depth):
            beyond: list[str] = []
            for each in border:
                for row in await self._relations(each):
                    if int(row[0] or 0) in told or len(told) >= _MOST_RELATIONS:
                        continue
                    told.add(int(row[0] or 0))
                    lines.append(await self._line(row))
                    beyond += [end for end in (str(row[1]), str(row[2])) if end != each]
            border = list(dict.fromkeys(beyond))
        return "\n".join(lines)

    async def _line(self, row: Row) -> str:
        _, source, target, kind, packed = row
        first, second = await self._entity(str(source)), await self._entity(str(target))
        facts = json.loads(str(packed))
        told = f" ({', '.join(f'{key}: {value}' for key, value in sorted(facts.items()))})" if facts else ""
        return f"{first.called()} -[{kind}]-> {second.called()}{told}"

    async def _relations(self, entity_id: str) -> list[Row]:
        columns = "id, from_entity, to_entity, type, properties"
        seen = rows.seen("graph_relations")
        return await self._tx.fetch(
            f"SELECT {columns} FROM graph_relations WHERE {seen} AND (from_entity = $4 OR to_entity = $4)"  # noqa: S608 - our own names
            " ORDER BY id LIMIT $5",
            *self._limits,
            entity_id,
            _MOST_RELATIONS,
        )

    async def _entity(self, entity_id: str) -> _Entity:
        """One of several documents may tell the type, another one the name; the last one has the last word."""
        entity = _Entity(entity_id, "", "", {})
        tellings = await self._tx.fetch(
            f"SELECT type, name, properties FROM {_ROWS} WHERE {rows.seen(_ROWS)} AND entity_id = $4 ORDER BY id",  # noqa: S608 - our own names
            *self._limits,
            entity_id,
        )
        for kind, name, packed in tellings:
            entity.type = str(kind or "") or entity.type
            entity.name = str(name or "") or entity.name
            entity.properties |= json.loads(str(packed))
        return entity


def _packed(properties: Mapping[str, str]) -> str:
    return json.dumps(dict(properties), ensure_ascii=False, sort_keys=True)
