"""A certificate authority made within a test."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_SAN = "subjectAltName=IP:127.0.0.1,DNS:localhost"


class Authority:
    """Signs certificates for 127.0.0.1, with the command of OpenSSL."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        """Makes the authority in `folder`."""
        self._folder = folder
        self._name = name
        self.certificate = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        _openssl("req", "-x509", *_new(self._key), "-out", self.certificate, "-days", "2", "-subj", f"/CN={name}")

    def pair(self, name: str) -> tuple[Path, Path]:
        """Returns the files of a certificate and its key."""
        key, request, certificate, extension = (
            self._folder / f"{self._name}-{name}.{suffix}" for suffix in ("key", "csr", "pem", "ext")
        )
        extension.write_text(_SAN)
        _openssl("req", *_new(key), "-out", request, "-subj", f"/CN={name}")
        _openssl(
            *("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial"),
            *("-out", certificate, "-days", "2", "-extfile", extension),
        )
        return certificate, key


def _new(key: Path) -> tuple[str | Path, ...]:
    return "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key


def _openssl(*arguments: str | Path) -> None:
    ran = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert 0 == ran.returncode, ran.stderr
