"""Who is measured: the entries of `--models`, what each is called in a report, and what it is called as a file."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from captioner import zoo
from captioner.errors import BadInput
from captioner.files.names import path_of
from eval import baselines, tables


@dataclass(frozen=True)
class Entry:
    """One entry of `--models`: `name`, or `label=name`; a table (id, prediction) brings texts from elsewhere."""

    label: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Entry:
        label, separator, name = text.partition("=")
        is_whole = not separator or Path(text).exists() or text.startswith(zoo.SERVER)  # an address may hold a "="
        if is_whole:
            return cls(short_name(text), text)
        if not label.strip() or not name.strip():
            raise BadInput(f"{text!r} lacks the {'label' if name.strip() else 'model'}: write LABEL=NAME.")
        return cls(label, name)

    @property
    def tables(self) -> list[Path]:
        """The tables of texts that this names: one, or several runs of one model with | between; none for a model."""
        names = self.name.split("|")
        return [path_of(name) for name in names] if all(map(tables.is_table, names)) else []

    @property
    def file_name(self) -> str:
        """Safe as a file name, and no two labels share one."""
        return f"{safe_name(self.label)}.jsonl"


def safe_name(label: str) -> str:
    """What a label is called as a file; no two labels share one."""
    readable = re.sub(r"[^\w.-]+", "_", label)[-60:]
    return f"{readable}-{mark_of(label)}"


def mark_of(name: str) -> str:
    """What sets a name apart from those that would be written alike."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def read_entries(texts: Iterable[str]) -> list[Entry]:
    """The models to ask. Those that would have one label, like two folders of one name, are called by their paths."""
    parsed = list(map(Entry.parse, texts))
    if not parsed:
        raise BadInput("No model: name at least one, e.g. --models mini.")
    count = Counter(entry.label for entry in parsed)
    parsed = [
        Entry(entry.name, entry.name) if count[entry.label] > 1 and entry.label == short_name(entry.name) else entry
        for entry in parsed
    ]
    count = Counter(entry.label for entry in parsed)
    if doubles := sorted(label for label in count if count[label] > 1):
        raise BadInput(f"Two models are called {doubles[0]!r}: give one another label, e.g. --models second=NAME.")
    return parsed


def short_name(name: str) -> str:
    """What a model is called if nobody says: a path by its last part, everything else by its whole name."""
    if (index := baselines.index_of(name)) is not None:
        return f"{name.partition(':')[0]} {short_name(str(index))}"
    if name.endswith(baselines.EXPECTED):
        return f"{short_name(name.removesuffix(baselines.EXPECTED))} expected"
    path = path_of(name)
    if not path.exists() and not name.startswith(("/", ".", "~")):
        return name
    path = path.resolve()
    return (path.stem if path.is_file() or tables.is_table(name) else path.name) or name
