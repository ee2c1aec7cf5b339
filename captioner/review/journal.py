"""Every edit of a folder, in the order in which it was made: appended, flushed to the disk, never changed.

An edit is in the journal before anybody is told that it is saved, and before a text of the folder is touched. A line
`written` follows when the texts are in their files, so that after a kill the rest is known. It lies in the user's
cache: nothing in a folder of a stranger's says what is written, or where.

    {"review": 1, "root": "/home/ada/photos"}
    {"edit": 1, "title": "Edit cat.png", "time": 1790000000.0, "group": "k", "changes": [["cat.png", "a cat", "a dog"]]}
    {"edit": 2, "title": "Append “8k”", …}
    {"undo": 2}
    {"redo": 2}
    {"written": 4}
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from captioner.errors import BadOutput
from captioner.files import atomic
from captioner.files.cache import cache_to_write
from captioner.files.lock import lock
from captioner.sinks.checks import explained
from captioner.sinks.journal import open_to_append, write_rows

REMEDY = "Make room, or see to its permissions, then try again."


class Changed(NamedTuple):
    """One picture's text before and after. None: it had none, it has none."""

    name: str
    before: str | None
    after: str | None


@dataclass(eq=False)
class Step:
    """What one undo takes back: an edit, a whole bulk edit, or all that was typed into one text at a time."""

    number: int
    title: str
    time: float
    group: str | None
    starts: list[int] = field(default_factory=list)
    """Where its lines stand in the journal."""
    texts: int = 0
    """How many it changes."""


class Journal:
    """The edits of one folder. Two servers cannot hold it at once."""

    def __init__(self, root: Path) -> None:
        self.path = journal_path(root)
        self.done: list[Step] = []
        self.undone: list[Step] = []
        self.actions = 0
        """Edits, undos and redos so far."""
        self.pending: list[Changed] = []
        """What may not be in the files yet: a kill came in between."""
        self.originals: dict[str, str | None] = {}
        """What stood in the folder before the first edit of each picture, since somebody else wrote it last."""
        self.latest: dict[str, str | None] = {}
        """What the last edit left there."""
        self.raw: dict[str, str] = {}
        """Name → the very content of its sidecar then, where that was more than the text and a line break."""
        self.grouped: set[str] = set()
        """Names of the pictures of the newest step."""
        self.last = 0
        self.steps: dict[int, Step] = {}
        self.size = 0
        self.damaged = 0
        """Lines between others that cannot be read. They stay where they are."""
        with explained(self.path):
            self.stream = open_to_append(self.path)
        try:
            lock(self.stream, f"{root} is open in another review: its journal")
            self._read(root)
        except BaseException:
            self.stream.close()
            raise

    def close(self) -> None:
        self.stream.close()

    # --- reading what is there ---------------------------------------------------------------------------------------

    def _read(self, root: Path) -> None:
        """Go on from what is there; a half-written end is cut off, and what is damaged before it passed over."""
        waiting: list[tuple[int, list[Changed]]] = []
        end = damaged = 0
        with open(self.path, "rb") as stream:
            for content in stream:
                start, end = end, end + len(content)
                line = _parsed(content)
                if line is None or not self._fits(line):
                    damaged += 1
                    continue
                if start == 0 and line.get("review") != 1:
                    raise BadOutput(f"{self.path} is no journal of a review: move it away.")
                # Each may have been an action. To count one too few would take later ones for written.
                self.damaged, self.actions, damaged = self.damaged + damaged, self.actions + damaged, 0
                if "written" in line:
                    waiting = [action for action in waiting if action[0] > line["written"]]
                elif (changes := self._note(line, start)) is not None:
                    waiting.append((self.actions, changes))
                self.size = end
        if self.size < self.path.stat().st_size:
            self.stream.truncate(self.size)
        if self.size == 0:
            self._append({"review": 1, "root": os.fspath(root)})
            atomic.flush(self.path.parent)
        self.pending = [change for _, changes in waiting for change in changes]

    def _fits(self, line: dict[str, Any]) -> bool:
        """Whether a line is whole, and goes on from those before it: the edit that is undone may be a damaged one."""
        if "undo" in line or "redo" in line:
            number, steps = (line["undo"], self.done) if "undo" in line else (line["redo"], self.undone)
            return isinstance(number, int) and self.steps.get(number) in steps
        return _is_edit(line) if "edit" in line else isinstance(line.get("written", 0), int)

    def _note(self, line: dict[str, Any], start: int) -> list[Changed] | None:
        """Take an action into account; its changes."""
        if "edit" in line:
            changes = [Changed(*change) for change in line["changes"]]
            self._note_edit(line, changes, start)
        elif "undo" in line or "redo" in line:
            takes_back = "undo" in line
            number = line["undo"] if takes_back else line["redo"]
            source, target = (self.done, self.undone) if takes_back else (self.undone, self.done)
            step = self.steps[number]
            source.remove(step)
            target.append(step)
            changes = self.changes(step, back=takes_back)
            self.latest |= {name: after for name, _, after in changes}
        else:
            return None
        self.actions += 1
        return changes

    def _note_edit(self, line: dict[str, Any], changes: list[Changed], start: int) -> None:
        group = line.get("group")
        step = self.done[-1] if self.done and group is not None and self.done[-1].group == group else None
        if step is None or self.undone:
            step = Step(line["edit"], line["title"], line["time"], group)
            self.done.append(step)
            self.steps[step.number] = step
        self.undone.clear()
        step.starts.append(start)
        if len(step.starts) == 1:
            self.grouped = set()
        self.grouped.update(change.name for change in changes)
        step.texts = len(self.grouped)
        for name, before, after in changes:
            if name not in self.latest or self.latest[name] != before:
                self.originals[name] = before
            self.latest[name] = after
        for name, raw in line.get("raw", {}).items():
            self.raw.setdefault(name, raw)
        self.last = line["edit"]

    def changes(self, step: Step, *, back: bool = False) -> list[Changed]:
        """What a step changes, each picture once; the other way round with `back`."""
        texts: dict[str, Changed] = {}
        with open(self.path, "rb") as stream:
            for start in step.starts:
                stream.seek(start)
                for name, before, after in json.loads(stream.readline())["changes"]:
                    texts[name] = Changed(name, texts[name].before if name in texts else before, after)
        if back:
            return [Changed(name, after, before) for name, before, after in texts.values()]
        return list(texts.values())

    # --- adding to it ------------------------------------------------------------------------------------------------

    def edit(self, title: str, changes: list[Changed], raw: dict[str, str], group: str | None = None) -> Step:
        """Keep an edit; when it returns it is on the disk."""
        line = {"edit": self.last + 1, "title": title, "time": round(time.time(), 3), "group": group}
        line["changes"] = [list(change) for change in changes]
        if new := {name: content for name, content in raw.items() if name not in self.raw}:
            line["raw"] = new
        self._act(line)
        return self.done[-1]

    def undo(self, step: Step) -> None:
        self._act({"undo": step.number})

    def redo(self, step: Step) -> None:
        self._act({"redo": step.number})

    def _act(self, line: dict[str, Any]) -> None:
        self._note(line, self._append(line))

    def written(self, actions: int) -> None:
        """So many of the actions are in the files."""
        self._append({"written": actions})

    def _append(self, line: dict[str, Any]) -> int:
        """Where the line stands. One that could not be kept whole is taken back: nothing of it is half there."""
        start = self.size
        try:
            with explained(self.path, REMEDY):
                write_rows(self.stream, [line])
                os.fsync(self.stream.fileno())
        except BaseException:
            self.stream.truncate(start)
            raise
        self.size = self.path.stat().st_size
        return start

    def history(self, most: int) -> Iterator[tuple[Step, bool]]:
        """The newest steps first, and whether each stands or was taken back."""
        taken_back = ((step, False) for step in self.undone)
        return islice(chain(taken_back, ((step, True) for step in reversed(self.done))), most)


def journal_path(root: Path) -> Path:
    """Where the journal of this folder lies: in the user's cache."""
    digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return cache_to_write("review") / f"{digest}.jsonl"


def _is_edit(line: dict[str, Any]) -> bool:
    changes, raw = line.get("changes"), line.get("raw", {})
    return (
        isinstance(line["edit"], int)
        and isinstance(line.get("title"), str)
        and isinstance(line.get("time"), (int, float))
        and isinstance(changes, list)
        and all(map(_is_change, changes))
        and isinstance(raw, dict)
        and all(isinstance(content, str) for content in raw.values())
    )


def _is_change(change: object) -> bool:
    return (
        isinstance(change, list)
        and len(change) == 3
        and isinstance(change[0], str)
        and all(text is None or isinstance(text, str) for text in change[1:])
    )


def _parsed(content: bytes) -> dict[str, Any] | None:
    """A whole line; None of what a kill or a power failure left."""
    if not content.endswith(b"\n"):
        return None
    try:
        line = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None
