"""How the threads of the OpenMP library wait for work. It reads that from the environment as torch is loaded.

Threads that wait by spinning take the cores from each other as soon as anything else runs. On two cores, both in use
by others, 60 pictures by mini took 29 and 33 s so, 6 and 12 s where waiting threads sleep, 6 and 8 s with one thread
alone. Where nothing else runs, to wake a sleeping thread takes a fifth of what BLIP needs for one picture: there they
spin for half a millisecond first.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

NAMES = frozenset({"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"})


def settings() -> dict[str, str]:
    """The variables that suit this machine as it is now; none where the user has set one."""
    if NAMES & os.environ.keys():
        return {}
    return {"GOMP_SPINCOUNT": "10000"} if _is_idle() else {"OMP_WAIT_POLICY": "passive"}


@contextmanager
def set_meanwhile() -> Iterator[None]:
    """Have them in the environment while torch is loaded, if it is now, and not afterwards: it is the caller's."""
    added = {} if "torch" in sys.modules else settings()
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _is_idle() -> bool:
    """Are less than a quarter of the cores in use by others? Where the system does not tell, they are."""
    try:
        return _others_running() < (os.cpu_count() or 1) / 4
    except (AttributeError, OSError, ValueError):
        return False


def _others_running() -> float:
    """How many threads of other processes compute now: the fewest of five looks, as something always does for a moment.
    Where only Linux would tell, the mean of the last minute."""
    counts: list[int] = []
    while len(counts) < 5:
        try:
            with open("/proc/loadavg", encoding="ascii") as file:
                counts.append(int(file.read().split()[3].partition("/")[0]) - 1)  # but for this one
        except FileNotFoundError:
            return os.getloadavg()[0]
        time.sleep(0.002)
    return min(counts)
