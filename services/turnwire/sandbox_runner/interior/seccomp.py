"""The filter of system calls that model-written code lives under, as a program for the kernel.

What is not needed by Python and its libraries, and was a way out of a sandbox before, is refused. System calls that are
newer than this list do not exist.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys

_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_GREATER = 0x25  # BPF_JMP | BPF_JGT | BPF_K
_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_MASK = 0x54  # BPF_ALU | BPF_AND | BPF_K
_RETURN = 0x06

_NUMBER = 0
_ARCHITECTURE = 4
_NEWEST = 467
"""open_tree_attr of Linux 6.15: the newest call this list was made for."""

_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""The number by which the kernel names it, and its column below."""

_CLONE_NAMESPACES = 0x7E020000
_SOCK_STREAM = 1
_AF_UNIX = 1
_TIOCSTI = 0x5412
_TIOCLINUX = 0x541C

# Name: its number on x86_64 and on aarch64; None where there is no such call.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # No network and no sockets by name; `socketpair` is looked at below.
    "socket": (41, 198),
    "connect": (42, 203),
    "accept": (43, 202),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept4": (288, 242),
    # No other view of the file system, no other namespace.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # No look into, and no hand on, other processes.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # No part of the kernel that has been a way out.
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "personality": (135, 92),
    "uselib": (134, None),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    # It would tell what happens to files outside.
    "inotify_add_watch": (254, 27),
    "vhangup": (153, 58),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    # Memory that no limit of a process counts.
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semctl": (66, 191),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
}

_CHANGES_OF_MODE: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
}
_CHANGES_OF_OWNER: dict[str, tuple[int | None, int | None]] = {
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
}
# Allowed for the caller itself only, which is number 0: the kernel lets a process do it to all others of its user.
_OF_A_PROCESS: dict[str, tuple[int | None, int | None]] = {
    "prlimit64": (302, 261),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
}
_CLONE = (56, 220)
_CLONE3 = 435
_SOCKETPAIR = (53, 199)
_SETPRIORITY = (141, 140)
_IOCTL = (16, 29)


def program(*, own_files: bool, machine: str = "") -> bytes:
    """Returns the filter for this machine, or for the one named.

    `own_files`: the sandbox has a file system of its own. Where it has not, Landlock leaves modes, times and owners of
    the user's other files open to a change: a change of modes and times then does nothing, and one of owners fails.

    Raises:
        NotImplementedError: the filter is not known for this architecture.
    """
    name = machine or platform.machine()
    if name not in _ARCHITECTURES:
        raise NotImplementedError(f"no filter of system calls is known for {name}")
    if sys.byteorder != "little":
        raise NotImplementedError("the filter of system calls is made for little-endian machines")
    architecture, column = _ARCHITECTURES[name]
    lines: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
        # Newer calls, and those of the x32 interface.
        (_GREATER, 0, 1, _NEWEST),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
        # The C library falls back to `clone`, whose flags can be seen.
        *_answer(_CLONE3, _ERRNO | errno.ENOSYS),
    ]
    refused = [(_REFUSED, errno.EPERM)]
    if not own_files:
        refused += [(_CHANGES_OF_MODE, 0), (_CHANGES_OF_OWNER, errno.EPERM)]
    for calls, number in refused:
        for numbers in calls.values():
            lines += _answer(numbers[column], _ERRNO | number)
    lines += _looked_at(_CLONE[column], [(_LOAD, 0, 0, _argument(0)), (_ANY_BIT, 0, 1, _CLONE_NAMESPACES)])
    for numbers in _OF_A_PROCESS.values():
        lines += _looked_at(numbers[column], [(_LOAD, 0, 0, _argument(0)), (_EQUAL, 1, 0, 0)])
    lines += _looked_at(
        _SETPRIORITY[column],
        [
            (_LOAD, 0, 0, _argument(0)),
            (_EQUAL, 0, 2, 0),
            (_LOAD, 0, 0, _argument(1)),
            (_EQUAL, 1, 0, 0),
        ],
    )
    # Only a pair of streams cannot be pointed at anybody else.
    lines += _looked_at(
        _SOCKETPAIR[column],
        [
            (_LOAD, 0, 0, _argument(0)),
            (_EQUAL, 0, 3, _AF_UNIX),
            (_LOAD, 0, 0, _argument(1)),
            (_MASK, 0, 0, 0xF),
            (_EQUAL, 1, 0, _SOCK_STREAM),
        ],
    )
    lines += _looked_at(
        _IOCTL[column], [(_LOAD, 0, 0, _argument(1)), (_EQUAL, 1, 0, _TIOCSTI), (_EQUAL, 0, 1, _TIOCLINUX)]
    )
    lines.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def install(filter_program: bytes) -> None:
    """Puts this process and all it starts under the filter, for ever. `no_new_privs` must be set.

    Raises:
        OSError: the kernel refuses it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(filter_program, len(filter_program))
    # struct sock_fprog: the number of lines, padding, a pointer.
    prog = struct.pack("=HxxxxxxQ", len(filter_program) // 8, ctypes.addressof(buffer))
    if libc.prctl(22, 2, ctypes.c_char_p(prog), 0, 0) != 0:  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {errno.errorcode.get(number, number)}")


def _argument(index: int) -> int:
    """The lower half of an argument: the kernel takes these as 32 bits."""
    return 16 + 8 * index


def _answer(number: int | None, action: int) -> list[tuple[int, int, int, int]]:
    if number is None:
        return []
    return [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, action)]


def _looked_at(number: int | None, test: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Refuses a call by its arguments: `test` falls through to the refusal, or jumps over it."""
    if number is None:
        return []
    body = [*test, (_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    return [(_EQUAL, 0, len(body), number), *body]
