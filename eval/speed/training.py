"""LoRA training of BLIP's base size with random weights: our loop, as `python -m training.blip --lora` runs it, beside
a loop as one writes it by hand, of transformers' model, PEFT and PyTorch.

Both learn from the same texts and the same pixels, which lie in memory: the ratio is of training, not of reading
pictures. Time is taken at the end of every block of steps, when the device has done them; the first steps, which
compile and warm up, do not count. The loop by hand does the same work: as many adapters, clipping, a schedule, pinned
batches from as many worker processes, AdamW in one kernel; it logs nothing and looks at no loss.
"""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader
from transformers import BlipForConditionalGeneration, TrainerCallback, get_cosine_schedule_with_warmup

from captioner import compute
from captioner.quiet import without_bars
from eval.speed.clock import peak, wait
from eval.speed.model import picture, random_blip
from eval.speed.suite import Row
from training.arguments import arguments
from training.batches import Collate, Pairs
from training.blip import ADAPTABLE, BlipRecipe, job
from training.captioners import load_rows
from training.job import Job
from training.loop import quiet
from training.recipe import parse
from training.trainer import LoopTrainer

DISTINCT = 32


@dataclass(frozen=True)
class Work:
    """What both loops do."""

    batch: int
    precision: str
    first: int
    """Steps that do not count."""
    blocks: int
    of_steps: int = 1

    @property
    def steps(self) -> int:
        return self.first + self.blocks * self.of_steps


@dataclass
class Run:
    """What a loop took."""

    first_loss: float = float("nan")
    last_loss: float = float("nan")
    ends: list[float] = field(default_factory=list)
    """When the first steps, and every block of steps after them, had been done."""
    peak_bytes: int = 0

    def rates(self, work: Work) -> list[float]:
        """Pictures a second, of every block."""
        pictures = work.batch * work.of_steps
        return [pictures / (end - begin) for begin, end in zip(self.ends, self.ends[1:], strict=False)]

    def step_done(self, step: int, work: Work, device: torch.device) -> None:
        """To be called at the end of every step."""
        if step >= work.first and (step - work.first) % work.of_steps == 0:
            wait(device)
            self.ends.append(time.perf_counter())


def measure(say: Callable[[str], object]) -> list[Row]:
    """On a GPU in bf16, small and large batches, also compiled; on a CPU a few steps, which take seconds each."""
    if not torch.cuda.is_available():
        return compare("blip-base-random", Work(2, "fp32", first=1, blocks=3), [False], say)
    large, small = (Work(batch, "bf16", first=20, blocks=5, of_steps=10) for batch in (64, 8))
    return [
        *compare("blip-base-random", large, [False, True], say),
        *compare("blip-base-random", small, [False, True], say),
    ]


def compare(
    model: str, work: Work, compiled: list[bool], say: Callable[[str], object], distinct: int = DISTINCT
) -> list[Row]:
    """Our loop, compiled or not, against the one by hand. distinct: so many pictures with a text of their own."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder, data = Path(scratch) / "model", Path(scratch) / "pictures"
        folder.mkdir()
        random_blip(folder, model)
        pairs(data, distinct)
        by_hand = None
        for compiles in compiled:
            learning = made(folder, data, Path(scratch) / f"out-{compiles}", work, compiles)
            if by_hand is None:
                by_hand = plain(folder, learning, work)
                say(f"  by hand: {statistics.median(by_hand.rates(work)):.1f} pictures/s")
            run = ours(learning, work)
            row = compared(work, run, by_hand, compiles)
            say(f"  {row.subject}: {statistics.median(run.rates(work)):.1f} pictures/s, ×{row.median:.2f}")
            rows.append(row)
    return rows


def compared(work: Work, run: Run, by_hand: Run, compiles: bool) -> Row:
    """The ratio of the rates of every block."""
    rates, theirs = run.rates(work), by_hand.rates(work)
    return Row(
        f"LoRA of BLIP base, {work.precision}, {work.batch} at a time{', compiled' * compiles}",
        "times faster than a loop by hand",
        [a / b for a, b in zip(rates, theirs, strict=True)],
        details={
            "pictures_a_second": rates,
            "pictures_a_second_by_hand": theirs,
            "peak_bytes": run.peak_bytes,
            "peak_bytes_by_hand": by_hand.peak_bytes,
            "first_loss": run.first_loss,
            "first_loss_by_hand": by_hand.first_loss,
            "last_loss": run.last_loss,
            "last_loss_by_hand": by_hand.last_loss,
        },
    )


def pairs(folder: Path, count: int) -> None:
    """Pictures with texts of 5 to 35 words that the random model knows."""
    folder.mkdir()
    random = np.random.default_rng(0)
    with open(folder / "metadata.jsonl", "w", encoding="utf-8") as metadata:
        for number in range(count):
            picture(number).resize((64, 64)).save(folder / f"{number}.png")
            words = random.integers(1000, 30000, random.integers(5, 36))
            row = {"file_name": f"{number}.png", "text": " ".join(f"word{word}" for word in words)}
            metadata.write(json.dumps(row) + "\n")


class InMemory(Pairs):
    """Pairs whose pixels are made once, those of equal texts being the same."""

    def __init__(self, pairs: Pairs) -> None:
        vars(self).update(vars(pairs))
        rows = {text: row for row, text in enumerate(pairs.texts)}
        self.items = {text: pairs[row] for text, row in rows.items()}

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[self.texts[index]]


def made(folder: Path, data: Path, out: Path, work: Work, compiles: bool) -> Job:
    """What the command makes of its options, with pixels in memory and nothing to validate on."""
    times = -(-work.steps * work.batch // len(list(data.glob("*.png"))))
    where = ["--base", str(folder), "--data", f"{data}@{times}", "--validation", str(data), "--out", str(out)]
    how = ["--lora", "--precision", work.precision, *(["--compile"] if compiles else [])]
    much = ["--batch-size", str(work.batch), "--max-steps", str(work.steps), "--samples", "0"]
    recipe = parse(BlipRecipe, None, [*where, *how, *much])
    learning = job(recipe, load_rows(recipe))
    assert isinstance(learning.train_rows, Pairs)
    return replace(learning, train_rows=InMemory(learning.train_rows), validation_rows=None)


def ours(learning: Job, work: Work) -> Run:
    """The loop of this project."""
    run = Run()

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            run.step_done(state.global_step, work, args.device)

    def train() -> None:
        with quiet():
            trainer = LoopTrainer(learning, arguments(learning))
            trainer.add_callback(Clock())
            trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        run.first_loss, run.last_loss = losses[0], losses[-1]

    with forgotten():
        run.peak_bytes = peak(train, compute.device("auto"))
    return run


def plain(folder: Path, like: Job, work: Work) -> Run:
    """A loop as one writes it, of the same adapter, rate and batches."""
    run, recipe = Run(), like.recipe
    assert isinstance(recipe, BlipRecipe)
    workers = arguments(like).dataloader_num_workers
    device = compute.device("auto")

    def train() -> None:
        torch.manual_seed(recipe.seed)
        lora = LoraConfig(r=recipe.lora_rank, lora_alpha=recipe.lora_alpha, lora_dropout=0.05, target_modules=ADAPTABLE)
        model = get_peft_model(BlipForConditionalGeneration.from_pretrained(folder), lora).to(device).train()
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            learning, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=device.type == "cuda"
        )
        schedule = get_cosine_schedule_with_warmup(optimizer, round(recipe.warmup * work.steps), work.steps)
        batches = DataLoader(
            like.train_rows,
            work.batch,
            shuffle=True,
            collate_fn=Batch(like),
            num_workers=workers,
            pin_memory=device.type == "cuda",
            drop_last=True,
        )
        losses = []
        for step, batch in zip(range(1, work.steps + 1), batches, strict=False):
            batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=work.precision == "bf16"):
                loss = model(**batch).loss
            loss.backward()
            clip_grad_norm_(learning, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            run.step_done(step, work, device)
        run.first_loss, run.last_loss = losses[0].item(), losses[-1].item()

    with forgotten(), without_bars():
        run.peak_bytes = peak(train, compute.device("auto"))
    return run


class Batch:
    """Rows → what transformers' model takes."""

    def __init__(self, like: Job) -> None:
        self.collate = Collate(like.targets)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {name: value for name, value in self.collate(rows).items() if torch.is_tensor(value)}


@contextmanager
def forgotten() -> Iterator[None]:
    """Neither the memory nor the compiled layers of one run are the next one's."""
    gc.collect()
    try:
        yield
    finally:
        torch.compiler.reset()
