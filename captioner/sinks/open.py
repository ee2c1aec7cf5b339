"""The sink that a user's --out names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from captioner.errors import BadInput
from captioner.files.atomic import replacing
from captioner.sinks.checks import check_new, check_place, explained
from captioner.sinks.imagefolder import ImageFolder
from captioner.sinks.table import WRITERS, FileSink


def open_out(out: Path, *, resume: bool = False, overwrite: bool = False) -> FileSink:
    """The sink that a user's --out names: by its ending a file, without one a folder of pictures."""
    if out.suffix in WRITERS and not out.is_dir():
        return FileSink(out, resume=resume, overwrite=overwrite)
    if out.suffix and not out.is_dir():
        raise BadInput(f"--out {out}: the ending says the form, {', '.join(WRITERS)}; none is a folder of pictures.")
    return ImageFolder(out, resume=resume, overwrite=overwrite)


def write_lines(out: Path, lines: Iterable[str], *, overwrite: bool = False) -> None:
    """A whole text file at once."""
    if not overwrite:
        check_new(out)
    check_place(out.parent)
    with explained(out), replacing(out) as new, open(new, "w", encoding="utf-8") as stream:
        stream.writelines(f"{line}\n" for line in lines)
