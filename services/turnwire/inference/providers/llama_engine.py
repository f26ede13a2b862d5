"""One llama.cpp model in this process: loaded in the background, asked in OpenAI's words, stopped at once."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from importlib import import_module
from typing import TYPE_CHECKING, Any

import structlog

from turnwire.errors import ContextLengthExceeded, InvalidArgument, ProviderError, ProviderUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

_log = structlog.get_logger(__name__)

_END = object()
_BATCH_TOKENS = 128


class LlamaEngine:
    """Wraps `xllamacpp.Server`: it batches the streams that are open at the same time.

    The engine holds the GIL only while it hands over a token. It stops when it next reports: at a token, or at the end
    of a batch of the prompt. So batches are small: a prompt of 6000 tokens held everybody up for 40 s, and a batch
    takes about a second on two busy cores. A stream counts as open until the engine has let go of it.
    """

    def __init__(
        self,
        provider_id: str,
        model_id: str,
        path: Path,
        *,
        context_tokens: int,
        parallel: int,
        decode_threads: int,
        batch_threads: int,
    ) -> None:
        """`context_tokens` is what one stream has; the engine shares `parallel` times that among its streams."""
        self.provider_id = provider_id
        self.model_id = model_id
        self.path = path
        self.context_tokens = context_tokens
        self.open_streams = 0
        self._parallel = parallel
        self._decode_threads = decode_threads
        self._batch_threads = batch_threads
        # A thread for each open stream: those that wait for a slot wait in the engine.
        self._threads = ThreadPoolExecutor(max_workers=max(64, parallel * 4), thread_name_prefix=f"llama {model_id}")
        self._loading: asyncio.Task[Any] | None = None
        self._server: Any = None
        self._stops: set[threading.Event] = set()
        self._closed = False
        self.failure = ""

    @property
    def loaded(self) -> bool:
        """True once it can answer without waiting."""
        return self._server is not None

    def start(self) -> None:
        """Begins to load the model."""
        if self._loading is None:
            self._loading = asyncio.create_task(self._load(), name=f"load {self.model_id}")
            # Those who wait for the model are told; with nobody waiting, `failure` tells.
            self._loading.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def close(self) -> None:
        """Stops what is being written and unloads the model; streams that are still read end with an error."""
        self._closed = True
        if self._loading is not None:
            await asyncio.gather(self._loading, return_exceptions=True)
        for stop in self._stops:
            stop.set()
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)
        self._server = None

    async def chat(
        self, request: dict[str, Any], *, form: str = "response_format"
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yields OpenAI chunks of a chat completion. `form` is the field that says how the answer has to look."""
        async with aclosing(self._stream("handle_chat_completions", request, form)) as chunks:
            async for chunk in chunks:
                if "prompt_progress" not in chunk:
                    yield chunk

    async def complete(self, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yields OpenAI chunks of a text completion."""
        async with aclosing(self._stream("handle_completions", request, "response_format")) as chunks:
            async for chunk in chunks:
                if "prompt_progress" not in chunk:
                    yield chunk

    async def count(self, request: dict[str, Any]) -> int:
        """Returns the tokens of the prompt of a chat completion, which is not read."""
        async with aclosing(self._stream("handle_chat_completions", request, "messages")) as chunks:
            async for chunk in chunks:
                if "prompt_progress" in chunk:
                    return int(chunk["prompt_progress"]["total"])
        raise self._error("it did not tell the length of the prompt", {}, "messages")

    async def _stream(self, method: str, request: dict[str, Any], form: str) -> AsyncGenerator[dict[str, Any], None]:
        server = await self._ready()
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Any] = asyncio.Queue()
        stopped = threading.Event()

        def put(item: object) -> None:
            try:
                loop.call_soon_threadsafe(queue.put_nowait, item)
            except RuntimeError:
                # The loop has ended: nobody reads any more.
                stopped.set()

        def take(chunk: object) -> bool:
            # True stops the engine; an exception here would be swallowed by it.
            if not stopped.is_set():
                put(chunk)
            return stopped.is_set()

        def over(_: object) -> None:
            if stopped in self._stops:
                self._stops.remove(stopped)
                self.open_streams -= 1

        self.open_streams += 1
        self._stops.add(stopped)
        # Asked to report its progress, the engine can be stopped while it still reads the prompt.
        asked = request | {"return_progress": True}
        work = loop.run_in_executor(self._threads, _run, getattr(server, method), asked, take, put)
        work.add_done_callback(over)
        try:
            while True:
                chunk = await queue.get()
                if self._closed:
                    raise self._unavailable("it is being unloaded")
                if chunk is _END:
                    # It has said its last word and lets go now; whoever asks next finds it so.
                    await work
                    over(work)
                    return
                if isinstance(chunk, Exception):
                    raise self._error(str(chunk), {}, form)
                if "error" in chunk:
                    raise self._error(str(chunk["error"].get("message", "")), chunk["error"], form)
                yield chunk
        finally:
            # Whoever leaves early does not wait for the engine.
            stopped.set()

    async def _ready(self) -> Any:
        if self._closed:
            raise self._unavailable("it is being unloaded")
        self.start()
        assert self._loading is not None
        # Shielded: one caller's deadline must not end the loading for all.
        return await asyncio.shield(self._loading)

    async def _load(self) -> Any:
        try:
            self._server = await asyncio.get_running_loop().run_in_executor(self._threads, self._open)
        except Exception as error:
            self.failure = f"{self.path} cannot be loaded: {error}"
            # The next request tries again: the file may have been mended.
            self._loading = None
            _log.warning("model_not_loaded", model=self.model_id, path=str(self.path), error=str(error))
            raise self._unavailable(self.failure) from error
        self.failure = ""
        _log.info("model_loaded", model=self.model_id)
        return self._server

    def _open(self) -> Any:
        # Only a process that runs a model pays for the import.
        xllamacpp: Any = import_module("xllamacpp")
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(self.path)
        parameters.n_parallel = self._parallel
        parameters.n_ctx = self.context_tokens * self._parallel
        parameters.cpuparams.n_threads = self._decode_threads
        parameters.cpuparams_batch.n_threads = self._batch_threads
        # The engine opens an HTTP port of its own on loopback; nobody knows the key.
        parameters.api_keys = [secrets.token_urlsafe(32)]
        parameters.warmup = False
        # Errors and warnings: what it says of each request is in our own log.
        parameters.verbosity = 2
        parameters.n_batch = parameters.n_ubatch = _BATCH_TOKENS
        return xllamacpp.Server(parameters)

    def _unavailable(self, detail: str) -> ProviderUnavailable:
        return ProviderUnavailable(self.provider_id, detail, model=self.model_id)

    def _error(self, message: str, details: dict[str, Any], form: str) -> Exception:
        if details.get("type") == "exceed_context_size_error":
            return ContextLengthExceeded(
                self.model_id, prompt_tokens=int(details["n_prompt_tokens"]), context_tokens=int(details["n_ctx"])
            )
        if "schema" in message.lower() or "grammar" in message.lower():
            return InvalidArgument.one(form, f"is not understood by the engine: {message[:300]}")
        return ProviderError(provider_id=self.provider_id, model=self.model_id, detail=message[:300])


def _run(
    method: Callable[[dict[str, Any], Callable[[object], bool]], object],
    request: dict[str, Any],
    take: Callable[[object], bool],
    put: Callable[[object], None],
) -> None:
    try:
        method(request, take)
    except Exception as error:
        put(error)
    else:
        put(_END)


def default_threads() -> tuple[int, int]:
    """Returns (decode, batch) threads: one core is left for the mesh while a model writes."""
    cores = os.cpu_count() or 1
    return max(1, cores - 1), cores
