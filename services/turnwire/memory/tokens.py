"""How long a text is for the embedding model that Turnwire comes with."""

from __future__ import annotations

import asyncio
from typing import Any

from turnwire import weights

_BYTES_PER_TOKEN = 3
"""Of English prose it is four or more: the estimate is on the safe side."""


class Tokens:
    """Counts tokens, with the tokenizer that cuts documents into chunks."""

    def __init__(self) -> None:
        """Loads nothing yet."""
        self._tokenizer: Any = None

    async def count(self, text: str) -> int:
        """Returns the length of a text, without the marks of its start and end.

        It is an estimate where the tokenizer's file is not on this machine: values and graphs need no model.
        """
        return await asyncio.to_thread(self._count, text)

    def _count(self, text: str) -> int:
        if self._tokenizer is None:
            try:
                self._tokenizer = _loaded()
            except weights.WeightsError:
                return -(-len(text.encode()) // _BYTES_PER_TOKEN)
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _loaded() -> Any:
    from tokenizers import Tokenizer  # only where texts are counted

    tokenizer = Tokenizer.from_file(str(weights.locate("minilm", "tokenizer.json")))
    # The file says to cut and to fill up.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
