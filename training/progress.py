"""What a person sees while a model trains: one line with loss, pictures a second and time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback

from captioner.errors import counted, printable
from training.job import Sample
from training.words import duration

console = Console(stderr=True, highlight=False)

TRUTH_LINES, SAID_LINES = 2, 4
"""A prompt may be long; the table is read at every evaluation."""


class Watch(TrainerCallback):
    """A progress bar on a terminal, a plain line at every log elsewhere. Only the first process speaks."""

    def __init__(self, pictures_of_step: Callable[[], int]) -> None:
        self.pictures_of_step = pictures_of_step
        self.bar: Progress | None = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.first_step, self.began, self.loss = state.global_step, time.monotonic(), ""
        self.pictures = 0
        if not (state.is_world_process_zero and console.is_terminal):
            return
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.bar.add_task("training", total=state.max_steps, completed=state.global_step, status="")
        self.bar.start()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.pictures += self.pictures_of_step()
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step, status=self._status())

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            self.loss = f"loss {float(logs['loss']):.4f}"
            if self.bar is None:
                line = f"step {state.global_step}/{state.max_steps}  {self._status()}{self._left(state)}"
                print(line, file=sys.stderr, flush=True)
        elif "eval_loss" in logs:
            cosine = f", cosine of captions {logs['eval_cosine']:.4f}" if "eval_cosine" in logs else ""
            console.print(
                f"after {counted(state.global_step, 'step')}: validation loss {logs['eval_loss']:.4f}{cosine}"
            )

    def stop(self) -> None:
        """However training ends: the bar hides the cursor, and would be drawn below a message."""
        if self.bar is not None:
            self.bar.stop()

    def _status(self) -> str:
        return f"{self.loss}  {self.pictures / self._seconds():.1f} images/s"

    def _left(self, state) -> str:
        """The bar knows it by itself."""
        ahead, steps = state.max_steps - state.global_step, state.global_step - self.first_step
        return f"  {duration(ahead * self._seconds() / steps)} left" if ahead and steps else ""

    def _seconds(self) -> float:
        return max(time.monotonic() - self.began, 1e-6)


def show(samples: Sequence[Sample], step: int, rows: int = 4) -> None:
    """A few captions beside the truth."""
    table = Table(
        "truth", "says", "cosine", title=f"captions after {counted(step, 'step')}", title_justify="left", expand=True
    )
    width = max(8, (console.width - 20) // 2)  # of a column of text, less borders and the cosine
    for truth, says, cosine in samples[:rows]:
        table.add_row(_cut(truth, width * TRUTH_LINES), _cut(says, width * SAID_LINES), f"{cosine:.2f}")
    console.print(table)


def _cut(text: str, width: int) -> Text:
    """As plain text: what looks like markup in a prompt is none, and a control character does nothing."""
    plain = Text(printable(text))
    plain.truncate(width, overflow="ellipsis")
    return plain
