"""No sockets, programs, processes or looks into others: a filter of the kernel's calls that this process may make."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass

_SET_MODE_FILTER = 1
_ALL_THREADS = 1
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_AT_NUMBER, _AT_ARCHITECTURE, _AT_FIRST_ARGUMENT = 0, 4, 16
_CLONE_THREAD = 0x10000
_CLONE3 = 435
_X32 = 0x40000000
"""From here on numbers are those of a second interface of x86-64."""

# Calls added since 2019 have one number on all architectures: io_uring, pidfd_open, pidfd_getfd, process_madvise.
_EVERYWHERE = (425, 426, 427, 434, 438, 440)


@dataclass(frozen=True, slots=True)
class _Architecture:
    audit: int
    seccomp: int
    clone: int
    forbidden: tuple[int, ...]


_ARCHITECTURES = {
    "x86_64": _Architecture(
        audit=0xC000003E,
        seccomp=317,
        clone=56,
        # socket connect bind socketpair fork vfork execve kill ptrace mount add_key request_key keyctl unshare
        # perf_event_open open_by_handle_at setns process_vm_readv process_vm_writev bpf execveat userfaultfd
        forbidden=(
            *(41, 42, 49, 53, 57, 58, 59, 62, 101, 165, 248, 249, 250, 272),
            *(298, 304, 308, 310, 311, 321, 322, 323),
        ),
    ),
    "aarch64": _Architecture(
        audit=0xC00000B7,
        seccomp=277,
        clone=220,
        # The same, without fork and vfork, which it does not have.
        forbidden=(
            *(198, 203, 200, 199, 221, 129, 117, 40, 217, 218, 219, 97),
            *(241, 265, 268, 270, 271, 280, 281, 282),
        ),
    ),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def restrict() -> None:
    """Puts all threads of this process behind the filter; what is forbidden fails with EPERM.

    Raises:
        OSError: the kernel has no filters, or the architecture is none of those known here.
    """
    architecture = _ARCHITECTURES.get(platform.machine())
    if architecture is None:
        raise OSError(errno.ENOSYS, f"no filter for {platform.machine()}")
    steps = _steps(architecture)
    program = _Program(len(steps) // 8, steps)
    libc = ctypes.CDLL(None, use_errno=True)
    call, mode, flags = (ctypes.c_long(number) for number in (architecture.seccomp, _SET_MODE_FILTER, _ALL_THREADS))
    if libc.syscall(call, mode, flags, ctypes.byref(program)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _steps(architecture: _Architecture) -> bytes:
    """Returns the filter: it reads downwards, and each jump counts the steps it leaves out."""
    steps = [
        _step(_LOAD, _AT_ARCHITECTURE),
        _step(_EQUAL, architecture.audit, yes=1),
        _step(_RETURN, _KILL),
        _step(_LOAD, _AT_NUMBER),
        _step(_AT_LEAST, _X32, no=1),
        _step(_RETURN, _FAIL | errno.EPERM),
        # Its flags cannot be read by a filter; the C library starts threads by the old call when there is no new one.
        _step(_EQUAL, _CLONE3, no=1),
        _step(_RETURN, _FAIL | errno.ENOSYS),
    ]
    for number in (*architecture.forbidden, *_EVERYWHERE):
        steps += [_step(_EQUAL, number, no=1), _step(_RETURN, _FAIL | errno.EPERM)]
    steps += [
        # Threads are let through, processes are not.
        _step(_EQUAL, architecture.clone, no=3),
        _step(_LOAD, _AT_FIRST_ARGUMENT),
        _step(_ANY_BIT, _CLONE_THREAD, yes=1),
        _step(_RETURN, _FAIL | errno.EPERM),
        _step(_RETURN, _ALLOW),
    ]
    return b"".join(steps)


def _step(code: int, value: int, *, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)
