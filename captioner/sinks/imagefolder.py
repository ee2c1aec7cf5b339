"""Pictures and their prompts as one folder that `datasets` reads."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from unicodedata import category, normalize
from urllib.parse import urlsplit

from captioner.errors import BadOutput
from captioner.files.atomic import Leftovers, is_temporary, replacing
from captioner.images import EXTENSIONS, Source, is_url
from captioner.images.open import ending_of
from captioner.sinks.checks import RESUME, check_name, check_place, explained
from captioner.sinks.journal import Settings, is_error_list
from captioner.sinks.row import Result, as_text
from captioner.sinks.table import FileSink

METADATA = "metadata.jsonl"
ERRORS = "errors.jsonl"
NOT_ON_WINDOWS = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


class ImageFolder(FileSink):
    """Pictures and metadata.jsonl as `datasets.load_dataset("imagefolder", data_dir=…)` reads them."""

    SAME_AGAIN = "Give the same again, or name another output."

    def __init__(
        self,
        folder: Path,
        *,
        resume: bool = False,
        overwrite: bool = False,
        settings: Settings | None = None,
        columns: Sequence[str] = (),
    ) -> None:
        if overwrite:
            raise BadOutput("overwrite does not empty a folder: name another output, or remove it yourself.")
        check_place(folder.parent)
        check_name(folder)
        if folder.exists() and not folder.is_dir():
            raise BadOutput(f"{folder} is no folder: name another output.")
        with explained(folder):
            if folder.is_dir() and (names := _names(folder)):
                begun = _is_begun(folder, names)
                if not (resume and begun):
                    remedy = "set resume to go on" if begun else "choose a new one"
                    raise BadOutput(f"{folder} is a folder that is not empty: {remedy}.")
            folder.mkdir(exist_ok=True)
        columns = ["file_name", *filter(is_kept, columns)] if columns else ()
        super().__init__(folder / METADATA, resume=resume, settings=settings, columns=columns, errors=ERRORS)
        self.folder = folder.resolve()
        self.leftovers = Leftovers()
        self.taken = {str(row.get("file_name")).casefold() for row in self.journal}
        """A.png and a.png are one file on some systems."""
        self.first_free: dict[str, int] = {}
        """Name → a number below which NAME, NAME-2, … are all taken."""

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        super().__exit__(kind, *rest)
        with suppress(OSError):  # it is not empty, or has been removed
            self.folder.rmdir()

    def _is_unused(self) -> bool:
        # Where anything else is left, it is the journal that says whose folder this is.
        return self.folder.is_dir() and _names(self.folder) == [self.journal.path.name]

    def _known(self) -> frozenset[str]:
        return super()._known() | {"file_name"}

    def wants(self, source: Source) -> bool:
        # With `recursive` the folder may lie among the pictures; its copies are no new ones.
        # Either may be named through a link.
        inside = source.path is not None and Path(os.path.realpath(source.path.parent)).is_relative_to(self.folder)
        return not inside and super().wants(source)

    def write(self, results: Sequence[Result]) -> None:
        rows = []
        self.journal.check_there()
        for source, row in results:
            name = self._keep(source, _plain_name(source, row["file"]))
            kept = {column: value for column, value in row.items() if is_kept(column)}
            rows.append({"file_name": name} | kept | {"file": as_text(row["file"])})
        self.journal.append(rows)

    def _keep(self, source: Source, wish: str) -> str:
        """Copy the picture into the folder; two of one name become NAME and NAME-2."""
        number = self.first_free.get(wish.casefold(), 1)
        while _numbered(wish, number).casefold() in self.taken:
            number += 1
        self.first_free[wish.casefold()] = number
        while True:
            name = _numbered(wish, number)
            number += 1
            if name.casefold() in self.taken:
                continue
            with explained(self.folder / name, RESUME):
                if self._copy(source, self.folder / name):
                    self.taken.add(name.casefold())
                    return name

    def _copy(self, source: Source, target: Path) -> bool:
        """False if something else is there. The same picture may be: copied just before a kill, its row not written."""
        with replacing(target, keep=target.exists(), leftovers=self.leftovers) as new:
            content = source.content()
            if isinstance(content, bytes):
                new.write_bytes(content)
            else:
                shutil.copyfile(content, new)
            return not target.exists() or filecmp.cmp(new, target, shallow=False)


def is_kept(column: str) -> bool:
    """What else a model had in mind is no metadata of a picture."""
    return column not in ("raw", "candidates")


def _numbered(name: str, number: int) -> str:
    stem, suffix = os.path.splitext(name)
    return name if number == 1 else f"{stem}-{number}{suffix}"


def _names(folder: Path) -> list[str]:
    """What lies in a folder, but for files that a killed run had begun to write."""
    return [name for name in os.listdir(folder) if not is_temporary(name)]


def _is_begun(folder: Path, names: list[str]) -> bool:
    """Whether what lies here was left by a run that can be resumed."""
    if METADATA in names or f"{METADATA}.part" in names:
        return True
    return names == [ERRORS] and is_error_list(folder / ERRORS)


def _plain_name(source: Source, file: str) -> str:
    """A file name of letters, digits and harmless signs, at most 210 bytes long, that every system can make. It ends
    like a picture, and so is none of the folder's own files."""
    name = PurePosixPath(urlsplit(file).path).name if is_url(file) else os.path.basename(file)
    letters = normalize("NFC", as_text(name))  # é, as Macs keep it, is two letters
    plain = "".join(c if c.isalnum() or c in " ._-()+,@" or category(c)[0] == "M" else "_" for c in letters)
    plain = plain.lstrip(" .-")
    stem, suffix = os.path.splitext(plain)
    if suffix.lower() not in EXTENSIONS:  # as of a row of a table, or an address: `datasets` goes by the ending
        stem, suffix = plain.rstrip(" ."), ending_of(source.content(), source.title)
    stem = f"_{stem}" if NOT_ON_WINDOWS.match(stem) else stem
    return f"{stem.encode()[:200].decode(errors='ignore') or 'picture'}{suffix}"
