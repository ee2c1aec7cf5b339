"""The memory of this process."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Let the system have what this process has freed, where the C library can.

    glibc keeps it otherwise: 10 to 30 MB after a model is loaded; after pictures and batches of all sizes in several
    threads as much as is used (a server: 870 MB, and 470 after this).
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
