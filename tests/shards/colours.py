"""A worker that starts in half a second: it says a picture's mean colour.

`python -m tests.shards.colours OUT [EVENTS [SECONDS]]`: with EVENTS, e.g. 7,9,12, three of them run one after the
other, and each kills itself at so many accesses to files of OUT. Each batch takes SECONDS more.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet  # noqa: F401 (once, before all forks)
from PIL import Image

from captioner.images import Source
from captioner.shards import part, plan
from captioner.sinks import Row

WATCHED = ("open", "os.link", "os.rename", "os.remove", "os.truncate", "os.chmod")


class Colours:
    """What a picture shows, in numbers."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.asked = 0

    def look(self, source: Source) -> Image.Image:
        return source.open()

    def batch_size(self) -> int:
        return 2

    def at_once(self) -> int:
        return 1

    def answer(self, looks: list[Image.Image]) -> list[Row]:
        time.sleep(self.seconds)
        self.asked += len(looks)
        return [{"text": "colour " + " ".join(map(str, look.resize((1, 1)).getpixel((0, 0))))} for look in looks]


def job(answers: Colours | None = None, **settings: Any) -> part.Job:
    return part.Job(answers or Colours(), ("text",), {"model": "colours", **settings})


def kill_at(out: Path, events: int) -> None:
    """Die at the n-th access to a file in this folder."""
    left = events

    def count(event: str, arguments: tuple) -> None:
        nonlocal left
        if event in WATCHED and str(arguments[0]).startswith(str(out)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def run(out: Path, events: int, seconds: float) -> None:
    planned = plan.read(out)
    if events:
        kill_at(out, events)
    for what in part.work(planned, job(Colours(seconds))):
        print(what.shard, flush=True)


if __name__ == "__main__":
    words = [*sys.argv[1:], "0", "0"]
    Image.init()
    for moment in words[1].split(","):  # one after the other; forked, since Python takes half a second to begin
        if (child := os.fork()) == 0:
            run(Path(words[0]), int(moment), float(words[2]))
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            print("killed", flush=True)
