"""Users that exist for one sandbox only, so that the kernel keeps sandboxes apart; root alone can give them."""

from __future__ import annotations

import os
import socket

FIRST = 60_600
"""Distributions give 60578 to 61183 to nobody, and a container that maps 65536 users has them."""
_COUNT = 500


class User:
    """A user number that no other runner of this machine uses meanwhile."""

    def __init__(self, number: int, claim: socket.socket) -> None:
        """Use `claim`."""
        self.number = number
        self._claim = claim

    def release(self) -> None:
        """Lets others have it."""
        self._claim.close()


def claim() -> User | None:
    """Returns a user for one sandbox; None when this process is not root and so cannot become another one.

    Raises:
        OSError: all are taken.
    """
    if os.geteuid() != 0:
        return None
    for number in range(FIRST, FIRST + _COUNT):
        # A name that only one process can hold, and that goes with it.
        holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            holder.bind(f"\0turnwire-sandbox-user-{number}")
        except OSError:
            holder.close()
            continue
        return User(number, holder)
    raise OSError(f"all users from {FIRST} to {FIRST + _COUNT - 1} are taken by sandboxes")
