"""A server that speaks OpenAI's chat completions, well or badly.

A fake, made in November 2026 where the maker's reference could not be reached: its shapes are those that the maker's
own Python SDK (`openai`, in the lock) declares and accepts, and that SDK runs unchanged against it in
`tests/inference/test_openai.py`. The words of its refusals are what the public issue trackers of vLLM and llama.cpp
quote. It stands in for no one's model: it writes one text, as far as it is let.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

KEY = "sk-a-secret-that-no-log-may-hold"
TEXT = "Grüße aus der Küche 🍳!"
CONTEXT_TOKENS = 1000
_LONG_TEXT_WORDS = 400

REFUSALS: dict[str, dict[str, Any]] = {
    "openai messages": {
        "message": "This model's maximum context length is 4097 tokens. However, your messages resulted in 5000 tokens."
        " Please reduce the length of the messages.",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    },
    "openai bare": {
        "message": "Your input exceeds the context window of this model. Please adjust your input and try again.",
        "type": "invalid_request_error",
        "param": "input",
        "code": "context_length_exceeded",
    },
    "vllm requested": {
        "message": "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4500 in the"
        " messages, 500 in the completion). Please reduce the length of the messages or completion.",
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    },
    "vllm input": {
        "message": "This model's maximum context length is 4096 tokens. However, your request has 5000 input tokens."
        " Please reduce the length of the input messages.",
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    },
    "vllm too large": {
        "message": "'max_tokens' or 'max_completion_tokens' is too large: 4000. This model's maximum context length is"
        " 4096 tokens and your request has 200 input tokens (4000 > 4096 - 200).",
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    },
    "vllm decoder": {
        "message": "The decoder prompt (length 5000) is longer than the maximum model length of 4096. Make sure that"
        " `max_model_len` is no smaller than the number of text tokens.",
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    },
    "llama.cpp": {
        "message": "request (5000 tokens) exceeds the available context size (4096 tokens), try increasing it",
        "type": "exceed_context_size_error",
        "code": 400,
        "n_prompt_tokens": 5000,
        "n_ctx": 4096,
    },
    "field": {
        "message": "Unrecognized request argument supplied: top_k",
        "type": "invalid_request_error",
        "param": "top_k",
        "code": None,
    },
    "echo": {"message": f"Incorrect API key provided: {KEY}.", "type": "invalid_request_error", "code": None},
}


class FakeOpenAi:
    """Behaves as its `script` says: one word a request, `good` when the script has ended."""

    def __init__(self) -> None:
        """Behaves well."""
        self.script: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.open = 0
        self.base_url = ""
        self.connections: set[object] = set()
        """The clients' ports: one for each connection that was ever made."""
        self.models: Any = {"object": "list", "data": [{"id": "fake-chat", "object": "model"}]}
        self.models_answer = asyncio.Event()
        """The list of models is given when set."""
        self.models_answer.set()
        self.models_asked = 0

    def app(self) -> web.Application:
        """Returns the application to serve."""
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._chat)
        app.router.add_post("/v1/embeddings", self._embeddings)
        return app

    def _next(self, request: web.Request, body: dict[str, Any]) -> str:
        assert request.transport is not None
        self.connections.add(request.transport.get_extra_info("peername"))
        self.requests.append(body | {"authorization": request.headers.get("authorization")})
        return self.script.pop(0) if self.script else "good"

    async def _models(self, request: web.Request) -> web.Response:
        self.models_asked += 1
        await self.models_answer.wait()
        return web.json_response(self.models)

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        behaviour = self._next(request, body)
        refused = _refusal(behaviour)
        if refused is not None:
            return refused
        if behaviour == "wrong json":
            return web.json_response({"data": [{"index": 0, "embedding": "none"}]})
        texts = body["input"][1:] if behaviour == "one less" else body["input"]
        # The first component tells the vectors apart: their order is part of the answer.
        data = [
            {"object": "embedding", "index": index, "embedding": [float(len(text)), 4.0]}
            for index, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        return web.json_response({"object": "list", "data": data[::-1], "model": body["model"], "usage": usage})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        behaviour = self._next(request, body)
        refused = _refusal(behaviour) or _too_long(body)
        if refused is not None:
            return refused
        if behaviour == "wordless":
            await asyncio.Event().wait()
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        self.open += 1
        try:
            await self._stream(behaviour, body, response)
            if behaviour == "drops idle" and request.transport is not None:
                await response.write_eof()
                request.transport.close()
        except ConnectionResetError:
            pass
        finally:
            self.open -= 1
        return response

    async def _stream(self, behaviour: str, body: dict[str, Any], response: web.StreamResponse) -> None:
        if behaviour == "silent":
            await asyncio.Event().wait()
        lines = [f"data: {json.dumps(chunk, ensure_ascii=False)}" for chunk in _chunks(behaviour, body)]
        lines.append("data: [DONE]")
        if behaviour == "malformed":
            lines[2] = "data: {not json"
        if behaviour == "wrong json":
            lines[2] = 'data: {"choices": [{"delta": {"content": 5}}]}'
        if behaviour == "half a character":
            lines[2] = 'data: {"choices": [{"delta": {"content": "\\ud83c"}}]}'
        if behaviour == "error in stream":
            lines[2] = 'data: {"error": {"message": "the model fell over"}}'
        if behaviour == "error with code":
            lines[2] = f"data: {json.dumps({'error': REFUSALS['vllm input']})}"
        if behaviour == "old vllm error":
            lines[2] = 'data: {"object": "error", "message": "the model fell over", "code": 500}'
        if behaviour == "no end":
            lines = lines[:-3]
        if behaviour == "comments":
            lines = [part for line in lines for part in (": keep-alive", "event: message", line, "id: 7")]
        end = "\r\n\r\n" if behaviour == "crlf" else "\n\n"
        if behaviour == "no spaces":
            lines = [line.replace("data: ", "data:", 1) for line in lines]
        raw = "".join(line + end for line in lines).encode()
        if behaviour == "huge line":
            raw = b"data: " + b"x" * (5 * 1024 * 1024)
        if behaviour == "death":
            await response.write(raw[: len(raw) // 3])
            response.force_close()
            assert response._req is not None
            assert response._req.transport is not None
            response._req.transport.abort()
            return
        if behaviour == "goes silent":
            await response.write(raw[: len(raw) // 3])
            await asyncio.Event().wait()
        if behaviour == "trickle":
            for index in range(len(raw)):
                await response.write(raw[index : index + 1])
            return
        if behaviour == "endless":
            while True:
                await response.write(f"{lines[1]}{end}".encode())
                await asyncio.sleep(0.01)
        await response.write(raw)
        if behaviour == "ends late":
            await asyncio.sleep(0.01)
        if behaviour == "stays open":
            await asyncio.Event().wait()


def _refusal(behaviour: str) -> web.Response | None:
    def answer(status: int, message: str, **headers: str) -> web.Response:
        error = {"error": {"message": message, "type": "error", "code": None}}
        return web.json_response(error, status=status, headers=headers)

    match behaviour.split(maxsplit=1):
        case ["429", "date"]:
            date = datetime.now(UTC) + timedelta(seconds=90)
            return answer(429, "slow down", **{"retry-after": format_datetime(date, usegmt=True)})
        case ["429", "milliseconds"]:
            return answer(429, "slow down", **{"retry-after-ms": "1500", "retry-after": "2"})
        case ["429", seconds]:
            return answer(429, "slow down", **{"retry-after": seconds})
        case ["refusal", which]:
            return web.json_response({"error": REFUSALS[which]}, status=400)
        case [status] if status.isdigit():
            return answer(int(status), "oops")
        case ["redirect"]:
            return web.Response(status=307, headers={"location": "http://127.0.0.1:9/v1/chat/completions"})
        case ["json"]:
            return web.json_response({"choices": [{"message": {"content": TEXT}}]})
        case ["page"]:
            return web.Response(text="<html>Sign in</html>", content_type="text/html")
        case _:
            return None


def _too_long(body: dict[str, Any]) -> web.Response | None:
    words = sum(len((message.get("content") or "").split()) for message in body.get("messages", ()))
    if words <= CONTEXT_TOKENS:
        return None
    message = f"This model's maximum context length is {CONTEXT_TOKENS} tokens. However, your request has {words} input"
    return web.json_response({"error": {"message": f"{message} tokens.", "code": 400}}, status=400)


def _chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "text": delta.get("content"), "finish_reason": finish, "logprobs": None}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "fake-chat", "choices": [choice]}


def _usage(written: int) -> dict[str, Any]:
    usage = {"prompt_tokens": 5, "completion_tokens": written, "total_tokens": 5 + written}
    return _chunk({}) | {"choices": [], "usage": usage | {"prompt_tokens_details": {"cached_tokens": 2}}}


def _chunks(behaviour: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    if body.get("tools") and body.get("tool_choice") != "none":
        return _tool_chunks(behaviour)
    chunks = _text_chunks(body)
    if behaviour == "no usage":
        return chunks[:-1]
    if behaviour == "odd usage":
        chunks[-1]["usage"] = {"prompt_tokens": "many", "completion_tokens": -1, "prompt_tokens_details": 3}
    if behaviour == "nulls":
        for chunk in chunks[:-2]:
            chunk |= {"usage": None, "error": None}
            chunk["choices"][0]["delta"] |= {"tool_calls": None, "reasoning_content": None}
        chunks.insert(1, _chunk({}) | {"choices": None})
        chunks.insert(1, _chunk({}) | {"choices": [{"index": 0, "delta": None, "finish_reason": None}]})
    if behaviour == "thinks":
        chunks.insert(1, _chunk({"reasoning_content": "Hm."}))
    if behaviour == "stop sequence":
        # vLLM names the sequence it met.
        chunks[-2]["choices"][0]["stop_reason"] = "der"
    return chunks


def _text_chunks(body: dict[str, Any]) -> list[dict[str, Any]]:
    text = TEXT
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
    if schema is not None:
        text = json.dumps(dict.fromkeys(schema["properties"], 1))
    if "long" in json.dumps(body.get("messages", body.get("prompt"))):
        text = " ".join(f"w{number}" for number in range(_LONG_TEXT_WORDS))
    for stop in body.get("stop", ()):
        text = text.split(stop)[0]
    words = [word + " " for word in text.split(" ")]
    limit = body.get("max_tokens", body.get("max_completion_tokens", len(words)))
    finish = "length" if limit < len(words) else "stop"
    written = words[:limit]
    pieces = [_chunk({"content": word}) for word in written]
    return [_chunk({"role": "assistant", "content": ""}), *pieces, _chunk({}, finish), _usage(len(written))]


def _tool_chunks(behaviour: str) -> list[dict[str, Any]]:
    first: dict[str, Any] = {"index": 0, "id": "call_x", "type": "function"}
    first["function"] = {"name": "add", "arguments": ""}
    second: dict[str, Any] = {"index": 1, "id": "call_y", "type": "function"}
    second["function"] = {"name": "mul", "arguments": '{"m": '}
    pieces = [{"index": 0, "function": {"arguments": text}} for text in ('{"n"', ": 1}")]
    calls = [first, *pieces]
    finish = "tool_calls"
    match behaviour:
        case "two calls":
            calls = [first, second, pieces[0], {"index": 1, "function": {"arguments": "2}"}}, pieces[1]]
        case "all number 0":
            calls = [first, *pieces, second | {"index": 0}, {"index": 0, "function": {"arguments": "2}"}}]
        case "no numbers":
            calls = [first, *pieces, second, {"index": 1, "function": {"arguments": "2}"}}]
            for call in calls:
                del call["index"]
        case "name comes late":
            unnamed = first | {"function": {"arguments": '{"n"'}}
            calls = [unnamed, {"index": 0, "function": {"name": "add"}}, pieces[1]]
        case "cut call":
            calls, finish = [first, pieces[0]], "length"
        case "says stop":
            finish = "stop"
        case _:
            pass
    written = [_chunk({"tool_calls": [call]}) for call in calls]
    return [_chunk({"role": "assistant", "content": None}), *written, _chunk({}, finish), _usage(7)]


@asynccontextmanager
async def fake_openai() -> AsyncGenerator[FakeOpenAi]:
    """Gives a running fake."""
    fake = FakeOpenAi()
    # A handler whose client has gone ends, as those of the real servers do.
    runner = web.AppRunner(fake.app(), handler_cancellation=True, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield fake
    finally:
        await runner.cleanup()
