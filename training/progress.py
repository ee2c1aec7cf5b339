"""What a person sees while a model trains: one line with loss, pictures a second and time left."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

console = Console(stderr=True)


class Watch(TrainerCallback):
    """A progress bar on a terminal, a plain line at every log elsewhere. Only the first process speaks."""

    def __init__(self, pictures_per_step: int) -> None:
        self.pictures_per_step = pictures_per_step
        self.bar: Progress | None = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.first_step, self.began, self.loss = state.global_step, time.monotonic(), ""
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
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step, status=self._status(state))

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            self.loss = f"loss {float(logs['loss']):.4f}"
            if self.bar is None:
                print(f"step {state.global_step}/{state.max_steps}  {self._status(state)}", file=sys.stderr, flush=True)
        elif "eval_loss" in logs:
            cosine = f", cosine of captions {logs['eval_cosine']:.4f}" if "eval_cosine" in logs else ""
            console.print(f"after {state.global_step} steps: validation loss {logs['eval_loss']:.4f}{cosine}")

    def on_train_end(self, args, state, control, **kwargs) -> None:
        if self.bar is not None:
            self.bar.stop()

    def _status(self, state) -> str:
        seconds = max(time.monotonic() - self.began, 1e-6)
        return f"{self.loss}  {(state.global_step - self.first_step) * self.pictures_per_step / seconds:.1f} images/s"
