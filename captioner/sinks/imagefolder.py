"""Pictures and their prompts as one folder that `datasets` reads."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from captioner.errors import BadOutput
from captioner.files.atomic import replacing
from captioner.images import Source, is_url
from captioner.sinks.checks import RESUME, check_place, explained
from captioner.sinks.row import Result, as_text
from captioner.sinks.table import FileSink


class ImageFolder(FileSink):
    """Pictures and metadata.jsonl as `datasets.load_dataset("imagefolder", data_dir=…)` reads them."""

    def __init__(self, folder: Path, *, resume: bool = False, overwrite: bool = False) -> None:
        metadata = folder / "metadata.jsonl"
        if overwrite:
            raise BadOutput("--overwrite does not empty a folder: choose another --out, or remove it yourself.")
        if folder.is_dir() and any(folder.iterdir()):
            begun = metadata.exists() or metadata.with_name("metadata.jsonl.part").exists()
            if not (resume and begun):
                remedy = "add --resume to go on" if begun else "choose a new one"
                raise BadOutput(f"{folder} is a folder that is not empty: {remedy}.")
        check_place(folder.parent)
        with explained(folder):
            folder.mkdir(exist_ok=True)
        super().__init__(metadata, resume=resume, errors="errors.jsonl")
        self.folder = folder.resolve()
        self.taken = {row["file_name"] for row in self.journal}

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        super().__exit__(kind, *rest)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def wants(self, source: Source) -> bool:
        # With --recursive the folder may lie among the pictures; its copies are no new ones.
        inside = source.path is not None and self.folder in source.path.absolute().parents
        return not inside and super().wants(source)

    def write(self, results: Sequence[Result]) -> None:
        rows = []
        for source, row in results:
            name = self._keep(source, _plain_name(row["file"]))
            kept = {column: value for column, value in row.items() if column not in ("raw", "candidates")}
            rows.append({"file_name": name} | kept | {"file": as_text(row["file"])})
        self.journal.append(rows)

    def _keep(self, source: Source, wish: str) -> str:
        """Copy the picture into the folder; two of one name become NAME and NAME-2."""
        stem, suffix = os.path.splitext(wish)
        number = 1
        while True:
            name = f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}"
            number += 1
            if name in self.taken:
                continue
            with explained(self.folder / name, RESUME):
                if self._copy(source, self.folder / name):
                    self.taken.add(name)
                    return name

    def _copy(self, source: Source, target: Path) -> bool:
        """False if something else is there. The same picture may be: copied just before a kill, its row not written."""
        with replacing(target, keep=target.exists()) as new:
            if source.data is None:
                shutil.copyfile(source.path, new)
            else:
                new.write_bytes(source.data)
            return not target.exists() or filecmp.cmp(new, target, shallow=False)


def _plain_name(file: str) -> str:
    """A file name of letters, digits and harmless signs, at most 210 long, that ends like a picture."""
    name = PurePosixPath(urlsplit(file).path).name if is_url(file) else os.path.basename(file)
    plain = "".join(c if c.isalnum() or c in " ._-()+,@" else "_" for c in as_text(name)).lstrip(" .-")
    stem, suffix = os.path.splitext(plain)
    return f"{stem[:200] or 'picture'}{suffix[:10] or '.png'}"
