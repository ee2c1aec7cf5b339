"""What each model has said to each picture: written down at once, never asked again.

`OUT/answers/<label>.jsonl` begins with a line that says which weights, data and settings it belongs to; each line after
it is one picture's answer, known by the picture's id. A run that was killed goes on with the pictures that have no
whole line yet; another model, other weights or other data start afresh.
"""

from __future__ import annotations

import base64
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from captioner.contracts import PLAIN_REQUEST, Model, Request
from captioner.errors import counted
from captioner.files import atomic
from captioner.images.ahead import read_ahead
from captioner.images.open import bytes_of
from captioner.sinks.checks import explained
from captioner.sinks.journal import write_whole
from captioner.text.embedding import unit

if TYPE_CHECKING:
    from PIL.Image import Image

    from captioner.text.embedding import TextEmbedder
    from eval.data import Pairs


KEPT = "What the models said so far is kept: put it right, and give the same command again."


@dataclass(frozen=True)
class Answer:
    """One picture's answer: a text, a vector, or both."""

    id: str
    text: str | None
    vector: np.ndarray
    """`[d]`: the embedding of the text, or the one predicted directly."""
    seconds: float | None
    """Time the model took for this picture; None: nobody measured."""
    precision: str | None = None
    """In which the model computed; None: nobody told."""
    length: float | None = None
    """Of a predicted embedding before it was scaled: longer where the model is surer. None of a text's."""

    @property
    def whole(self) -> np.ndarray:
        """The vector in its own length."""
        return self.vector if self.length is None else self.vector * self.length

    def line(self) -> str:
        packed = base64.b64encode(np.asarray(self.vector, dtype="<f4").tobytes()).decode()
        about = {"id": self.id, "text": self.text, "seconds": self.seconds, "precision": self.precision}
        return json.dumps({**about, "vector": packed, "length": self.length}) + "\n"

    @classmethod
    def parse(cls, line: str) -> Answer:
        """ValueError if the line is not a whole answer."""
        row = json.loads(line)
        if not isinstance(row, dict) or not all(isinstance(row.get(key), kinds) for key, kinds in _KINDS.items()):
            raise ValueError("no answer")
        vector = np.frombuffer(base64.b64decode(row["vector"], validate=True), dtype="<f4")
        return cls(row["id"], row["text"], vector, row["seconds"], row.get("precision"), row.get("length"))


_KINDS: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "text": (str, type(None)),
    "seconds": (int, float, type(None)),
    "precision": (str, type(None)),
    "length": (int, float, type(None)),
    "vector": (str,),
}


Step = TypeVar("Step")


class Track(Protocol):
    """Wraps a loop to show progress: told how many steps there are (None: nobody knows) and whose they are."""

    def __call__(self, steps: Iterable[Step], total: int | None, what: str, /) -> Iterable[Step]: ...


def answer_all(
    file: Path,
    header: Mapping[str, object],
    load: Callable[[], Model],
    pairs: Pairs,
    batch_size: int,
    embed_texts: TextEmbedder,
    track: Track,
    label: str,
    notes: list[str],
    asked: Request = PLAIN_REQUEST,
) -> list[Answer]:
    """One answer an item, those in `file` first; the model is loaded only if some are missing."""
    ids = [item.id for item in pairs.items]
    done, damaged = _answers_in(file, header, ids)
    if damaged:
        notes.append(f"{file}: {counted(damaged, 'line')} damaged or of no picture; left out, and asked again.")
    missing = [index for index, identifier in enumerate(ids) if identifier not in done]
    if not missing:
        return [done[identifier] for identifier in ids]
    # Without the line that a kill cut off, and without what is damaged.
    whole = [done[identifier].line() for identifier in ids if identifier in done]
    with explained(file, KEPT):
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(file, json.dumps(header) + "\n" + "".join(whole))
    model = load()
    ahead = read_ahead(missing, lambda index, _: pairs.image(index), bytes_of)
    with closing(ahead) as opened, file.open("ab", buffering=0) as out:
        starts = range(0, len(missing), batch_size)
        for start in track(starts, len(starts), label):
            of_batch = [ids[i] for i in missing[start : start + batch_size]]
            images = list(islice(opened, len(of_batch)))
            answers = _ask_batch(model, images, of_batch, embed_texts, asked)
            with explained(file, KEPT):
                write_whole(out, "".join(answer.line() for answer in answers).encode())
            done |= {answer.id: answer for answer in answers}
    return [done[identifier] for identifier in ids]


def _ask_batch(
    model: Model, images: list[Image], ids: list[str], embed_texts: TextEmbedder, asked: Request
) -> list[Answer]:
    start = time.perf_counter()
    if not model.speaks:
        vectors = model.vectors(images)
        seconds = (time.perf_counter() - start) / len(images)
        lengths = np.linalg.norm(vectors, axis=1)
        return [
            Answer(id_, None, vector, seconds, length=float(length))
            for id_, vector, length in zip(ids, unit(vectors), lengths, strict=True)
        ]
    prompts = model.generate(images, asked, batch_size=len(images))
    seconds = (time.perf_counter() - start) / len(images)  # the evaluation's own embedding of texts is no part of it
    vectors = embed_texts([prompt.text for prompt in prompts])
    return [
        Answer(id_, prompt.text, vector, seconds, prompt.precision)
        for id_, prompt, vector in zip(ids, prompts, vectors, strict=True)
    ]


def was_begun(file: Path, header: Mapping[str, object]) -> bool:
    """Do answers of an earlier run that asked the same lie here?"""
    if not file.exists():
        return False
    with file.open(encoding="utf-8", errors="replace") as lines:
        return lines.readline() == json.dumps(header) + "\n"


def _answers_in(file: Path, header: Mapping[str, object], ids: list[str]) -> tuple[dict[str, Answer], int]:
    """By id, the answers of an earlier run that asked the same; and how many lines are none of them."""
    if not was_begun(file, header):
        return {}, 0
    _, *lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    known, damaged = set(ids), 0
    answers: dict[str, Answer] = {}
    for line in lines:
        if not line.endswith("\n"):
            continue  # what a kill leaves
        try:
            answer = Answer.parse(line)
        except ValueError:
            damaged += 1
            continue
        if answer.text is None and answer.length is None:
            continue  # an earlier version did not keep it
        if answer.id in known and answer.id not in answers:
            answers[answer.id] = answer
        else:
            damaged += 1
    lengths = Counter(len(answer.vector) for answer in answers.values())
    whole = {i: answer for i, answer in answers.items() if len(answer.vector) == lengths.most_common(1)[0][0]}
    return whole, damaged + len(answers) - len(whole)
