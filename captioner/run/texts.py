"""`captioner embed` of texts: told from pictures, read line by line, embedded in parts that a run goes on from."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from captioner.errors import BadCheckpoint, BadInput, printable
from captioner.images import Source, is_there
from captioner.pairs import sources
from captioner.pairs.layouts import FILES, ReadOptions
from captioner.pairs.tables import TABLES, caption_of, is_whole, rows_of
from captioner.run.progress import Tally
from captioner.run.questions import as_numbers
from captioner.sinks import Result, Row, Sink, as_text, groups, is_finite

AT_ONCE = 256
"""Texts embedded at a time."""


def are_pictures(inputs: Sequence[str], model: str | None) -> bool:
    """What the arguments of `captioner embed` are: pictures where a model is named or all of them exist, else texts."""
    exists = [is_there(text) for text in inputs]
    if model is not None or (exists and all(exists)):
        return True
    if any(exists):
        raise BadInput(
            f"{inputs[exists.index(True)]!r} is there but {inputs[exists.index(False)]!r} is not: "
            f"give either pictures or texts, or name a model to say that all are pictures."
        )
    return False


def read_texts(texts: Sequence[str], file: str | None) -> Iterator[str]:
    """Texts as arguments, and the lines of a file or of standard input."""
    if not texts and file is None:
        raise BadInput("Nothing to do: give texts, pictures, or a file with one text a line.")
    for text in texts:
        if not is_whole(text):
            raise BadInput(f"{printable(text)!r} is not UTF-8 text.")
        yield text
    if file is None:
        return
    try:
        with nullcontext(sys.stdin.buffer) if file == "-" else open(file, "rb") as lines:
            for line in lines:
                yield line.decode("utf-8-sig").rstrip("\r\n")
    except OSError as error:
        raise BadInput(f"{file} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{file} is not UTF-8 text: save it as UTF-8.") from error


def prompts_in(source: str) -> Iterator[str]:
    """The captions of a folder, a table or another source of pairs; of any other file the lines."""
    path = Path(source)
    if path.suffix in TABLES and path.exists():
        for where, row in rows_of(path):
            yield caption_of(row[ReadOptions().text_in(row, where)], where)
    elif source == "-" or (path.exists() and not path.is_dir() and path.suffix not in FILES):
        yield from read_texts([], source)
    else:
        yield from (record.text for record in sources.read([source]))


def embed_texts(texts: Iterable[str], embedder: str | None, sink: Sink) -> Tally:
    """Unit vectors of texts, any number of them."""
    from captioner.text.embedding import text_embedder

    tally = Tally()
    with sink:
        texts = iter(texts)
        for row in sink.existing():
            if as_text(next(texts, "")) != row.get("text"):
                raise BadInput("The output was begun with other texts: give the same again, or name another output.")
            tally.skipped += 1
        for part in groups(texts, AT_ONCE):
            vectors = text_embedder(embedder)(part)
            rows: list[Row] = [{"text": t, "embedding": as_numbers(v)} for t, v in zip(part, vectors, strict=True)]
            if not all(map(is_finite, rows)):
                raise BadCheckpoint("The embedder's numbers are not finite (NaN): its weights are damaged.")
            sink.write([Result(Source(row["text"]), row) for row in rows])
            tally.done += len(rows)
        if not tally.done + tally.skipped:
            raise BadInput("There is no text to embed: the file is empty.")
    return tally
