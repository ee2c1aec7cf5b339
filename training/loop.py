"""The one training loop, on transformers' Trainer: what every trainer in this folder calls when its model is ready.

It promises: the loss of a step does not depend on how the step's pictures are spread over batches and processes; a run
killed at any moment goes on bit for bit from the newest whole checkpoint; a full disk or a loss that is no number
stops the run and loses nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.table import Table
from torch import Tensor, nn
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from captioner.errors import BadInput, BadOutput, CaptionerError
from training.batches import IGNORED, Collate, Pairs
from training.progress import Watch, console
from training.recipe import OPTIMIZERS, Recipe
from training.streamed import StreamedPairs

WHOLE = "whole.json"  # written last into a checkpoint: without it, the checkpoint was cut off

EVERY = 500
"""Steps between two checkpoints, where no epoch and no option says it."""

Sample = tuple[str, str, float]
"""truth, what the model says, their cosine"""


@dataclass
class Job:
    """Everything a run needs, made by a trainer script."""

    recipe: Recipe
    model: PreTrainedModel | nn.Module
    train_rows: Pairs | StreamedPairs
    validation_rows: Pairs | None
    targets: Callable[[Sequence[str]], dict[str, Tensor]]
    """Texts → the batch's text side: token ids and labels, or target vectors."""
    save_processor: Callable[[Path], None]
    speak: Callable[[nn.Module], list[Sample]] | None = None
    """Caption the validation sample, for the cosine and to read along."""
    verb: str = "generate"
    """What the finished model is used with: captioner generate, or captioner embed."""
    parameter_groups: list[dict[str, Any]] | None = None
    """Optimiser groups with rates of their own (layer-wise decay)."""


class DivergedError(CaptionerError):
    """The loss is no number any more."""


class NewEpoch(TrainerCallback):
    """Tells the training rows which epoch it is, in a resumed one too."""

    def __init__(self, rows: Pairs | StreamedPairs) -> None:
        self.rows = rows

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        self.rows.begin_epoch(int(state.epoch))


class LoopTrainer(Trainer):
    """transformers' Trainer with exact accumulation, whole checkpoints and captions at every evaluation."""

    def __init__(self, job: Job, arguments: TrainingArguments) -> None:
        self.job = job
        super().__init__(
            model=job.model,
            args=arguments,
            train_dataset=job.train_rows,
            eval_dataset=job.validation_rows,
            data_collator=Collate(job.targets),
        )
        self.remove_callback(PrinterCallback)
        self.add_callback(NewEpoch(job.train_rows))
        self.add_callback(Watch(job.recipe.batch_size * job.recipe.accumulate * self.accelerator.num_processes))
        # Makes the Trainer count the labels of a whole step; `compute_loss` then weighs each batch by its share.
        # Without it, accumulated batches count equally whatever their length (and BLIP's loss is scaled twice).
        self.model_accepts_loss_kwargs = True
        if job.recipe.early_stopping and job.validation_rows is not None:
            self.add_callback(EarlyStoppingCallback(job.recipe.early_stopping))

    def get_batch_samples(self, *args, **kwargs):
        batches, labels = super().get_batch_samples(*args, **kwargs)
        self.rows_of_step = [int(row) for batch in batches for row in batch["rows"]]
        return batches, labels

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's mean loss, weighed by this batch's share of the step's labels (over all processes)."""
        rows = inputs.pop("rows")
        outputs = model(**inputs)
        labels = inputs["labels"].ne(IGNORED).sum()
        loss = outputs.loss if labels else 0 * outputs.logits.sum()  # the mean over no label at all is no number
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes * labels / max(num_items_in_batch, 1)
        if not torch.isfinite(loss):
            raise self._diverged("loss", loss, rows.tolist(), model.training)
        return (loss, outputs) if return_outputs else loss

    def _clip_grad_norm(self, model):
        """Gradients that are no numbers would spoil the weights, and with them the next checkpoint."""
        norm = super()._clip_grad_norm(model)
        if not (torch.isfinite(norm) or self.args.fp16):  # in fp16 the scaler leaves such a step out
            raise self._diverged("gradient", norm, self.rows_of_step)
        return norm

    def _diverged(self, what: str, value: Tensor, rows: Sequence[int], training: bool = True) -> DivergedError:
        step, kept = self.state.global_step, newest_whole(Path(self.args.output_dir))
        pairs, when = (
            (self.job.train_rows, f"at step {step + 1}")
            if training
            else (self.job.validation_rows, f"of the validation after step {step}")
        )
        return DivergedError(
            f"The {what} is {value.item()} {when}, in the batch of {', '.join(pairs.name(row) for row in rows)}. "
            f"{f'{kept.name} is whole and untouched' if kept else 'There is no checkpoint yet'}. "
            "Look at these pairs, or try a lower --lr, more --warmup or --precision fp32."
        )

    def create_optimizer(self, model=None):
        if self.job.parameter_groups is not None and self.optimizer is None:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = kind(self.job.parameter_groups, weight_decay=self.args.weight_decay, **settings)
        return super().create_optimizer() if model is None else super().create_optimizer(model)

    def evaluation_loop(self, *args, **kwargs):
        """Validation loss, then captions of the sample: their mean cosine is a metric, a few are shown."""
        output = super().evaluation_loop(*args, **kwargs)
        if self.job.speak is None:
            return output
        cosine = [0.0]
        if self.is_world_process_zero():
            samples = self.job.speak(self.accelerator.unwrap_model(self.model))
            cosine = [sum(cosine for *_, cosine in samples) / len(samples)]
            show(samples, self.state.global_step)
        if torch.distributed.is_initialized():
            torch.distributed.broadcast_object_list(cosine, src=0)  # all must agree which checkpoint is best
        output.metrics["eval_cosine"] = cosine[0]
        return output

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                write_atomically(folder / WHOLE, json.dumps({"step": self.state.global_step}))
        except (OSError, RuntimeError) as error:  # safetensors reports a full disk as RuntimeError
            shutil.rmtree(folder, ignore_errors=True)
            kept = newest_whole(Path(self.args.output_dir))
            raise BadOutput(
                f"Checkpoint {folder.name} cannot be written ({error}). "
                f"{f'{kept.name} is whole' if kept else 'There is no earlier one'}; "
                "make room and go on with --resume."
            ) from error
        if self.args.should_save:
            drop_old_checkpoints(Path(self.args.output_dir), self.job.recipe.keep, self.state.best_model_checkpoint)


def train(job: Job) -> None:
    """Train, choose the best checkpoint, and leave a folder that `captioner generate --model` takes."""
    from training.finish import write_card, write_curves
    from training.hub import upload

    recipe, out = job.recipe, Path(job.recipe.out)
    if recipe.gradient_checkpointing and not can_checkpoint(job.model):
        raise BadInput("--gradient-checkpointing is for transformer layers, and this model learns none: leave it out.")
    # A bar for each file saved would hide what matters, and so would a warning at each tied weight that is not saved.
    disable_progress_bar()
    set_verbosity_error()
    out.mkdir(parents=True, exist_ok=True)
    trainer = LoopTrainer(job, arguments(recipe, job))
    start_from = newest_whole(out, warn=True) if recipe.resume else None
    if trainer.is_world_process_zero():
        write_atomically(out / "recipe.json", json.dumps(asdict(recipe), indent=2))
        announce(job, trainer, start_from)

    trainer.train(resume_from_checkpoint=None if start_from is None else str(start_from))

    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        model.save_pretrained(out)
        if isinstance(model, PeftModel):
            save_config(model, out)
        job.save_processor(out)
        write_curves(trainer.state.log_history, out / "curves.png")
        write_card(job, trainer.state, out)
        print(f"Done. Use it: captioner {job.verb} --model {out} picture.png")
        if recipe.push_to_hub:
            upload(out, recipe.push_to_hub)


def can_checkpoint(model: PreTrainedModel) -> bool:
    """True when the model has layers whose activations can be computed again instead of kept."""
    layers = any(isinstance(module, GradientCheckpointingLayer) for module in model.modules())
    return model.supports_gradient_checkpointing and layers


def save_config(model: PeftModel, out: Path) -> None:
    """The settings that the adapter was trained with, such as OFA's question; how its base was packed is none."""
    config = copy(model.get_base_model().config)
    vars(config).pop("quantization_config", None)
    config.save_pretrained(out)


def arguments(recipe: Recipe, job: Job) -> TrainingArguments:
    """Our recipe in the Trainer's words."""
    evaluates = job.validation_rows is not None
    every = recipe.eval_every or (min(EVERY, recipe.max_steps) if recipe.stream else 0)
    by_steps = "steps" if every else "epoch"
    on_cpu = recipe.device == "cpu" or not torch.cuda.is_available()
    cosine = recipe.select_by == "cosine"
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(Path(recipe.out) / "logs"))
    return TrainingArguments(
        output_dir=recipe.out,
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulate,
        learning_rate=recipe.lr,
        lr_scheduler_type="constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule,
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        optim=OPTIMIZERS[recipe.optimizer],
        bf16=recipe.precision == "bf16",
        fp16=recipe.precision == "fp16",
        eval_strategy=by_steps if evaluates else "no",
        eval_steps=every or None,
        save_strategy=by_steps,
        save_steps=recipe.save_every or every or EVERY,
        load_best_model_at_end=evaluates,
        metric_for_best_model=("eval_cosine" if cosine else "eval_loss") if evaluates else None,
        greater_is_better=cosine if evaluates else None,
        logging_steps=recipe.log_every,
        logging_first_step=True,
        report_to=["tensorboard"],
        seed=recipe.seed,
        data_seed=recipe.seed,
        dataloader_num_workers=recipe.workers,
        accelerator_config={"dispatch_batches": False},  # each process makes its own batches, of a stream too
        activation_checkpointing=recipe.gradient_checkpointing,
        torch_compile=recipe.compile,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and "RANK" in os.environ else None,
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        label_names=["labels"],
        prediction_loss_only=True,
        disable_tqdm=True,  # progress.py shows what happens
    )


def announce(job: Job, trainer: LoopTrainer, start_from: Path | None) -> None:
    """What is about to happen, in three lines; the count of processes tells whether a launcher really launched."""
    recipe, processes = job.recipe, trainer.accelerator.num_processes
    learning = sum(p.numel() for p in job.model.parameters() if p.requires_grad)
    every = sum(p.numel() for p in job.model.parameters())
    validating = 0 if job.validation_rows is None else len(job.validation_rows)
    print(f"{job.train_rows} to train on, {validating:,} to validate on")
    print(f"{learning:,} of {every:,} parameters learn ({learning / every:.1%}) on {trainer.args.device}")
    step = f"{recipe.batch_size} pictures × {recipe.accumulate} batches × {processes} process(es) a step"
    print(step if start_from is None else f"{step}; going on from {start_from.name}")
    if "RANK" not in os.environ and "ACCELERATE_USE_CPU" in os.environ:
        print("`accelerate launch --cpu` runs a single process: `torchrun --nproc-per-node N` runs several.")


def show(samples: Sequence[Sample], step: int, rows: int = 4) -> None:
    """A few captions beside the truth."""
    table = Table("truth", "says", "cosine", title=f"captions after {step} steps", title_justify="left", expand=True)
    for truth, says, cosine in samples[:rows]:
        table.add_row(truth, says, f"{cosine:.2f}")
    console.print(table)


def newest_whole(out: Path, warn: bool = False) -> Path | None:
    """The newest checkpoint that was written to its end."""
    by_step = sorted(out.glob("checkpoint-*"), key=lambda folder: int(folder.name.rpartition("-")[2]), reverse=True)
    for folder in by_step:
        if (folder / WHOLE).exists():
            return folder
        if warn:
            print(f"{folder.name} was cut off while it was written: passed over", file=sys.stderr)
    return None


def drop_old_checkpoints(out: Path, keep: int, best: str | None) -> None:
    """Keep the newest `keep` whole checkpoints and the best one."""
    whole = [folder for folder in out.glob("checkpoint-*") if (folder / WHOLE).exists()]
    newest = sorted(whole, key=lambda folder: int(folder.name.rpartition("-")[2]))[-keep:]
    for folder in whole:
        if folder not in newest and (best is None or folder.name != Path(best).name):
            (folder / WHOLE).unlink()  # first: a kill in between leaves a folder that is known to be broken
            shutil.rmtree(folder)


def write_atomically(path: Path, text: str) -> None:
    """All of it or nothing."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
