"""The sink that an output's name asks for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from captioner.errors import BadInput
from captioner.files.atomic import replacing
from captioner.sinks.checks import check_name, check_new, check_place, explained
from captioner.sinks.imagefolder import ImageFolder
from captioner.sinks.journal import Settings
from captioner.sinks.table import WRITERS, FileSink


def open_out(
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    settings: Settings | None = None,
    columns: Sequence[str] = (),
) -> FileSink:
    """The sink that an output's name asks for: by its ending a file, without one a folder of pictures.

    `settings`: what the rows depend on but the pictures; `columns`: what each row will have. A run that is resumed
    must have the same.
    """
    check_place(out.parent)
    check_name(out)
    if out.is_dir() or not out.suffix:
        return ImageFolder(out, resume=resume, overwrite=overwrite, settings=settings, columns=columns)
    if out.suffix not in WRITERS:
        raise BadInput(f"{out}: name a file that ends in {', '.join(WRITERS)}, or a folder, without an ending.")
    return FileSink(out, resume=resume, overwrite=overwrite, settings=settings, columns=columns)


def write_lines(out: Path, lines: Iterable[str], *, overwrite: bool = False) -> None:
    """A whole text file at once."""
    if not overwrite:
        check_new(out)
    check_place(out.parent)
    with explained(out), replacing(out, expected=overwrite) as new, open(new, "w", encoding="utf-8") as stream:
        stream.writelines(f"{line}\n" for line in lines)
