"""Landlock: what a process and all it starts may touch of files, TCP, signals and abstract sockets."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable

_CREATE_RULESET = 444
_ADD_RULE = 445
_RESTRICT_SELF = 446

EXECUTE = 1 << 0
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
REMOVE_DIR = 1 << 4
REMOVE_FILE = 1 << 5
MAKE_DIR = 1 << 7
MAKE_REG = 1 << 8
MAKE_FIFO = 1 << 10
MAKE_SYM = 1 << 12
REFER = 1 << 13
TRUNCATE = 1 << 14

READ = READ_FILE | READ_DIR | EXECUTE
"""Reading a folder and all in it, and running programs there."""
WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_FIFO | MAKE_SYM | REFER | TRUNCATE
"""All that is done with files of one's own; no devices and no sockets."""
USE = READ_FILE | WRITE_FILE
"""Reading and writing a device."""

_FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
"""Rights that a rule on a file, not a folder, may give."""

NEEDED_ABI = 6
"""Linux 6.12: before it, one process of a user could signal all others of the same user."""

_RIGHTS_OF_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many kinds of access to files each version knows; later ones as the last."""
_TCP = 3
_SCOPES = 3


def abi() -> int:
    """Returns the version of Landlock that the kernel offers; 0 for none."""
    version = _libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    return max(int(version), 0)


def restrict(rules: Iterable[tuple[str, int]]) -> None:
    """Leaves this process and all it starts the paths named, each with its rights, no TCP, and only its own kind.

    A path that does not exist is left out. `no_new_privs` must be set.

    Raises:
        OSError: the kernel refuses it.
    """
    version = abi()
    if version < 1:
        raise OSError(errno.ENOSYS, "this kernel has no Landlock")
    handled = (1 << _RIGHTS_OF_ABI[min(version, 5)]) - 1
    ruleset = _ruleset(handled, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0, version)
    try:
        for path, rights in rules:
            _allow(ruleset, path, rights & handled)
        _restrict(ruleset)
    finally:
        os.close(ruleset)


def scope() -> None:
    """Shuts this process and all it starts off from signalling or tracing who started it; files stay as they are.

    Raises:
        OSError: the kernel refuses it, or is too old.
    """
    version = abi()
    if version < NEEDED_ABI:
        raise OSError(errno.ENOSYS, f"Landlock has version {version} here; {NEEDED_ABI} is needed")
    ruleset = _ruleset(0, 0, _SCOPES, version)
    try:
        _restrict(ruleset)
    finally:
        os.close(ruleset)


def _ruleset(files: int, network: int, scopes: int, version: int) -> int:
    attributes = struct.pack("=QQQ", files, network, scopes)
    size = 8 if version < 4 else 16 if version < 6 else 24
    found = _libc().syscall(_CREATE_RULESET, ctypes.c_char_p(attributes), ctypes.c_size_t(size), ctypes.c_uint32(0))
    return _checked(int(found))


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        allowed = rights if os.path.isdir(path) else rights & _FILE_RIGHTS
        rule = struct.pack("=Qi", allowed, place)
        kind = ctypes.c_int(1)  # LANDLOCK_RULE_PATH_BENEATH
        _checked(
            int(_libc().syscall(_ADD_RULE, ctypes.c_int(ruleset), kind, ctypes.c_char_p(rule), ctypes.c_uint32(0)))
        )
    finally:
        os.close(place)


def _restrict(ruleset: int) -> None:
    _checked(int(_libc().syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"Landlock: {os.strerror(number)}")
    return result
