"""Questions and the passages that answer them, written by others: Perl's own FAQ among Perl's own manual.

Debian's package perl-doc (perl 5.36: Artistic or GPL-1+) has both as POD. A question is a heading of `perlfaq1` to
`perlfaq9`, and the one relevant passage is what stands below it, without the heading. The other passages are all
sections of the rest of the manual. Nothing of it is kept here: it is read where the package has put it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PODS = "/usr/share/perl/5.*/pod"
_FORMATTING = re.compile(r"[A-Z]<(?:<+ )?([^<>]*)(?: >+)?>")
_ENTITIES = {"lt": "<", "gt": ">", "sol": "/", "verbar": "|"}
_LEAST_CHARACTERS, _MOST_CHARACTERS = 40, 20_000
_NO_QUESTIONS = frozenset({"NAME", "VERSION", "DESCRIPTION", "AUTHOR AND COPYRIGHT"})
_LISTS = frozenset({"perltoc", "perluniprops", "perlfaq", "perlindex", "perlmodlib"})
"""Tables of contents and of characters; what changed between versions (`…delta`) tells everything once more."""


@dataclass(frozen=True, slots=True)
class Questions:
    """A set to judge retrieval by."""

    passages: dict[str, str]
    """By id."""
    answers: dict[str, str]
    """Question to the id of the one passage that answers it."""


def perl_faq() -> Questions:
    """Returns the set.

    Raises:
        FileNotFoundError: the package perl-doc is not installed.
    """
    folders = sorted(Path("/").glob(PODS.removeprefix("/")))
    files = sorted(folders[-1].glob("perl*.pod")) if folders else []
    if not any(file.name == "perlfaq4.pod" for file in files):
        raise FileNotFoundError(f"there is no perlfaq4.pod in {PODS}: install the Debian package perl-doc")
    passages: dict[str, str] = {}
    answers: dict[str, str] = {}
    for file in files:
        if file.stem in _LISTS or file.stem.endswith("delta"):
            continue
        asked = re.fullmatch(r"perlfaq\d", file.stem) is not None
        for number, (heading, body) in enumerate(_sections(file.read_text(encoding="utf-8", errors="replace"))):
            if not _LEAST_CHARACTERS <= len(body) <= _MOST_CHARACTERS:
                continue
            name = f"{file.stem}-{number}"
            passages[name] = body
            if asked and heading not in _NO_QUESTIONS and heading not in answers:
                answers[heading] = name
    return Questions(passages, answers)


def _sections(pod: str) -> list[tuple[str, str]]:
    sections: list[tuple[str, list[str]]] = []
    for paragraph in re.split(r"\n\s*\n", pod):
        command, _, rest = paragraph.strip("\n").partition(" ")
        if command in {"=head1", "=head2", "=head3"}:
            sections.append((_plain(rest.replace("\n", " ")), []))
        elif command == "=item" and sections:
            sections[-1][1].append(_plain(rest))
        elif not paragraph.startswith("=") and sections:
            sections[-1][1].append(paragraph if paragraph.startswith((" ", "\t")) else _plain(paragraph))
    return [(heading, "\n\n".join(body).strip()) for heading, body in sections]


def _plain(text: str) -> str:
    text = re.sub(r"X<[^<>]*>", "", text)  # entries of an index
    text = re.sub(r"E<(\w+)>", lambda found: _ENTITIES.get(found[1], ""), text)
    text = re.sub(r"L<(?:([^|<>]*)\|)?([^<>]*)>", lambda found: found[1] or found[2], text)
    for _ in range(3):  # they nest
        text = _FORMATTING.sub(r"\1", text)
    return text.strip()
