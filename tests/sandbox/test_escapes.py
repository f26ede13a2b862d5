"""Model-written code stays in: each attack is first seen to work outside, then to fail inside, from the host."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from tests.sandbox.attacks import ATTACKS, Attack
from tests.sandbox.running import SECRET, Box, Ending, Ran, Runner, running
from tests.sandbox.world import World

OUTSIDE_USER = 61_900
"""Who runs payloads outside of sandboxes, and the runner as an ordinary user: nobody else on the machine."""

LIMITS: dict[str, Any] = {
    "memory_bytes": 512 << 20,
    "cpu_seconds": 2,
    "workspace_bytes": 32 << 20,
    "output_bytes": 256 << 10,
    "warm": 1,
}
IS_ROOT = os.geteuid() == 0
# As root both kinds of caller can be had; an ordinary user is its own.
WHO = ["root", "ordinary"] if IS_ROOT else ["ordinary"]
HOMES = [(engine, who) for engine in ("bubblewrap", "landlock") for who in WHO]

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runners() -> AsyncGenerator[dict[tuple[str, str], Runner]]:
    """Runners by engine and user, started when they are first asked for."""
    async with AsyncExitStack() as stack:

        class Started(dict[tuple[str, str], Runner]):
            async def get_started(self, engine: str, who: str) -> Runner:
                if (engine, who) not in self:
                    user = OUTSIDE_USER if IS_ROOT and who == "ordinary" else None
                    self[engine, who] = await stack.enter_async_context(running(user=user, engine=engine, **LIMITS))
                return self[engine, who]

        yield Started()


async def _user_of(box: Box) -> int:
    """The user of the host under whom code runs in a sandbox."""
    ran = await box.run("import os\nos.getuid()")
    return int(ran.finished.value_repr)


async def _is_contained(attack: Attack, runner: Runner) -> None:
    box = await runner.open()
    user = await _user_of(box)
    assert 0 != user
    outside = await asyncio.to_thread(World, OUTSIDE_USER if IS_ROOT else os.geteuid(), os.getpid())
    try:
        said = await asyncio.to_thread(outside.run, attack.program(outside), attack.seconds)
        if attack.name != "writes_to_every_pipe_it_holds":
            assert attack.worked(outside, said), f"outside of a sandbox it does not work: {said[-2000:]}"
    finally:
        await asyncio.to_thread(outside.close)
    inside = await asyncio.to_thread(World, user, runner.process.pid)
    try:
        ran = await box.run(attack.program(inside), seconds=attack.seconds)
        assert not attack.worked(inside, ran.everything), f"it got out: {ran.everything[-2000:]}"
        assert inside.token not in "".join(data.decode("latin-1") for data in ran.files.values())
        assert [] == inside.marked(), "it left processes"
        assert inside.victim.poll() is None
        if attack.ending:
            assert attack.ending == Ending.Ending.Name(ran.finished.ending), ran.finished
        await _answers_at_once(box)
    finally:
        await asyncio.to_thread(inside.close)
        await box.close()
    assert runner.process.returncode is None


async def _answers_at_once(box: Box) -> Ran:
    began = time.monotonic()
    ran = await box.run("print('there'); 6 * 7")
    assert ("42", "there\n") == (ran.finished.value_repr, ran.stdout)
    # The second is for a machine with nothing else to do.
    assert time.monotonic() - began < max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    return ran


@pytest.mark.parametrize("attack", [attack for attack in ATTACKS if attack.quick], ids=lambda attack: attack.name)
async def test_it_stays_in(attack: Attack, runners: Any):
    await _is_contained(attack, await runners.get_started("auto", WHO[0]))


@pytest.mark.sandbox
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
@pytest.mark.parametrize(("engine", "who"), HOMES, ids=lambda value: value)
async def test_it_stays_in_each_engine_for_each_user(attack: Attack, engine: str, who: str, runners: Any):
    await _is_contained(attack, await runners.get_started(engine, who))


@pytest.mark.sandbox
@pytest.mark.parametrize(("engine", "who"), HOMES, ids=lambda value: value)
async def test_nothing_of_the_runner_is_in_the_sandbox(engine: str, who: str, runners: Any):
    runner = await runners.get_started(engine, who)
    box = await runner.open()
    # It is there: the host reads it where the code must not.
    with open(f"/proc/{runner.process.pid}/environ") as file:
        assert SECRET in file.read()
    ran = await box.run(
        """
        import os, glob
        print(dict(os.environ))
        for name in range(1, 70000):
            for kind in ('environ', 'cmdline'):
                try:
                    print(open(f'/proc/{name}/{kind}').read())
                except OSError:
                    pass
        """.replace("\n        ", "\n"),
        seconds=20,
    )
    assert Ending.ENDING_COMPLETED == ran.finished.ending, ran.stderr
    assert "call_1" in ran.stdout
    assert SECRET not in ran.everything
    assert "turnwire.yaml" not in ran.everything
    await box.close()


@pytest.mark.sandbox
@pytest.mark.parametrize(("engine", "who"), HOMES, ids=lambda value: value)
async def test_what_code_sets_for_its_children_dies_with_its_interpreter(engine: str, who: str, runners: Any):
    box = await (await runners.get_started(engine, who)).open()
    ran = await box.run("import os\nos.environ['LD_PRELOAD'] = '/tmp/evil.so'\nos.environ['LD_PRELOAD']")
    assert "'/tmp/evil.so'" == ran.finished.value_repr
    await box.run("import os\nos._exit(0)")
    ran = await box.run("import os\nos.environ.get('LD_PRELOAD', 'gone')")
    assert "'gone'" == ran.finished.value_repr
    assert ran.started.restarted
    await box.close()


@pytest.mark.sandbox
@pytest.mark.parametrize(("engine", "who"), HOMES, ids=lambda value: value)
async def test_a_sandbox_does_not_reach_another(engine: str, who: str, runners: Any):
    runner = await runners.get_started(engine, who)
    one, other = await runner.open(), await runner.open()
    ran = await one.run("import os\nopen('mine.txt', 'w').write('private text')\nprint(os.getcwd(), os.getpid())")
    place, process = ran.stdout.split()
    ran = await other.run(
        f"import os\nfor path in ('{place}/mine.txt', '/proc/{process}/cwd/mine.txt'):\n"
        "    try: print(open(path).read())\n    except OSError as error: print(error)\n"
        f"try: os.kill({process}, 9) if {process} != os.getpid() else None\nexcept OSError as error: print(error)"
    )
    assert "private text" not in ran.everything
    ran = await one.run("open('mine.txt').read()")
    assert "'private text'" == ran.finished.value_repr
    assert not ran.started.restarted
    await one.close()
    await other.close()
