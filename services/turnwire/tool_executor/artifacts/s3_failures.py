"""What an object store says, as an error that tells what to do."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from turnwire.errors import ArtifactStoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Generator

_KEYS = "Look at `artifacts.access_key` and `artifacts.secret_key`"
_HINTS = {
    "AccessDenied": "Let the key read, write, list and delete in the bucket",
    "403": _KEYS,
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "ExpiredToken": "Renew the credentials of the environment",
    "NoSuchBucket": "Make the bucket, or name another one in `artifacts.url`",
    "PermanentRedirect": "Look at `artifacts.region`: the bucket is in another one",
    "AuthorizationHeaderMalformed": "Look at `artifacts.region`: the bucket is in another one",
    "RequestTimeTooSkewed": "Set the clock of this machine",
}
_MISSING = frozenset({"404", "NoSuchKey", "NoSuchUpload", "NotFound"})


@contextmanager
def told(where: str) -> Generator[None]:
    """Turns what the client of a store raises into our error."""
    try:
        yield
    except ClientError as error:
        code = _code(error)
        message = error.response.get("Error", {}).get("Message", "")
        said = f"it answered {code}" + (f" ({message.rstrip('.')})" if message and message != code else "")
        raise ArtifactStoreUnavailable(where, said, _HINTS.get(code, "Try again; its own log may say more")) from None
    except (NoCredentialsError, PartialCredentialsError):
        raise ArtifactStoreUnavailable(where, "there is no key for it", f"{_KEYS}, or give the pod a role") from None
    except (BotoCoreError, aiohttp.ClientError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ArtifactStoreUnavailable(
            where,
            f"it cannot be reached ({error})".replace("\n", " "),
            "See that it runs, and look at `artifacts.endpoint`",
        ) from None


def missing(error: ClientError) -> bool:
    """Returns whether a store says that an object or an upload is not there."""
    return _code(error) in _MISSING


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "") or "no reason")
