"""`inline::code-interpreter`: the tool `code_interpreter`, a Python a session that remembers, in a sandbox.

The code runs in the sandbox runner, never here: this module opens the sandbox of the session, puts the files of the
call into its working directory, passes output on as it comes, and keeps the files and figures that the code has made.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.duration_pb2 import Duration

from turnwire.common.v1 import error_pb2, inspect_service_pb2, message_pb2
from turnwire.errors import DocumentRefused, NotFound, QuotaExhausted, TurnwireError, from_rpc_error
from turnwire.runtime.channels import upstream
from turnwire.sandbox_runner.v1 import sandbox_runner_service_pb2 as sandbox
from turnwire.sandbox_runner.v1.sandbox_runner_service_pb2_grpc import SandboxRunnerServiceStub
from turnwire.tool_executor.limits import LONGEST, Limits
from turnwire.tool_executor.locks import KeyedLocks
from turnwire.tool_executor.tools.configuring import ToolSettings, built_in, described_as, settings_of
from turnwire.tool_executor.tools.port import Answer, OutcomeLost, Output, Sending
from turnwire.tool_executor.v1 import artifact_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from turnwire.tool_executor.artifacts import Artifacts, Draft
    from turnwire.tool_executor.tools.port import Call, File, Piece, State, Surroundings
    from turnwire.tool_executor.v1 import tool_pb2

TOOL = "code_interpreter"
_PIECE = 512 * 1024
_REMEMBERED = 4096
"""Of so many sandboxes it is known which files they were given."""
_SCHEMA = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "minLength": 1, "description": "Complete Python code that prints the result."}
    },
    "required": ["code"],
    "additionalProperties": False,
}
_DESCRIPTION = (
    "Runs Python (numpy, pandas, matplotlib) and returns what it prints and the value of its last expression; "
    "variables and files stay. Example: print(math.factorial(5))"
)


class CodeInterpreterProvider:
    """Runs code in the sandbox of the session."""

    takes_files = True
    takes_authorization = False
    stops_when_left = True
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
        self._locks = KeyedLocks()
        self._given: OrderedDict[tuple[str, str], set[str]] = OrderedDict()
        """Which files were put into which sandbox: a later call does not undo what code has done to them."""

    async def start(self, surroundings: Surroundings) -> None:
        """Connects to the sandbox runner when it is first needed."""
        self._runner = SandboxRunnerServiceStub(surroundings.directory.channel("sandbox_runner"))
        self._artifacts = surroundings.artifacts

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
        """Runs code once; an idle sandbox that was closed in the same moment is opened again."""
        assert self._artifacts is not None
        key = (call.tenant, _sandbox_id(call.tenant, call.session_id))
        await self._prepare(key, call.files)
        yield Sending()
        async with AsyncExitStack() as stack:
            run = _Run(call, self._artifacts, stack)
            again = True
            while again:
                again = False
                try:
                    async with upstream(self._runner.RunCode(_request(key[1], call))) as stream:
                        async for response in stream:
                            if text := await run.take(response):
                                yield Output(text)
                except grpc.RpcError as raised:
                    error = from_rpc_error(raised, service="sandbox_runner")
                    if run.started:
                        raise OutcomeLost("the sandbox went away while the code ran") from None
                    if not isinstance(error, NotFound) or run.tried_again:
                        raise error from None
                    run.tried_again = again = True
                    await self._prepare(key, call.files)
            if run.workspace_lost:
                self._given.pop(key, None)
            yield await run.answer()

    async def _prepare(self, key: tuple[str, str], files: Sequence[File]) -> None:
        """Opens a sandbox and puts the files there that it was not given yet."""
        async with self._locks.held(key):
            try:
                opened = await self._runner.OpenSandbox(sandbox.OpenSandboxRequest(sandbox_id=key[1]))
                if opened.created or key not in self._given:
                    self._given[key] = set()
                given = self._given[key]
                self._given.move_to_end(key)
                missing = [file for file in files if _mark(file) not in given]
                if missing:
                    await self._runner.WriteFiles(_pieces(key[1], missing))
                    given.update(_mark(file) for file in missing)
            except grpc.RpcError as error:
                raise from_rpc_error(error, service="sandbox_runner") from None
            while len(self._given) > _REMEMBERED:
                self._given.popitem(last=False)


class _Run:
    """One run of code: what it wrote, and what it made."""

    def __init__(self, call: Call, artifacts: Artifacts, stack: AsyncExitStack) -> None:
        self._call = call
        self._artifacts = artifacts
        self._stack = stack
        self._texts: list[str] = []
        self._notices: list[str] = []
        self._drafts: dict[str, Draft] = {}
        self._refused: set[str] = set()
        self._made: dict[str, message_pb2.Attachment] = {}
        self._finished: sandbox.RunFinished | None = None
        self.started = False
        self.tried_again = False
        self.workspace_lost = False

    async def take(self, response: sandbox.RunCodeResponse) -> str:
        """Takes a piece of the run; returns what its readers see of it."""
        match response.WhichOneof("payload"):
            case "started":
                self.started = True
                self.workspace_lost = response.started.workspace_lost
                return self._note(response.started.notice)
            case "stdout":
                return self._text(response.stdout)
            case "stderr":
                return self._text(response.stderr)
            case "notice":
                return self._note(response.notice)
            case "file":
                return await self._file(response.file)
            case "finished":
                self._finished = response.finished
                return ""
            case _:
                return ""  # files that are gone are not told; kinds of later versions

    async def answer(self) -> Answer:
        """Returns what the model gets to read, and the files that were made."""
        finished = self._finished
        if finished is None:
            if self.started:
                raise OutcomeLost("the sandbox went away while the code ran")
            raise TurnwireError.cut("sandbox_runner")
        if self._drafts:
            self._notices.append(f"Files that were not given back whole: {', '.join(map(json.dumps, self._drafts))}.")
        parts = ["".join(self._texts).rstrip("\n")]
        parts.append(finished.value_repr)
        if self._made:
            parts.append(f"[Files: {', '.join(self._made)}]")
        parts += [f"[{notice}]" for notice in self._notices]
        content = "\n".join(part for part in parts if part)
        failure = None
        if finished.HasField("failure"):
            failure = error_pb2.Failure()
            failure.CopyFrom(finished.failure)
            failure.metadata["tool"] = self._call.tool.tool_id
            failure.metadata["call_id"] = self._call.call_id
        return Answer(content or ("" if failure else "[The code wrote nothing.]"), failure, list(self._made.values()))

    def _text(self, text: str) -> str:
        self._texts.append(text)
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
            self._call.tenant,
            artifact_service_pb2.OpenUpload(
                name=name,
                session_id=self._call.session_id,
                metadata={"tool": self._call.tool.tool_id, "call_id": self._call.call_id, "path": path[-512:]},
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
