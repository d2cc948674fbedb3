"""Memory that a process no longer uses, given back to the system."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # Windows, macOS, musl
        return None


def give_back_memory() -> None:
    """Return freed memory to the system, in a few milliseconds; where the C library is not glibc, nothing happens.

    glibc keeps what lies between blocks that are still in use: a server that has told many stories would hold tens of
    megabytes of it for good.
    """
    if (trim := _trim()) is not None:
        trim(0)
