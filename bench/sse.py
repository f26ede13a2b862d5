"""The tokens of an OpenAI-compatible server, read with nothing around them: the floor that a mesh can be held to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import aiohttp


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta


class _Chunk(msgspec.Struct):
    choices: list[_Choice]


async def tokens(session: aiohttp.ClientSession, base_url: str, prompt: str, count: int) -> AsyncGenerator[str]:
    """Yields the tokens of an answer."""
    body = {
        "model": "scripted",
        "stream": True,
        "max_tokens": count,
        "messages": [{"role": "user", "content": prompt}],
    }
    decoder = msgspec.json.Decoder(_Chunk)
    pending = b""
    async with session.post(f"{base_url}/chat/completions", data=msgspec.json.encode(body)) as response:
        response.raise_for_status()
        async for chunk in response.content.iter_any():
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                if not line.startswith(b"data: {"):
                    continue
                for choice in decoder.decode(line[6:]).choices:
                    if choice.delta.content:
                        yield choice.delta.content
