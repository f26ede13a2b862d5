"""The process that reads documents: one after the other, from its standard input, with nothing in reach but them.

What documents are made of is hostile until it is text. A reader that is overrun, loops or eats memory does it here,
where there are no keys, no network, no files but those of Python, and a limit for everything. Started by
`turnwire.memory.documents.process`, which ends it when it takes too long.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

from turnwire.memory.documents import confinement
from turnwire.memory.documents.chunking import chunked
from turnwire.memory.documents.document import Limits, Refused
from turnwire.memory.documents.frames import SPAN, packed, received
from turnwire.memory.documents.recognition import recognised
from turnwire.memory.documents.sections import Sections, shortened

if TYPE_CHECKING:
    from collections.abc import Sequence


class ByTokenizer:
    """Counts with a tokenizer file."""

    def __init__(self, path: str) -> None:
        from tokenizers import Tokenizer  # part of the memory service's packages, and loaded by this process only

        self._tokenizer: Any = Tokenizer.from_file(path)
        # What the file says of the length a model reads is no matter here.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def offsets(self, text: str) -> Sequence[tuple[int, int]]:
        return self._tokenizer.encode(text, add_special_tokens=False).offsets

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))


class Worker:
    """Reads documents within limits."""

    def __init__(self, limits: Limits, tokenizer: str) -> None:
        """Loads the tokenizer."""
        self._limits = limits
        self._tokens = ByTokenizer(tokenizer)

    def answer(self, header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        """Returns what a request is answered with: the text and its chunks, or why it was refused."""
        try:
            return self._read(header, data)
        except Refused as refused:
            return {"refused": refused.why, "limit": refused.limit}, b""
        except MemoryError:
            return {"refused": "reading it takes more memory than a document may", "limit": "memory_bytes"}, b""
        except RecursionError:
            return {"refused": "its parts are nested too deep", "limit": "depth"}, b""
        except Exception as error:
            # Libraries raise whatever they like on broken files; what it was helps whoever has the file.
            what = f"{type(error).__name__}: {error}"[:200]
            return {"refused": f"it is broken, or no document of its type ({what})", "limit": ""}, b""

    def _read(self, header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        format_, charset = recognised(data, header["mime_type"], header["name"])
        into = Sections(self._limits.text_bytes)
        title = format_.reader()(data, charset=charset, into=into, limits=self._limits)
        text = into.text
        if not text:
            raise Refused("no text was found in it; pages that are pictures are not read")
        encoded = bytearray(text.encode())
        size = len(encoded)
        spans, headings = bytearray(), dict[str, int]()
        character, byte = 0, 0
        cut = chunked(
            text,
            into.all,
            self._tokens,
            chunk_size_tokens=header["chunk_size_tokens"],
            overlap_tokens=header["overlap_tokens"],
        )
        for number, span in enumerate(cut, 1):
            if number > self._limits.chunks:
                raise Refused(f"it makes more than {self._limits.chunks} chunks", limit="chunks")
            # Chunks begin in order, so that each byte is counted once.
            byte += len(text[character : span.start].encode())
            character = span.start
            heading = headings.setdefault(span.section.heading, len(headings))
            end = byte + len(text[span.start : span.end].encode())
            spans += SPAN.pack(byte, end, span.tokens, span.section.page, heading)
        answer = {
            "mime_type": format_.mime_type,
            "title": shortened(title),
            "text_bytes": size,
            "headings": list(headings),
        }
        encoded += spans
        return answer, bytes(encoded)


def main() -> None:
    """Answers requests until the input ends."""
    # Whatever a library prints must not come between the messages.
    requests, answers = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    logging.disable(logging.CRITICAL)
    settings = json.loads(sys.argv[1])
    try:
        limits = Limits(**settings["limits"])
        confinement.limit(limits)
        worker = Worker(limits, settings["tokenizer"])
        walls = confinement.confine()
    except BaseException:
        _send(answers, {"broken": traceback.format_exc(limit=-3)}, b"")
        raise
    _send(answers, {"ready": walls}, b"")
    with os.fdopen(requests, "rb", buffering=0) as source:

        def read(size: int) -> bytes:
            return _exactly(source, size)

        while True:
            try:
                header, data = received(read, max_body=limits.input_bytes)
            except EOFError:
                return
            confinement.allow_seconds(limits.cpu_seconds)
            _send(answers, *worker.answer(header, data))
            # A document must not wait in memory for the next one.
            del header, data


def _exactly(source: Any, size: int) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    done = 0
    while done < size:
        count = source.readinto(view[done:])
        if not count:
            raise EOFError
        done += count
    view.release()
    return bytes(data)


def _send(stream: int, header: dict[str, Any], body: bytes) -> None:
    for part in (packed(header, len(body)), body):
        view = memoryview(part)
        while view:
            view = view[os.write(stream, view) :]


if __name__ == "__main__":
    main()
