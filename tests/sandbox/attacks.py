"""The escape list: what model-written code might try, each with how the host sees that it has worked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from textwrap import dedent
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.sandbox.world import World


def _said(world: World, said: str) -> bool:
    return world.token in said


def _reached(world: World, said: str) -> bool:
    return "REACHED" in said


def _heard(world: World, said: str) -> bool:
    return any(world.token.encode() in data for data in world.heard.data)


@dataclass(frozen=True)
class Attack:
    """A payload, with `{}` where a target goes, and the sign that it worked."""

    name: str
    code: str
    worked: Callable[[World, str], bool] = _reached
    seconds: float = 5.0
    """How long it may run; outside, what still runs then is ended."""
    ending: str = ""
    """How the runner must end it, where a limit does."""
    quick: bool = False
    """True for those that every run of the tests tries."""

    def program(self, world: World) -> str:
        """Returns the code against these targets."""
        targets = {
            "SECRET": str(world.secret),
            "OPEN": str(world.open_folder),
            "TOKEN": world.token,
            "TCP": world.tcp,
            "UDP": world.udp,
            "ABSTRACT": world.abstract,
            "UNIX": str(world.unix),
            "VICTIM": world.victim.pid,
            "RUNNER": world.runner,
            "MARK": world.mark,
        }
        head = "\n".join(f"{name} = {value!r}" for name, value in targets.items())
        return f"{head}\n{dedent(self.code).strip()}\n"


_LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"

ATTACKS = [
    Attack("reads_a_file_of_the_host", "print(open(SECRET).read())", _said, quick=True),
    Attack(
        "reads_the_users_of_the_host",
        "text = open('/etc/passwd').read()\nprint('REACHED' if 'root:' in text else text)",
        quick=True,
    ),
    Attack(
        "writes_a_file_of_the_host",
        "open(f'{OPEN}/written', 'w').write(TOKEN)",
        lambda world, said: (world.open_folder / "written").exists(),
        quick=True,
    ),
    Attack(
        "makes_a_folder_on_the_host",
        "import os\nos.mkdir(f'{OPEN}/folder')",
        lambda world, said: (world.open_folder / "folder").exists(),
    ),
    Attack(
        "removes_a_file_of_the_host",
        "import os\nos.symlink('/', f'{OPEN}/link')\nos.rename(f'{OPEN}/link', f'{OPEN}/moved')",
        lambda world, said: (world.open_folder / "moved").is_symlink(),
    ),
    Attack(
        "changes_rights_of_a_file_of_its_user",
        "import os\nos.chmod(SECRET, 0o777)",
        lambda world, said: world.secret.stat().st_mode & 0o777 == 0o777,
        quick=True,
    ),
    Attack(
        "changes_times_of_a_file_of_its_user",
        "import os\nos.utime(SECRET, (1, 1))",
        lambda world, said: world.secret.stat().st_mtime == 1,
    ),
    Attack(
        "marks_a_file_of_its_user",
        "import os\nos.setxattr(SECRET, 'user.mark', b'x')\nprint('REACHED')",
    ),
    Attack(
        "connects_to_a_port_of_the_host",
        "import socket\nwith socket.create_connection(TCP, 3) as peer: peer.sendall(TOKEN.encode())",
        _heard,
        quick=True,
    ),
    Attack(
        "sends_a_datagram",
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(TOKEN.encode(), UDP)",
        _heard,
        quick=True,
    ),
    Attack(
        "listens_on_a_port",
        "import socket\nsocket.create_server(('127.0.0.1', 0))\nprint('REACHED')",
    ),
    Attack(
        "connects_to_an_abstract_socket",
        """
        import socket
        peer = socket.socket(socket.AF_UNIX)
        peer.connect('\\0' + ABSTRACT)
        peer.sendall(TOKEN.encode())
        """,
        _heard,
        quick=True,
    ),
    Attack(
        "sends_from_a_pair_to_a_socket_with_a_path",
        """
        import socket
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        one.sendto(TOKEN.encode(), UNIX)
        """,
        _heard,
    ),
    Attack(
        "talks_to_the_kernel_by_netlink",
        "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)\nprint('REACHED')",
    ),
    Attack("reads_the_environment_of_another", "print(open(f'/proc/{VICTIM}/environ').read())", _said, quick=True),
    Attack("reads_the_host_through_another", "print(open(f'/proc/{VICTIM}/root{SECRET}').read())", _said),
    Attack(
        "reads_the_memory_of_another",
        """
        with open(f'/proc/{VICTIM}/maps') as maps:
            start = next(int(line.split('-')[0], 16) for line in maps if '[stack]' in line)
        with open(f'/proc/{VICTIM}/mem', 'rb') as memory:
            memory.seek(start)
        print('REACHED')
        """,
    ),
    Attack(
        "kills_another",
        "import os\nos.kill(VICTIM, 9)",
        lambda world, said: _ends(world),
        quick=True,
    ),
    Attack(
        "traces_another",
        _LIBC
        + "if libc.ptrace(16, VICTIM, None, None) == 0:\n"
        + "    os.waitpid(VICTIM, 0x40000000)\n    libc.ptrace(17, VICTIM, None, None)\n    print('REACHED')",
    ),
    Attack(
        "changes_limits_of_another",
        "import resource\nresource.prlimit(VICTIM, resource.RLIMIT_NOFILE, (7, 7))",
        lambda world, said: world.victim_files() == "7",
    ),
    Attack(
        "slows_another",
        "import os\nos.setpriority(os.PRIO_PROCESS, VICTIM, 19)",
        lambda world, said: _priority(world) == 19,
    ),
    Attack(
        "makes_a_user_namespace",
        _LIBC + "print('REACHED' if libc.unshare(0x10000000) == 0 else os.strerror(ctypes.get_errno()))",
        quick=True,
    ),
    Attack(
        "clones_into_a_user_namespace",
        _LIBC
        + "import platform, signal\n"
        + "number = 56 if platform.machine() == 'x86_64' else 220\n"
        + "child = libc.syscall(number, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)\n"
        + "if child == 0:\n    os._exit(0)\n"
        + "print('REACHED' if child > 0 else os.strerror(ctypes.get_errno()))",
    ),
    Attack(
        "mounts",
        _LIBC
        + "os.mkdir('mounted')\nlibc.unshare(0x10000000 | 0x20000)\n"
        + "print('REACHED' if libc.mount(b'none', b'mounted', b'tmpfs', 0, None) == 0 else 'no')",
    ),
    Attack("makes_memory_without_a_name", "import os\nos.memfd_create('x')\nprint('REACHED')"),
    Attack(
        "makes_shared_memory_of_the_system",
        _LIBC
        + "key = int(MARK)\nfound = libc.shmget(key, 4096, 0o1600)\n"
        + "print('REACHED' if found >= 0 else 'no')\nlibc.shmctl(found, 0, None)",
    ),
    Attack(
        "asks_the_kernel_for_keys",
        _LIBC
        + "import platform\nnumber = 250 if platform.machine() == 'x86_64' else 219\n"
        + "print('REACHED' if libc.syscall(number, 0, -3, 1) > 0 else 'no')",
    ),
    Attack(
        "reads_the_pipes_of_its_parent",
        """
        import os
        for number in range(64):
            try:
                os.close(os.open(f'/proc/{os.getppid()}/fd/{number}', os.O_RDONLY | os.O_NONBLOCK))
                print('REACHED')
            except OSError as error:
                print(error)
        """,
        quick=True,
    ),
    Attack(
        "writes_the_memory_of_its_parent",
        "import os\nos.close(os.open(f'/proc/{os.getppid()}/mem', os.O_RDWR))\nprint('REACHED')",
    ),
    Attack(
        "takes_more_memory_than_it_may",
        "data = b'x' * (700 << 20)\nprint('REACHED', len(data))",
        seconds=20,
        ending="ENDING_RAISED",
        quick=True,
    ),
    Attack(
        "takes_more_memory_in_many_processes",
        """
        import os, time
        children = []
        for _ in range(6):
            child = os.fork()
            if child == 0:
                data = bytearray(150 << 20)
                for place in range(0, len(data), 4096):
                    data[place] = 1
                open(f'took-{os.getpid()}', 'w').close()
                time.sleep(20)
                os._exit(0)
            children.append(child)
        deadline = time.monotonic() + 15
        while sum(name.startswith('took-') for name in os.listdir('.')) < 6 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        print('REACHED', flush=True)
        for child in children:
            os.kill(child, 9)
        """,
        seconds=20,
        ending="ENDING_MEMORY_LIMIT",
    ),
    Attack(
        "never_ends",
        "while True: pass",
        lambda world, said: "STILL RUNNING" in said,
        seconds=1.5,
        ending="ENDING_TIME_LIMIT",
        quick=True,
    ),
    Attack(
        "uses_more_processor_time_than_it_may",
        "import os, time\nwhile time.process_time() < 3: pass\nprint('REACHED')",
        seconds=30,
        ending="ENDING_CPU_LIMIT",
    ),
    Attack(
        "sleeps_past_the_limit",
        "import time\ntime.sleep(60)",
        lambda world, said: "STILL RUNNING" in said,
        seconds=1.0,
        ending="ENDING_TIME_LIMIT",
    ),
    Attack(
        "does_not_listen_to_signals",
        """
        import signal, time
        for number in range(1, 32):
            try:
                signal.signal(number, signal.SIG_IGN)
            except OSError:
                pass
        while True:
            time.sleep(1)
        """,
        lambda world, said: "STILL RUNNING" in said,
        seconds=1.0,
        ending="ENDING_TIME_LIMIT",
    ),
    Attack(
        "writes_a_big_file",
        """
        with open('big', 'wb') as file:
            for _ in range(40):
                file.write(b'x' * (1 << 20))
        print('REACHED')
        """,
        seconds=10,
    ),
    Attack("makes_a_huge_file_with_holes", "open('huge', 'wb').truncate(10 << 30)\nprint('REACHED')", quick=True),
    Attack(
        "makes_many_files",
        "import time\nfor number in range(12_000): open(f'f-{number}', 'w').close()\ntime.sleep(2)\nprint('REACHED')",
        seconds=20,
    ),
    Attack(
        "fills_the_workspace_with_many_files",
        "for number in range(20): open(f'file-{number}', 'wb').write(b'x' * (4 << 20))\n"
        "import time; time.sleep(1)\nprint('REACHED')",
        seconds=20,
    ),
    Attack(
        "fills_the_disk_with_files_without_names",
        """
        import os, time
        kept = []
        for number in range(10):
            file = open('hidden', 'wb')
            os.unlink('hidden')
            file.write(b'x' * (8 << 20))
            file.flush()
            kept.append(file)
        time.sleep(1)
        print('REACHED')
        """,
        seconds=20,
    ),
    Attack(
        "fills_shared_memory",
        """
        import os
        try:
            with open(f'/dev/shm/{MARK}', 'wb') as file:
                for _ in range(100):
                    file.write(b'x' * (1 << 20))
            print('REACHED')
        finally:
            os.unlink(f'/dev/shm/{MARK}')
        """,
        seconds=10,
    ),
    Attack(
        "forks_without_end",
        """
        import os, time
        count = 0
        try:
            for _ in range(200):
                if os.fork() == 0:
                    os.execv('/bin/sleep', ['sleep', MARK])
                count += 1
        except OSError as error:
            print(error)
        time.sleep(0.5)
        print(count)
        """,
        lambda world, said: world.most > 100,
        seconds=20,
        quick=True,
    ),
    Attack(
        "forks_in_its_children",
        """
        import os, time
        def grow(depth):
            for _ in range(3):
                try:
                    if os.fork() == 0:
                        if depth:
                            grow(depth - 1)
                        os.execv('/bin/sleep', ['sleep', MARK])
                except OSError:
                    pass
        grow(4)
        time.sleep(1)
        """,
        lambda world, said: world.most > 100,
        seconds=20,
    ),
    Attack(
        "starts_threads_without_end",
        """
        import threading, time
        count = 0
        try:
            for _ in range(300):
                threading.Thread(target=time.sleep, args=(2,), daemon=True).start()
                count += 1
        except RuntimeError as error:
            print(error)
        print('REACHED' if count == 300 else count)
        """,
        seconds=20,
    ),
    Attack(
        "leaves_a_process_behind",
        """
        import os
        begun, begins = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for number in range(3):
                    os.dup2(os.open('/dev/null', os.O_RDWR), number)
                os.execv('/bin/sleep', ['sleep', MARK])
            os._exit(0)
        os.wait()
        os.close(begins)
        os.read(begun, 1)  # it ends when the process left behind has become its program
        """,
        lambda world, said: bool(world.marked()),
        quick=True,
    ),
    Attack(
        "floods_standard_output",
        "import sys\nfor _ in range(30): sys.stdout.write('x' * (1 << 20))\nsys.stdout.flush()",
        lambda world, said: len(said) > 10 << 20,
        seconds=20,
        quick=True,
    ),
    Attack(
        "gives_back_a_link_to_a_file_of_the_host",
        """
        import os
        os.symlink(SECRET, 'leak.txt')
        os.symlink(os.path.dirname(SECRET), 'leaks')
        for name in ('leak.txt', 'leaks/secret.txt'):
            try:
                print(open(name).read())
            except OSError as error:
                print(error)
        """,
        _said,
        quick=True,
    ),
    Attack(
        "gives_back_a_second_name_of_a_file_of_the_host",
        "import os\nos.link(SECRET, 'leak')\nprint(open('leak').read())",
        _said,
    ),
    Attack(
        "stops_its_reader_with_a_pipe",
        """
        import os, subprocess, sys
        os.mkfifo('a-pipe')
        reader = subprocess.Popen([sys.executable, '-c', "open('a-pipe').read()"])
        try:
            reader.wait(1)
        except subprocess.TimeoutExpired:
            print('REACHED' if not os.environ.get('TURNWIRE_CALL_ID') else 'blocked only itself')
        reader.kill()
        """,
    ),
    Attack(
        "kills_its_parent",
        "import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(0.3)\nprint('REACHED')",
        lambda world, said: "REACHED" not in said and "rror" not in said,
    ),
    Attack(
        "writes_to_every_pipe_it_holds",
        """
        import os
        for number in range(3, 256):
            try:
                os.write(number, b'D\\xff\\xff\\xff\\xff garbage')
                print('REACHED')
            except OSError:
                pass
        """,
        lambda world, said: False,
    ),
]


def _ends(world: World) -> bool:
    from subprocess import TimeoutExpired

    try:
        world.victim.wait(0.5)
    except TimeoutExpired:
        return False
    return True


def _priority(world: World) -> int:
    import os

    return os.getpriority(os.PRIO_PROCESS, world.victim.pid)
