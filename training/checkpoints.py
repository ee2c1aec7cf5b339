"""The checkpoints of a run: which are whole, the newest of them, and which are kept."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
WHOLE = "whole.json"
"""Written last into a checkpoint: without it, the checkpoint was cut off."""


def checkpoints(out: Path) -> list[Path]:
    """By their steps; whole ones and others."""
    by_step = {int(name[1]): folder for folder in out.glob("*") if (name := CHECKPOINT.fullmatch(folder.name))}
    return [by_step[step] for step in sorted(by_step)]


def newest_whole(out: Path, warn: bool = False) -> Path | None:
    """The newest checkpoint that was written to its end."""
    for folder in reversed(checkpoints(out)):
        if (folder / WHOLE).exists():
            return folder
        if warn:
            print(f"{folder.name} was cut off while it was written: passed over", file=sys.stderr)
    return None


def untouched(out: Path) -> str:
    """What a run that must stop leaves behind."""
    newest = newest_whole(out)
    return f"{newest.name} is whole and untouched" if newest else "There is no checkpoint yet"


def drop_old_checkpoints(out: Path, keep: int, best: str | None) -> None:
    """Keep the newest `keep` whole checkpoints and the best one."""
    whole = [folder for folder in checkpoints(out) if (folder / WHOLE).exists()]
    for folder in whole[:-keep]:
        if best is None or folder.name != Path(best).name:
            (folder / WHOLE).unlink()  # first: a kill in between leaves a folder that is known to be broken
            shutil.rmtree(folder)
