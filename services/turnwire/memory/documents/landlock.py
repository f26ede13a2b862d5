"""No files but those that Python and its libraries are made of, and no connections: Landlock, by the kernel's calls."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from contextlib import suppress
from pathlib import Path

# The numbers are the same on all architectures.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1
_PATH_BENEATH = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_CONNECTIONS = 0b11  # bind and connect of TCP
_SCOPES = 0b11  # abstract sockets, signals
_NETWORK_SINCE, _SCOPES_SINCE = 4, 6
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")


def restrict() -> None:
    """Puts this thread, and all that it starts, behind the wall.

    Raises:
        OSError: the kernel has none.
    """
    version = _call(_CREATE_RULESET, None, 0, _VERSION)
    files = next(rights for since, rights in reversed(_FILE_RIGHTS.items()) if version >= since)
    attributes = struct.pack("=Q", files)
    if version >= _NETWORK_SINCE:
        attributes += struct.pack("=Q", _CONNECTIONS)
    if version >= _SCOPES_SINCE:
        attributes += struct.pack("=Q", _SCOPES)
    ruleset = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for path in _readable():
            with suppress(OSError):
                _allow(ruleset, path)
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _readable() -> list[str]:
    """Returns where modules are loaded from, with the first document of a format."""
    found = dict.fromkeys([sys.prefix, sys.base_prefix, *_LIBRARIES, *sys.path])
    return [path for path in found if path and Path(path).exists() and Path(path).resolve() != Path("/")]


def _allow(ruleset: int, path: str) -> None:
    opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rights = _READ_FILE | (_READ_DIR if Path(path).is_dir() else 0)
        rule = struct.pack("=Qi", rights, opened)
        _call(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(opened)


def _call(number: int, *arguments: int | bytes | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    # Plain numbers are taken as 32 bits wide, and the kernel reads 64.
    wide = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result = libc.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
