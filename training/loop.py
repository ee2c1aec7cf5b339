"""The one training loop, on transformers' Trainer: what every trainer in this folder calls when its model is ready.

It promises: the loss of a step does not depend on how the step's pictures are spread over batches and processes; a run
killed at any moment goes on bit for bit from the newest whole checkpoint; a full disk or a loss that is no number
stops the run and loses nothing.
"""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, TrainerState
from transformers.modeling_layers import GradientCheckpointingLayer

from captioner.errors import BadInput, BadOutput, CaptionerError, counted
from captioner.files import atomic
from captioner.files.json import write_object
from captioner.files.names import typed
from captioner.pairs.provenance import name_of, trained_on
from captioner.pairs.sources import parse
from captioner.quiet import without_bars
from captioner.run.streams import tell
from training.adapters import without_adapter
from training.arguments import arguments
from training.checkpoints import newest_whole
from training.finish import best_evaluation, write_card, write_curves
from training.job import Job
from training.resuming import DATA, RECIPE, check_data, folder_of_run
from training.streamed import StreamedPairs
from training.trainer import CANNOT_WRITE, LoopTrainer, refuse_no_numbers, tensorboard_is_here

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def train(job: Job) -> None:
    """Train, choose the best checkpoint, and leave a folder that `captioner generate --model` takes."""
    recipe = job.recipe
    if recipe.gradient_checkpointing and not can_checkpoint(job.model):
        raise BadInput("--gradient-checkpointing is for transformer layers, and this model learns none: leave it out.")
    if int(os.environ.get("RANK", 0)):  # the first process of a launcher has the folder
        with quiet():
            run(job, Path(recipe.out))
        return
    with folder_of_run(recipe) as out, quiet(), with_advice(out):
        run(job, out)
    if recipe.push_to_hub:
        from training.hub import upload

        upload(out, recipe.push_to_hub)


def run(job: Job, out: Path) -> None:
    """What every process does."""
    trainer = LoopTrainer(job, arguments(job))
    start_from = newest_whole(out, warn=True) if job.recipe.resume else None
    if trainer.is_world_process_zero():
        begin(job, trainer, start_from, out)
    if start_from is not None and is_finished(start_from, trainer):
        trainer.take_finished(start_from)
    else:
        trainer.train(resume_from_checkpoint=None if start_from is None else str(start_from))
    if trainer.is_world_process_zero():
        leave_model(job, trainer, out)


def begin(job: Job, trainer: LoopTrainer, start_from: Path | None, out: Path) -> None:
    """Write what a resumed run is compared with, and say what is about to happen."""
    if start_from is not None and isinstance(job.train_rows, StreamedPairs):
        job.train_rows.met |= trained_on([out]).fingerprints  # where no step is left, it meets none anew
    data = learnt_from(job)
    check_data(job.recipe, data)
    write_object(out / RECIPE, asdict(job.recipe))
    write_object(out / DATA, data)
    if job.save_base is not None and not (out / "base").exists():
        with atomic.replacing_folder(out / "base") as new:
            job.save_base(new)
    announce(job, trainer, start_from)


def announce(job: Job, trainer: LoopTrainer, start_from: Path | None) -> None:
    """What is about to happen, in three lines; the count of processes tells whether a launcher really launched."""
    recipe, processes, validation = job.recipe, trainer.accelerator.num_processes, job.validation_rows
    learning = sum(p.numel() for p in job.model.parameters() if p.requires_grad)
    every = sum(p.numel() for p in job.model.parameters())
    factors = " × ".join(
        counted(number, noun)
        for number, noun in ((recipe.batch_size, "picture"), (recipe.accumulate, "batch"), (processes, "process"))
    )
    lines = [
        f"{job.train_rows} to train on, {0 if validation is None else len(validation):,} to validate on",
        f"{learning:,} of {every:,} parameters learn ({learning / every:.1%}) on {trainer.args.device}",
        f"{factors} a step" + ("" if start_from is None else f"; going on from {start_from.name}"),
    ]
    if "paged" in recipe.optimizer and trainer.args.device.type == "cpu":
        lines.append("There is no GPU whose memory could be full: the paged optimizer works like the other.")
    if trainer.args.device.type == "cuda" and processes == 1 and (gpus := torch.cuda.device_count()) > 1:
        lines.append(f"One of {gpus} GPUs is used: `torchrun --nproc-per-node {gpus}` in place of `python` uses all.")
    if not tensorboard_is_here():
        lines.append('TensorBoard is not installed, so there is no log for it (pip install "captioner[train]").')
    if validation is None:
        lines.append("With nothing to validate on, the last step is kept: name pairs with --validation.")
    prompts = set() if validation is None else validation.fingerprints()
    if prompts and (seen := len(prompts & job.train_rows.fingerprints())):
        lines.append(
            f"{seen:,} of the {counted(len(prompts), 'prompt')} to validate on are trained on, too: "
            "the validation does not tell how the model does on new ones."
        )
    if "RANK" not in os.environ and "ACCELERATE_USE_CPU" in os.environ:
        lines.append("`accelerate launch --cpu` runs a single process: `torchrun --nproc-per-node N` runs several.")
    tell("\n".join(lines))


def learnt_from(job: Job) -> dict[str, Any]:
    """What the evaluation compares with, so that nobody publishes a score on training pictures by accident; and what
    tells that a resumed run has the same pairs. It goes to the Hub with the model: no path of this machine."""
    rows, validation = job.train_rows, job.validation_rows
    return {
        "sources": [name_of(parse(source)) for source in job.recipe.data],
        "pictures_a_step": job.recipe.batch_size * job.recipe.accumulate * int(os.environ.get("WORLD_SIZE", 1)),
        "pairs": None if isinstance(rows, StreamedPairs) else len(rows),
        "training_digest": None if isinstance(rows, StreamedPairs) else rows.digest(),
        "validation_pairs": 0 if validation is None else len(validation),
        "validation_digest": None if validation is None else validation.digest(),
        "fingerprints": sorted(rows.fingerprints()),
    }


def is_finished(checkpoint: Path, trainer: LoopTrainer) -> bool:
    """True when the run had made all its steps, or had stopped early, and no more are asked for now."""
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    *_, steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    stopped = state.stateful_callbacks.get("TrainerControl", {}).get("args", {}).get("should_training_stop", False)
    return state.global_step >= steps or (stopped and state.max_steps >= steps)


def leave_model(job: Job, trainer: LoopTrainer, out: Path) -> None:
    """The finished model, its card and its curves, each file whole."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    refuse_no_numbers(model, out)
    finished = out / "finished"
    shutil.rmtree(finished, ignore_errors=True)  # a kill left it
    try:
        with atomic.replacing_folder(finished) as new:
            model.save_pretrained(new)
            if isinstance(model, PeftModel):
                save_config(model, new)
            job.save_processor(new)
        for file in sorted(finished.iterdir()):
            os.replace(file, out / file.name)
        finished.rmdir()
        if isinstance(job.train_rows, StreamedPairs):
            write_object(out / DATA, learnt_from(job))  # what was met is known only now
        write_curves(trainer.state, out / "curves.png")
        write_card(job, trainer.state, out)
    except CANNOT_WRITE as error:
        raise BadOutput(
            f"The finished model cannot be written to {out} ({error}). Make room and repeat the command with --resume."
        ) from error
    best = best_evaluation(trainer.state)
    which = f"best: step {best['step']:,}" if best else f"the last step, {trainer.state.global_step:,}"
    tell(f"Done ({which}). Use it: captioner {job.verb} --model {typed(out)} picture.png")


def save_config(model: PeftModel, out: Path) -> None:
    """The settings that the adapter was trained with, such as OFA's question; how its base was packed is none."""
    base = without_adapter(model)
    if isinstance(base, PreTrainedModel):
        config = copy(base.config)
        vars(config).pop("quantization_config", None)
        config.save_pretrained(out)


def can_checkpoint(model: nn.Module) -> bool:
    """True when the model has layers whose activations can be computed again instead of kept."""
    base = without_adapter(model)
    supports = isinstance(base, PreTrainedModel) and base.supports_gradient_checkpointing
    return supports and any(isinstance(module, GradientCheckpointingLayer) for module in base.modules())


@contextmanager
def quiet() -> Iterator[None]:
    """A bar for each file saved would hide what matters; so would what libraries say of what is meant to be so."""
    with without_bars(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Could not find a config file in")  # peft, offline and of the base beside it
        warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU")  # `announce` says it
        yield


@contextmanager
def with_advice(out: Path) -> Iterator[None]:
    """The messages of a full disk, wherever it is met, of a missing compiler and of Ctrl-C tell how to go on, and those
    of worker processes are their own."""
    try:
        yield
    except CaptionerError as error:
        if "in DataLoader worker process" not in str(error):
            raise
        said = str(error).rpartition(f"{type(error).__name__}: ")[2].strip()  # below the worker's traceback
        raise type(error)(said) from error
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise BadOutput(f"{out} cannot be written ({error.strerror}). Make room and go on with --resume.") from error
    except RuntimeError as error:
        if "No working C++ compiler" not in str(error):
            raise
        raise BadInput("--compile needs a C++ compiler, and none was found: install g++ or leave it out.") from error
    except KeyboardInterrupt as error:
        newest = newest_whole(out)
        where = f"from {newest.name}" if newest else "from the beginning: there is no checkpoint yet"
        raise KeyboardInterrupt(f"Stopped. The same command with --resume goes on {where}.") from error
