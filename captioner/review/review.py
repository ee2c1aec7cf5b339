"""A folder that is being corrected: its pictures, their texts, every edit, and the way back.

    with Review(Path("photos")) as review:
        review.edit("cat.png", "a tabby cat")
        review.apply(Replace("cat", "kitten"), Scope())
        review.undo()

An edit is in the journal, and safe, when its call returns; a thread writes it into the folder's files at once.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, get_args

from captioner.errors import BadImage, BadInput, BadOutput, counted, printable
from captioner.images import looks_like_picture
from captioner.images.open import identified, open_file
from captioner.review import filter as filters
from captioner.review.journal import Changed, Journal, Step
from captioner.review.operations import LONGEST_TEXT, Operation
from captioner.review.outputs import CHANGED, Candidate, Output
from captioner.review.pictures import Thumbnails, files_in
from captioner.review.row import Row
from captioner.review.sidecars import Sidecars
from captioner.review.tables import Embed, Table, candidates_in, located
from captioner.review.writer import Writer
from captioner.sinks.row import as_text
from captioner.terms import term_key
from captioner.text.length import clip_tokens_of

MOST_SHOWN = 30
"""Examples of a preview."""
MOST_TERMS = 500
LARGEST_ERRORS = 20_000_000
Sort = Literal["name", "score", "chars", "tokens"]
"""As they were found, or by one of `filter.NUMBERS`."""


class Conflict(BadOutput):
    """The text is another one by now; `row` holds it."""

    def __init__(self, message: str, row: Row) -> None:
        super().__init__(message)
        self.row = row


class Unknown(BadInput):
    """There is no picture of this name."""


@dataclass(frozen=True)
class Scope:
    """Which pictures: all, those that a filter lets through, or those that are named."""

    filter: str = ""
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Example:
    """One text of a preview."""

    name: str
    before: str
    after: str


@dataclass
class Outcome:
    """What an operation does, or has done."""

    title: str
    pictures: int = 0
    """Whose texts change."""
    matches: int = 0
    of: int = 0
    """Pictures that were looked at."""
    examples: list[Example] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Names of pictures that could not be changed, or that somebody else has changed since."""


@dataclass(frozen=True)
class Term:
    text: str
    """As it is written most often."""
    count: int


class Review:
    """See the module. Safe to be called from many threads."""

    def __init__(self, root: Path, embed: Embed | None = None) -> None:
        self.root = root.resolve()
        if not self.root.is_dir():
            raise BadInput(f"There is no folder {root}.")
        self.embed = embed or _minilm
        self.lock = threading.RLock()
        self.rows: dict[str, Row] = {}
        self.sidecars = Sidecars()
        self.tables: list[Table] = []
        self.unread: list[str] = []
        """Tables of kinds that are not read here."""
        self.journal = Journal(self.root)
        self.writer = Writer(self.lock, self.journal, self._theirs)
        try:
            self.thumbnails = Thumbnails(self.root)
            self._look()
            self._recover()
        except BaseException:
            self.journal.close()
            raise
        self.writer.start()
        self._start_looking_ahead()

    def __enter__(self) -> Review:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """What is saved is written first."""
        self.writer.close()
        self.journal.close()

    # --- what is there -----------------------------------------------------------------------------------------------

    def look_again(self) -> None:
        """All pictures, their texts and what failed, as they are on the disk now."""
        self._look()
        self._start_looking_ahead()

    def _look(self) -> None:
        files = list(files_in(self.root))
        with self.lock:
            named = ((as_text(name), path) for name, path in files if looks_like_picture(name))
            self.rows = {name: self.rows.get(name) or Row(name, path) for name, path in named}
            for row in self.rows.values():
                row.problem = self.writer.stuck.get(row)
            self.sidecars.forget()
            self._look_at_tables([path for _, path in files])
            self.sidecars.look(self.rows.values())
            for row in self.rows.values():
                self._show(row)
            self._look_at_errors([path for _, path in files])

    def _start_looking_ahead(self) -> None:
        threading.Thread(target=self._look_ahead, name="looks ahead", daemon=True).start()

    def _look_ahead(self) -> None:
        """What takes seconds for 10,000 pictures, before anybody asks: tokens, and which pictures are none."""
        known = self.rows
        count_tokens(list(known.values()))
        for row in known.values():
            if self.writer.closed or self.rows is not known:  # the folder has been looked at again
                return
            if row.text is None and row.problem is None:
                try:
                    with identified(row.path, printable(row.path.name)):
                        pass
                except BadImage as error:
                    row.problem = str(error)

    def _look_at_tables(self, files: Sequence[Path]) -> None:
        self.unread = sorted(path.name for path in files if path.suffix in (".csv", ".parquet"))
        known = {table.path: table for table in self.tables}
        tables = []
        for path in files:
            if path.suffix == ".jsonl" and not _is_error_list(path.name):
                table = known.get(path) or Table(path, self.root, self.rows, self.embed)
                table.rows = self.rows
                with _readable(path):
                    table.look()
                if table.count or (table.is_metadata and not table.lines):
                    tables.append(table)
        self.tables = sorted(tables, key=lambda table: not table.is_metadata)

    def _look_at_errors(self, files: Iterable[Path]) -> None:
        """What failed in the last run, of the pictures that have no text since."""
        for path in files:
            if not _is_error_list(path.name) or path.stat().st_size > LARGEST_ERRORS:
                continue
            with _readable(path):
                content = path.read_bytes()
            for line in content.splitlines():
                try:
                    entry = json.loads(line)
                    file, reason = str(entry["file"]), str(entry["error"])
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue
                bases = (path.parent, self.root, *self.root.parents)
                row = next(filter(None, (located(file, base, self.root, self.rows) for base in bases)), None)
                if row is not None and row.text is None:
                    row.problem = row.problem or printable(reason[:1000])

    @property
    def outputs(self) -> list[Output]:
        """In the order in which they are believed: as a training reads a folder."""
        metadata = [table for table in self.tables if table.is_metadata]
        return [*metadata, self.sidecars, *(table for table in self.tables if not table.is_metadata)]

    def _show(self, row: Row) -> None:
        """The text that stands first, unless a newer one is on its way."""
        if row not in self.writer.waiting:
            row.text = next((row.places[output] for output in self.outputs if output in row.places), None)
        row.was_edited = row.name in self.journal.latest and self.journal.latest[row.name] == row.text
        row.original = self.journal.originals.get(row.name)

    def _refresh(self, rows: Iterable[Row]) -> None:
        """What another program has done to these since the last look."""
        rows = [row for row in rows if row not in self.writer.waiting]
        before = [table.state for table in self.tables]
        for table in self.tables:
            table.look()
        self.sidecars.look(rows)
        if before != [table.state for table in self.tables]:
            rows = list(self.rows.values())
        for row in rows:
            self._show(row)

    def row(self, name: str) -> Row:
        """A picture by its name, with the text that it has now."""
        with self.lock:
            row = self._row(name)
            self._refresh([row])
            return row

    def _row(self, name: str) -> Row:
        if (row := self.rows.get(name)) is None:
            raise Unknown(f"There is no picture {printable(name[:200])!r} in this folder.")
        return row

    def candidates(self, row: Row) -> list[Candidate]:
        """What a model proposed for a picture: just now, or in the table that keeps it."""
        with self.lock:
            if row.said:  # a prompt that the picture itself carries comes without candidates
                return candidates_in(row.said) or [Candidate(row.said["text"], row.said["score"])]
            return next(filter(None, (table.candidates(row) for table in self.tables)), [])

    def said(self, name: str, answer: dict[str, Any]) -> None:
        """Keep what a model that was asked again says of a picture: for this session, and for the line that a table
        gets by it."""
        with self.lock:
            row = self._row(name)
            row.said, row.score, row.problem = answer, answer["score"], None

    def places(self, row: Row) -> list[str]:
        """Where a picture's text stands, or will."""
        with self.lock:
            return [output.title for output in self._targets(row, row.text)]

    def view(self, filter: str = "", sort: Sort = "name", descending: bool = False) -> list[Row]:
        """The pictures that a filter lets through, in order. Those without a score come last."""
        test = filters.parse(filter)
        if sort not in get_args(Sort):
            raise BadInput(f"Sort by one of {', '.join(get_args(Sort))}.")
        rows = list(self.rows.values())
        if sort == "tokens" or "tokens" in filter.lower():
            count_tokens(rows)
        rows = [row for row in rows if test(row)]
        if sort == "name":
            return rows[::-1] if descending else rows
        number = filters.NUMBERS[sort]
        numbered = [(value, row) for row in rows if (value := number(row)) is not None]
        numbered.sort(key=itemgetter(0), reverse=descending)
        return [row for _, row in numbered] + [row for row in rows if number(row) is None]

    def terms(self, filter: str = "", contains: str = "", by_name: bool = False, most: int = MOST_TERMS) -> list[Term]:
        """The comma terms of the pictures that a filter lets through, most frequent first."""
        spellings = Counter(chain.from_iterable(row.term_keys.items() for row in self.view(filter)))
        sought = term_key(contains)
        counts: Counter[str] = Counter()
        written: dict[str, str] = {}
        for (key, spelling), count in spellings.most_common():
            if sought in key:
                counts[key] += count
                written.setdefault(key, spelling)
        ordered = sorted(counts.items(), key=lambda item: (item[0],) if by_name else (-item[1], item[0]))
        return [Term(written[key], count) for key, count in ordered[:most]]

    def fail(self, name: str, reason: str) -> None:
        """Keep for this session why a picture has no text, or an empty reason once it has."""
        with self.lock:
            self._row(name).problem = printable(reason[:1000]) or None

    def small(self, name: str) -> bytes:
        """A picture of the list, as JPEG."""
        return self._picture(name, self.thumbnails.small)

    def large(self, name: str) -> bytes:
        """The picture beside the text, as JPEG."""
        return self._picture(name, self.thumbnails.large)

    def content(self, name: str) -> bytes:
        """The picture itself, for a model."""
        row = self._row(name)
        self.thumbnails.check(row.path)
        with open_file(row.path, printable(row.name)) as stream:
            return stream.read()

    def _picture(self, name: str, make: Callable[[Path], bytes]) -> bytes:
        row = self._row(name)
        try:
            return make(row.path)
        except BadImage as error:
            row.problem = row.problem or str(error)
            raise

    # --- edits -------------------------------------------------------------------------------------------------------

    def edit(
        self, name: str, text: str, *, before: str | None = None, group: str | None = None, title: str | None = None
    ) -> Row:
        """Another text for a picture.

        before: the text that the user saw; if it is another one by now, nothing is done (`Conflict`). Edits of one
        group that follow each other are taken back together.
        """
        text = _cleaned(text)
        with self.lock:
            row = self._row(name)
            self._refresh([row])
            now = _cleaned(row.text or "")  # as a page shows it, which knows one kind of line break
            if text == now:
                return row
            if before is not None and _cleaned(before) != now:
                raise Conflict(f"{row.name} has another text by now: it was changed elsewhere.", row)
            self._check(row)
            self._keep(title or f"Edit {row.name}", [Changed(row.name, row.text, text)], group)
            return row

    def preview(self, operation: Operation, scope: Scope) -> Outcome:
        """What an operation would do, with some examples."""
        outcome, changes = self._changes(operation, scope)
        outcome.examples = [Example(name, before or "", after or "") for name, before, after in changes[:MOST_SHOWN]]
        return outcome

    def apply(self, operation: Operation, scope: Scope) -> Outcome:
        """Do it, as one edit with one way back."""
        with self.lock:
            self._refresh(self._in(scope))
            outcome, changes = self._changes(operation, scope)
            writable: dict[Row, str | None] = {}
            for change in changes:
                row = self.rows[change.name]
                try:
                    self._check(row)
                    writable[row] = change.after
                except BadOutput:
                    outcome.skipped.append(change.name)
            outcome.pictures = len(writable)
            if writable:
                title = f"{outcome.title} in {counted(len(writable), 'text')}"
                self._keep(title, [Changed(row.name, row.text, text) for row, text in writable.items()])
            return outcome

    def _in(self, scope: Scope) -> list[Row]:
        rows = self.view(scope.filter)
        if scope.names is None:
            return rows
        names = set(scope.names)
        return [row for row in rows if row.name in names]

    def _changes(self, operation: Operation, scope: Scope) -> tuple[Outcome, list[Changed]]:
        rows, operation = self._in(scope), copy(operation)  # whose time begins now
        outcome = Outcome(operation.title(), of=len(rows))
        changes = []
        for row in rows:
            text = row.text
            if not text:
                continue
            after, matches = operation(text)
            if not matches:
                continue
            outcome.matches += matches
            if len(after) > LONGEST_TEXT:
                raise BadInput(f"The text of {row.name} would become longer than {LONGEST_TEXT:,} characters.")
            after = _cleaned(after)
            if after != text:
                changes.append(Changed(row.name, text, after))
        outcome.pictures = len(changes)
        return outcome, changes

    def undo(self) -> Outcome:
        """Take the last step back, all of it."""
        return self._turn(self.journal.done, self.journal.undo, "There is nothing to undo.", back=True)

    def redo(self) -> Outcome:
        """The last step that was taken back, again."""
        return self._turn(self.journal.undone, self.journal.redo, "There is nothing to redo.", back=False)

    def _turn(self, steps: list[Step], note: Callable[[Step], None], nothing: str, back: bool) -> Outcome:
        with self.lock:
            if not steps:
                raise BadInput(nothing)
            step = steps[-1]
            wanted = self.journal.changes(step, back=back)
            self._refresh(self.rows[change.name] for change in wanted if change.name in self.rows)
            outcome = Outcome(step.title)
            changes = []
            for change in wanted:
                row = self.rows.get(change.name)
                if row is None or row.text != change.before:
                    outcome.skipped.append(change.name)
                else:
                    changes.append((row, change.after))
            note(step)
            for row, text in changes:
                self._set(row, text)
                self._show(row)
            outcome.pictures = len(changes)
            if len(changes) == 1:
                row, text = changes[0]
                outcome.examples = [Example(row.name, row.text or "", text or "")]
            return outcome

    def _keep(self, title: str, changes: list[Changed], group: str | None = None) -> None:
        """Into the journal, then into memory, then, by the thread, into the files."""
        raw = {change.name: self.sidecars.raw[change.name] for change in changes if change.name in self.sidecars.raw}
        self.journal.edit(title, changes, raw, group)
        for change in changes:
            row = self.rows[change.name]
            self._set(row, change.after)
            self._show(row)

    def _set(self, row: Row, text: str | None) -> None:
        targets = self._targets(row, row.text)
        row.text = text
        if text:
            row.problem = None
        self.writer.put(row, targets, text)

    def _targets(self, row: Row, text: str | None) -> list[Output]:
        """Every output that holds the text of now; where there is none, where its neighbours have theirs."""
        held = self.writer.held(row)
        if targets := [output for output in self.outputs if held.get(output) is not None and held[output] == text]:
            return targets
        if holding := [output for output in self.outputs if held.get(output) is not None]:
            return holding[:1]
        for table in self.tables:
            if table.covers(row):
                return [table]
        others = [table for table in self.tables if not table.is_metadata]
        if others and not any(self.sidecars in other.places for other in self.rows.values()):
            return [max(others, key=lambda table: table.count)]
        return [self.sidecars]

    def _check(self, row: Row) -> None:
        """Whether a text of this picture can be kept: said before anything is."""
        for output in self._targets(row, row.text):
            output.check(row)

    def history(self, most: int = 100) -> list[tuple[Step, bool]]:
        """The newest steps first; True: it stands, False: it was taken back."""
        with self.lock:
            return list(self.journal.history(most))

    # --- into the files ----------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """What was saved before a kill and is not in the files yet."""
        chains: dict[str, list[str | None]] = {}
        for name, before, after in self.journal.pending:
            chains.setdefault(name, [before]).append(after)
        for name, texts in chains.items():
            row = self.rows.get(name)
            if row is None:
                continue
            if row.text not in texts:
                row.problem = CHANGED.format(row.name)
            elif stale := [output for output, text in row.places.items() if text in texts and text != texts[-1]]:
                row.text = texts[-1]  # the first may hold it already, and a later one not yet
                self.writer.put(row, stale, texts[-1])
                self._show(row)
            elif row.text != texts[-1]:
                self._set(row, texts[-1])
                self._show(row)
        self.sidecars.raw.update(self.journal.raw)
        if self.journal.pending and not self.writer.waiting:
            self.writer.note(self.journal.actions)

    def _theirs(self, rows: list[tuple[Row, str]]) -> None:
        """What another program wrote meanwhile is shown, with the reason."""
        self._refresh([row for row, _ in rows])
        for row, reason in rows:
            row.problem = reason

    def flush(self, seconds: float | None = None) -> int:
        """Wait until all is written; how much is not by then."""
        return self.writer.flush(seconds)


def count_tokens(rows: Sequence[Row]) -> None:
    """Of all that have not been counted yet, in large batches."""
    uncounted = [(row, row.text) for row in rows if row.text and not row.has_tokens]
    for begin in range(0, len(uncounted), 1024):
        part = uncounted[begin : begin + 1024]
        for (row, text), count in zip(part, clip_tokens_of([text for _, text in part]), strict=True):
            row.counted(text, count)


def _cleaned(text: str) -> str:
    """As it is kept: no space around it, one kind of line break, nothing that no editor shows."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"[\0-\x08\x0b-\x1f\x7f]", "", text).strip()
    if len(text) > LONGEST_TEXT:
        raise BadInput(f"A text has at most {LONGEST_TEXT:,} characters.")
    return text.encode("utf-8", "replace").decode("utf-8")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """A folder of which a part cannot be read is not shown: its texts would be told to be missing."""
    try:
        yield
    except OSError as error:
        raise BadOutput(
            f"{printable(str(path))} cannot be read ({error.strerror}): change who may, or move it elsewhere."
        ) from error


def _is_error_list(name: str) -> bool:
    return name in ("errors.jsonl", "captioner-errors.jsonl") or name.endswith(".errors.jsonl")


def _minilm(texts: Sequence[str]) -> Any:
    from captioner.text.embedding import text_embedder

    return text_embedder()(texts)
