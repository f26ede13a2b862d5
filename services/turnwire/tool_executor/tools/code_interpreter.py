"""`inline::code-interpreter`: the tool `code_interpreter`, a Python a session that remembers, in a sandbox.

The code runs in the sandbox runner, never here: this module opens the sandbox of the session, puts the files of the
call into its working directory, passes output on as it comes, and keeps the files and figures that the code has made.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from collections import OrderedDict
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration

from turnwire.common.v1 import error_pb2, inspect_service_pb2, message_pb2
from turnwire.errors import (
    ContentLost,
    DocumentRefused,
    NotFound,
    QuotaExhausted,
    TurnwireError,
    Unavailable,
    from_rpc_error,
    may_have_arrived,
)
from turnwire.runtime.channels import upstream
from turnwire.runtime.failpoints import Boundary, Failpoint
from turnwire.sandbox_runner.v1 import sandbox_runner_service_pb2 as sandbox
from turnwire.sandbox_runner.v1.sandbox_runner_service_pb2_grpc import SandboxRunnerServiceStub
from turnwire.tool_executor.attachments import MOST_BYTES
from turnwire.tool_executor.limits import LONGEST, Limits
from turnwire.tool_executor.locks import KeyedLocks
from turnwire.tool_executor.patience import patiently
from turnwire.tool_executor.tools.configuring import ToolSettings, built_in, described_as, settings_of
from turnwire.tool_executor.tools.port import ATTEMPTS, Answer, File, OutcomeLost, Output, Progress, Sending
from turnwire.tool_executor.v1 import artifact_service_pb2
from turnwire.tool_executor.workspaces import NOT_KEPT, Changes
from turnwire.tool_executor.written import Written

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from turnwire.tool_executor.artifacts import Artifacts, Draft
    from turnwire.tool_executor.tools.port import Call, Piece, State, Surroundings
    from turnwire.tool_executor.v1 import tool_pb2
    from turnwire.tool_executor.workspaces import Snapshot, Workspaces

_log = structlog.get_logger(__name__)
_OPENING = Boundary("tool_executor.sandbox_opened")
_RESTORING = Boundary("tool_executor.workspace_restored")
_GIVING = Boundary("tool_executor.files_given")
_ASKED = Failpoint("tool_executor.code_sent")
TOOL = "code_interpreter"
_PIECE = 512 * 1024
_HEARD_SECONDS = 0.4
"""So long a runner has to answer that a run was ended on: who cancels a turn has an answer within a second."""
_AWAY_SECONDS = 15.0
"""A runner that is away, as while it is started again, is asked again for so long at most."""
_REMEMBERED = 4096
"""Of so many sandboxes it is known which files they were given."""
_NAMED = 20
"""So many files that are lost the model is told by their names."""
_ANEW = "The sandbox was started anew: variables and imports of earlier runs are gone"
_SCHEMA = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "minLength": 1, "description": "Complete Python code that prints the result."}
    },
    "required": ["code"],
    "additionalProperties": False,
}
# The examples are worth their tokens: small models write code that looks like one of them.
_DESCRIPTION = (
    "Computes with Python (numpy, pandas, matplotlib): numbers, dates, counting, data. Variables and files stay. "
    r'Examples: {"code": "import math\nprint(math.comb(9, 4) * 12.5)"}'
    r' {"code": "from datetime import date\nprint(date(2023, 5, 9).strftime(\"%A\"))"}'
    r' {"code": "total = 0\nfor n in range(3, 8):\n    total += n ** 2\nprint(total)"}'
)


class CodeInterpreterProvider:
    """Runs code in the sandbox of the session."""

    takes_files = True
    takes_authorization = False
    # Code may compute in silence; the runner ends what takes too long.
    defaults = Limits(connect=30.0, first_byte=600.0, silence=600.0, total=600.0)

    class Config(ToolSettings):
        """The configuration; limits of the code itself are those of the runner, in the section `sandbox`."""

    def __init__(self, provider_id: str, config: Config) -> None:
        """Opens no sandbox yet."""
        self.provider_id = provider_id
        self._tool = built_in(provider_id, TOOL, _DESCRIPTION, _SCHEMA, idempotent=False)
        self._runner: Any = None
        self._artifacts: Artifacts | None = None
        self._workspaces: Workspaces | None = None
        self._locks = KeyedLocks()
        self._prepared: OrderedDict[tuple[str, str], _Prepared] = OrderedDict()
        """What was put into which sandbox: a later call does not undo what code has done to it."""

    async def start(self, surroundings: Surroundings) -> None:
        """Connects to the sandbox runner when it is first needed."""
        self._runner = SandboxRunnerServiceStub(surroundings.directory.channel("sandbox_runner"))
        self._artifacts = surroundings.artifacts
        self._workspaces = surroundings.workspaces

    async def close(self) -> None:
        """Nothing to give back: sandboxes end by themselves, and the channel is the service's."""

    def state(self) -> tuple[State.ValueType, str]:
        """Ready; whether the runner is there shows with each call."""
        return inspect_service_pb2.Provider.STATE_READY, ""

    def tools(self) -> Sequence[tool_pb2.Tool]:
        """Returns `code_interpreter`."""
        return [self._tool]

    async def accept(self, tool: tool_pb2.Tool) -> None:
        """Takes a tool without settings, and a description with code."""
        settings_of(ToolSettings, tool)
        described_as(tool, self._tool, ("code",))

    async def execute(self, call: Call) -> AsyncGenerator[Piece]:
        """Runs code once. What certainly has not begun is sent once more, to a sandbox that is opened anew."""
        assert self._artifacts is not None
        key = (call.tenant, _sandbox_id(call.tenant, call.session_id))
        async with AsyncExitStack() as stack:
            run = _Run(call, self._artifacts, stack)
            async with aclosing(self._prepared_in_time(key, run)) as attempts:
                async for further in attempts:
                    yield further
            yield Sending()
            again = True
            while again:
                again = False
                try:
                    async with upstream(self._runner.RunCode(_request(key[1], call))) as stream:
                        await _ASKED.reached()
                        async for response in stream:
                            if text := await run.take(response):
                                yield Output(text)
                except grpc.RpcError as raised:
                    error = from_rpc_error(raised, service="sandbox_runner")
                    if run.started:
                        raise OutcomeLost("the sandbox went away while the code ran") from None
                    if may_have_arrived(raised):
                        raise OutcomeLost("the sandbox went away when the code was sent to it") from None
                    if not isinstance(error, (NotFound, Unavailable)) or run.tried_again:
                        raise error from None
                    run.tried_again = again = True
                    # Nothing of it has begun: the sandbox was closed as idle, or its runner has no connection yet.
                    async with aclosing(self._prepared_in_time(key, run)) as attempts:
                        async for further in attempts:
                            yield further
            yield await run.answer(await self._changes(run))

    async def has_ended(self, tenant: str, session_id: str) -> bool:
        """A runner that answers has heard before that nobody wants the run any more, and is ending its processes."""
        request = sandbox.OpenSandboxRequest(sandbox_id=_sandbox_id(tenant, session_id))
        try:
            async with _OPENING:
                await self._runner.OpenSandbox(request, timeout=_HEARD_SECONDS)
        except grpc.RpcError as error:
            _log.warning("run_not_seen_to_end", reason=from_rpc_error(error, service="sandbox_runner").message)
            return False
        return True

    async def _prepared_in_time(self, key: tuple[str, str], run: _Run) -> AsyncGenerator[Progress]:
        """Opens the sandbox; a runner that is away is asked again for a while, since nothing was sent yet.

        Yields how many attempts there were, with each further one.
        """
        gives_up = time.monotonic() + min(_AWAY_SECONDS, run.call.limits.connect / 2)
        attempt = 1
        while True:
            try:
                await self._prepare(key, run)
            except Unavailable:
                pause = min(0.1 * 2**attempt, 2.0) * random.uniform(0.7, 1.3)  # noqa: S311 - jitter, no secret
                if time.monotonic() + pause > gives_up:
                    raise
            else:
                return
            attempt += 1
            yield Progress(attempt, 0, ATTEMPTS)
            await asyncio.sleep(pause)

    async def _prepare(self, key: tuple[str, str], run: _Run) -> None:
        """Opens the sandbox of a session and puts the files there that it lacks.

        Where it has ended since code of the session ran, those are all files, and the run is told.
        """
        assert self._workspaces is not None
        call = run.call
        async with self._locks.held(key):
            try:
                async with _OPENING:
                    opened = await self._runner.OpenSandbox(sandbox.OpenSandboxRequest(sandbox_id=key[1]))
                prepared = self._prepared.get(key)
                if prepared is None or prepared.instance_id != opened.instance_id:
                    last = await self._workspaces.latest(call.tenant, call.session_id)
                    if opened.created and last is not None:
                        run.restored = await self._restore(key, last)
                    prepared = self._prepared[key] = _Prepared(opened.instance_id)
                self._prepared.move_to_end(key)
                missing = [file for file in call.files if _mark(file) not in prepared.given]
                if missing:
                    async with _GIVING:
                        await self._runner.WriteFiles(_pieces(key[1], missing))
                    prepared.given.update(_mark(file) for file in missing)
                    run.given.extend(missing)
            except grpc.RpcError as error:
                raise from_rpc_error(error, service="sandbox_runner") from None
            while len(self._prepared) > _REMEMBERED:
                self._prepared.popitem(last=False)

    async def _restore(self, key: tuple[str, str], last: Snapshot) -> str:
        """Puts the files of the last snapshot into a sandbox; returns what the model has to know."""
        assert self._artifacts is not None
        missing: list[str] = []
        for path, artifact_id in last.files.items():
            if artifact_id == NOT_KEPT:
                missing.append(path)
                continue
            try:
                _, data = await self._artifacts.content(key[0], artifact_id, most=MOST_BYTES)
            except (NotFound, DocumentRefused, ContentLost):
                missing.append(path)
                continue
            async with _RESTORING:
                await self._runner.WriteFiles(_pieces(key[1], [File(path, data, "")]))
        _log.info("workspace_restored", snapshot=last.snapshot_id, files=len(last.files), missing=len(missing))
        if missing:
            told = ", ".join(map(json.dumps, missing[:_NAMED]))
            further = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            return f"{_ANEW}; of their files these could not be brought back: {told}{further}."
        return f"{_ANEW}; their files are there again." if last.files else f"{_ANEW}."

    async def _changes(self, run: _Run) -> Changes:
        """Returns what is different in the workspace after a run: what the call gave, what the code has changed."""
        assert self._artifacts is not None
        call = run.call
        made = run.made
        for file in run.given:
            if file.name in made or file.name in run.removed:
                continue
            keep = partial(
                self._artifacts.keep,
                call.tenant,
                file.name,
                file.data,
                mime_type=file.mime_type,
                session_id=call.session_id,
                metadata={"tool": call.tool.tool_id, "call_id": call.call_id, "path": file.name},
            )
            try:
                kept = await patiently(keep)  # the code has run, and cannot be run again
            except (DocumentRefused, QuotaExhausted) as error:
                # The code has run: what it gave counts, whether its files can be brought back or not.
                _log.warning("workspace_file_not_kept", reason=error.message)
                made[file.name] = NOT_KEPT
            else:
                made[file.name] = kept.artifact_id
        return Changes(call.session_id, made, run.removed)


@dataclass(slots=True)
class _Prepared:
    """What is known of a sandbox."""

    instance_id: str
    given: set[str] = field(default_factory=set[str])
    """The files of calls that were put there."""


class _Run:
    """One run of code: what it wrote, and what it made."""

    def __init__(self, call: Call, artifacts: Artifacts, stack: AsyncExitStack) -> None:
        self.call = call
        self._artifacts = artifacts
        self._stack = stack
        self._written = Written(
            artifacts,
            stack,
            tenant=call.tenant,
            session_id=call.session_id,
            tool=call.tool.tool_id,
            call_id=call.call_id,
        )
        self._line_ends = 0
        """Line ends that the output may turn out to end with, and is then given without."""
        self._notices: list[str] = []
        self._drafts: dict[str, Draft] = {}
        self._refused: set[str] = set()
        self._left_out: set[str] = set()
        self._made: dict[str, message_pb2.Attachment] = {}
        self._finished: sandbox.RunFinished | None = None
        self.started = False
        self.tried_again = False
        self.restored = ""
        """What the model is told of a sandbox that was started anew for this run."""
        self.given: list[File] = []
        """The files of the call that were put into the sandbox for this run."""
        self.removed: set[str] = set()

    @property
    def made(self) -> dict[str, str]:
        """The artifact of each file that was made or changed."""
        not_kept = dict.fromkeys((*self._refused, *self._left_out, *self._drafts), NOT_KEPT)
        return not_kept | {path: attachment.artifact_id for path, attachment in self._made.items()}

    async def take(self, response: sandbox.RunCodeResponse) -> str:
        """Takes a piece of the run; returns what its readers see of it."""
        match response.WhichOneof("payload"):
            case "started":
                self.started = True
                # The runner knows that files are lost, and not that they were brought back.
                return self._note(self.restored or response.started.notice)
            case "stdout":
                return await self._text(response.stdout)
            case "stderr":
                return await self._text(response.stderr)
            case "notice":
                return self._note(response.notice)
            case "file":
                return await self._file(response.file)
            case "finished":
                self._finished = response.finished
                return ""
            case "removed_file":
                self.removed.add(response.removed_file)
                return ""  # the model knows what its code has removed
            case "left_out_file":
                self._left_out.add(response.left_out_file)
                return ""  # a notice says so
            case _:
                return ""  # kinds of later versions

    async def answer(self, changes: Changes) -> Answer:
        """Returns what the model gets to read, and the files that were made."""
        finished = self._finished
        if finished is None:
            if self.started:
                raise OutcomeLost("the sandbox went away while the code ran")
            raise TurnwireError.cut("sandbox_runner")
        if self._drafts:
            self._notices.append(f"Files that were not given back whole: {', '.join(map(json.dumps, self._drafts))}.")
        parts = [finished.value_repr]
        if self._made:
            parts.append(f"[Files: {', '.join(self._made)}]")
        parts += [f"[{notice}]" for notice in self._notices]
        for part in filter(None, parts):
            await self._written.add(f"\n{part}" if self._written.size else part)
        content, attachments = await self._written.ended()
        failure = None
        if finished.HasField("failure"):
            failure = error_pb2.Failure()
            failure.CopyFrom(finished.failure)
            failure.metadata["tool"] = self.call.tool.tool_id
            failure.metadata["call_id"] = self.call.call_id
        content = content or ("" if failure else "[The code wrote nothing.]")
        return Answer(content, failure, [*self._made.values(), *attachments], changes)

    async def _text(self, text: str) -> str:
        """A piece of output. However much there is of it, the most of it is not kept in memory."""
        body = text.rstrip("\n")
        if body:
            while self._line_ends:
                some = min(self._line_ends, _PIECE)
                await self._written.add("\n" * some)
                self._line_ends -= some
            await self._written.add(body)
        self._line_ends += len(text) - len(body)
        return text

    def _note(self, notice: str) -> str:
        """A notice stands in the output when it comes, and in the content where the model reads it: at the end."""
        if not notice:
            return ""
        self._notices.append(notice)
        return f"[{notice}]\n"

    async def _file(self, piece: sandbox.WorkspaceFile) -> str:
        path = piece.path
        if path in self._refused:
            return ""
        try:
            draft = self._drafts.get(path)
            if draft is None:
                draft = self._drafts[path] = await self._stack.enter_async_context(self._artifacts.draft(path))
            await draft.write(piece.data)
            if piece.last:
                del self._drafts[path]
                self._made[path] = await self._kept(draft, path)
        except (DocumentRefused, QuotaExhausted) as error:
            self._drafts.pop(path, None)
            self._refused.add(path)
            return self._note(f"The file {json.dumps(path)} is not given back: {error.message}")
        return ""

    async def _kept(self, draft: Draft, path: str) -> message_pb2.Attachment:
        name = path.rpartition("/")[2][-255:]
        artifact = await draft.keep(
            self.call.tenant,
            artifact_service_pb2.OpenUpload(
                name=name,
                session_id=self.call.session_id,
                metadata={"tool": self.call.tool.tool_id, "call_id": self.call.call_id, "path": path[-512:]},
            ),
        )
        return message_pb2.Attachment(artifact_id=artifact.artifact_id, name=name, mime_type=artifact.mime_type)


def _sandbox_id(tenant: str, session_id: str) -> str:
    """One a session, and nothing of a session's id, which its callers may know."""
    return f"sb_{hashlib.sha256(json.dumps([tenant, session_id]).encode()).hexdigest()[:40]}"


def _request(sandbox_id: str, call: Call) -> sandbox.RunCodeRequest:
    request = sandbox.RunCodeRequest(sandbox_id=sandbox_id, call_id=call.call_id, code=str(call.arguments["code"]))
    if call.wanted_total is not None:
        limit = Duration()
        limit.FromMilliseconds(max(1, int(min(call.wanted_total, LONGEST) * 1000)))
        request.limit.CopyFrom(limit)
    return request


def _mark(file: File) -> str:
    return f"{file.name}\0{hashlib.sha256(file.data).hexdigest()}"


async def _pieces(sandbox_id: str, files: Sequence[File]) -> AsyncIterator[sandbox.WriteFilesRequest]:
    for file in files:
        for offset in range(0, max(len(file.data), 1), _PIECE):
            data = file.data[offset : offset + _PIECE]
            last = offset + len(data) >= len(file.data)
            piece = sandbox.WorkspaceFile(path=file.name, offset=offset, data=data, last=last)
            yield sandbox.WriteFilesRequest(sandbox_id=sandbox_id, file=piece)
