"""The checkpoints of a run: which are whole, the newest of them, and which are kept."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from captioner.errors import BadOutput
from captioner.files import atomic
from captioner.files.json import read_object, write_object

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
WHOLE = "whole.json"
"""Written last into a checkpoint: without it, the checkpoint was cut off. It tells how long each file is."""


def seal(folder: Path, step: int) -> None:
    """Mark a checkpoint as whole, once it is on the disk: a power cut may leave any file empty until then. What other
    processes of a launcher write into it, they may be writing still."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("rng_state_"))
    for file in files:
        atomic.flush(file)
    lengths = {file.name: file.stat().st_size for file in files}
    write_object(folder / WHOLE, {"step": step, "files": lengths})


def is_whole(folder: Path) -> bool:
    """Whether all files of a checkpoint are there, as long as they were."""
    if not (folder / WHOLE).exists():
        return False
    try:
        lengths = read_object(folder / WHOLE, BadOutput).get("files", {})  # those of before told none
        return all((folder / name).stat().st_size == length for name, length in lengths.items())
    except (BadOutput, OSError, AttributeError):
        return False


def checkpoints(out: Path) -> list[Path]:
    """By their steps; whole ones and others."""
    by_step = {int(name[1]): folder for folder in out.glob("*") if (name := CHECKPOINT.fullmatch(folder.name))}
    return [by_step[step] for step in sorted(by_step)]


def newest_whole(out: Path, warn: bool = False) -> Path | None:
    """The newest checkpoint that was written to its end."""
    for folder in reversed(checkpoints(out)):
        if is_whole(folder):
            return folder
        if warn:
            what = "is damaged" if (folder / WHOLE).exists() else "was cut off while it was written"
            print(f"{folder.name} {what}: passed over", file=sys.stderr)
    return None


def untouched(out: Path) -> str:
    """What a run that must stop leaves behind."""
    newest = newest_whole(out)
    return f"{newest.name} is whole and untouched" if newest else "There is no checkpoint yet"


def drop_old_checkpoints(out: Path, keep: int, best: str | None) -> None:
    """Keep the newest `keep` whole checkpoints and the best one."""
    whole = [folder for folder in checkpoints(out) if is_whole(folder)]
    for folder in whole[:-keep]:
        if best is None or folder.name != Path(best).name:
            (folder / WHOLE).unlink()  # first: a kill in between leaves a folder that is known to be broken
            shutil.rmtree(folder)
