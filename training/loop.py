"""The one training loop, on transformers' Trainer: what every trainer in this folder calls when its model is ready.

It promises: the loss of a step does not depend on how the step's pictures are spread over batches and processes; a run
killed at any moment goes on bit for bit from the newest whole checkpoint; a full disk or a loss that is no number
stops the run and loses nothing.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from captioner.errors import BadInput, BadOutput, CaptionerError, counted
from captioner.files import atomic
from captioner.files.json import write_object
from captioner.pairs.provenance import name_of
from captioner.pairs.sources import parse
from captioner.quiet import without_bars
from training.adapters import without_adapter
from training.batches import Collate, Pairs
from training.finish import best_evaluation, write_card, write_curves
from training.finite import Expectations, Expected
from training.job import Job
from training.progress import Watch, show
from training.recipe import OPTIMIZERS, Recipe
from training.resuming import DATA, RECIPE, check_data, folder_of_run
from training.streamed import StreamedPairs

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
WHOLE = "whole.json"  # written last into a checkpoint: without it, the checkpoint was cut off

EVERY = 500
"""Steps between two checkpoints, where no epoch and no option says it."""

SHARED = Path("/dev/shm")
"""Through here Linux hands on what worker processes have loaded."""
BATCHES_OF_WORKER = 3
"""Two that wait and one that is used."""
PICTURE = 3 * 480 * 480 * 4
"""Bytes of a picture's pixels, of the largest that a model here reads."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
CANNOT_WRITE = (OSError, RuntimeError, SafetensorError)
"""What torch and safetensors raise when a disk is full."""

PRIVATE = ("_clip_grad_norm", "_save_checkpoint", "_load_from_checkpoint")
"""Methods of transformers' Trainer that this loop overrides or calls although they are not public."""
if missing := [name for name in PRIVATE if not hasattr(Trainer, name)]:
    raise ImportError(f"This version of transformers has no Trainer.{missing[0]}: its training loop is another one.")

RECOMPUTES = f"{'activation' if hasattr(TrainingArguments, 'activation_checkpointing') else 'gradient'}_checkpointing"
"""The Trainer's word for it, since transformers 5.23 and before."""


class DivergedError(CaptionerError):
    """The loss is no number any more."""


class OneDevice(TrainingArguments):
    """A process learns on one device, as it announces; several are for torchrun. The Trainer would spread each batch
    over all GPUs that it sees (DataParallel), every one with a whole batch of its own: N times what was asked for."""

    @property
    def n_gpu(self) -> int:
        return min(super().n_gpu, 1)


class NewEpoch(TrainerCallback):
    """Tells the training rows which epoch it is, in a resumed one too."""

    def __init__(self, rows: Pairs | StreamedPairs) -> None:
        self.rows = rows

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        self.rows.begin_epoch(int(state.epoch))


class SaveEvery(TrainerCallback):
    """A checkpoint every N steps beside those of the evaluations."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step % self.steps == 0:
            control.should_save = True


class LoopTrainer(Trainer):
    """transformers' Trainer with exact accumulation, whole checkpoints and captions at every evaluation."""

    def __init__(self, job: Job, arguments: TrainingArguments) -> None:
        self.job = job
        self.out = Path(job.recipe.out)
        self.rows_of_step: list[int] = []
        self.expected, self.expected_of_validation = Expectations(), Expectations()
        self.validated: list[tuple[Tensor, int]] = []
        """Of each batch of a validation, the mean loss and the number of labels."""
        super().__init__(
            model=job.model,
            args=arguments,
            train_dataset=job.train_rows,
            eval_dataset=job.validation_rows,
            data_collator=Collate(job.targets),
        )
        # An adapter has thousands of parts, and each of the Trainer's walks through all of them, several at every step,
        # takes milliseconds while a GPU waits: what learns is found once, and the optimizer knows it too.
        self.learning = nn.ParameterList(parameter for parameter in job.model.parameters() if parameter.requires_grad)
        vars(job.model)["zero_grad"] = lambda: self.optimizer and self.optimizer.zero_grad()
        if job.recipe.compile:
            compile_layers(job.model)
        self.remove_callback(PrinterCallback)
        if self.is_world_process_zero() and tensorboard_is_here():
            self.add_callback(tensorboard(self.out / "logs"))
        self.add_callback(NewEpoch(job.train_rows))
        self.add_callback(Watch(job.recipe.batch_size * job.recipe.accumulate * self.accelerator.num_processes))
        # Makes the Trainer count the labels of a whole step; `compute_loss` then weighs each batch by its share.
        # Without it, accumulated batches count equally whatever their length (and BLIP's loss is scaled twice).
        self.model_accepts_loss_kwargs = True
        if job.recipe.early_stopping and job.validation_rows is not None:
            self.add_callback(EarlyStoppingCallback(job.recipe.early_stopping))
        if job.recipe.save_every:
            self.add_callback(SaveEvery(job.recipe.save_every))

    def train(self, *args, **kwargs):
        self.job.model.train()  # parts that were loaded are not yet
        if not self.job.recipe.compile:
            return super().train(*args, **kwargs)
        # Layers of two towers share their code, which is compiled anew for the first, a smaller batch, to validate …
        with torch._dynamo.config.patch(recompile_limit=64):
            return super().train(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """Its workers draw nothing at random (`batches.py`). To seed them nevertheless each would import peft and
        bitsandbytes, which speaks, wherever a process is no fork: on Python 3.14, macOS and Windows."""
        loader = super().get_train_dataloader()
        getattr(loader, "base_dataloader", loader).worker_init_fn = None  # accelerate wraps it
        return loader

    def get_batch_samples(self, *args, **kwargs):
        batches, labels = super().get_batch_samples(*args, **kwargs)
        self.rows_of_step = [row for batch in batches for row in batch["rows"]]
        return batches, labels

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's mean loss, weighed by this batch's share of the step's labels (over all processes)."""
        rows, labels = inputs.pop("rows"), inputs.pop("counted")
        outputs = model(**inputs)
        loss = outputs.loss if labels else 0 * outputs.logits.sum()  # the mean over no label at all is no number
        if not model.training:
            self.validated.append((loss.detach(), labels))
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes * labels / num_items_in_batch.clamp(min=1)
        self._expect("loss", loss, rows, model.training)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As the Trainer's, which tells every part of the model at every step that it is to learn."""
        if not model.training:
            model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
        self.accelerator.backward(loss)
        return loss.detach()

    def _clip_grad_norm(self, model):
        """Gradients that are no numbers spoil the weights: they must not be saved."""
        norm = super()._clip_grad_norm(model if self.is_fsdp_enabled else self.learning)
        if not self.args.fp16:  # in fp16 the scaler leaves such a step out
            self._expect("gradient", norm, self.rows_of_step)
        self._stop_if(self.expected.of_last_step())
        return norm

    def _expect(self, what: str, value: Tensor, rows: list[int], training: bool = True) -> None:
        expected = self.expected if training else self.expected_of_validation
        expected.add(value, Expected(what, self.state.global_step + training, rows))

    def _stop_if(self, broken: tuple[Expected, float] | None, training: bool = True) -> None:
        """Stop where something is no number."""
        if broken is None:
            return
        about, value = broken
        when = f"at step {about.step}" if training else f"of the validation after step {about.step}"
        pairs = self.job.train_rows if training else self.job.validation_rows
        names = [] if pairs is None else [pairs.name(row) for row in about.rows]
        raise DivergedError(
            f"The {about.what} is {value} {when}, in the batch of {', '.join(names)}. {untouched(self.out)}. "
            "Look at these pairs, or try a lower --lr, more --warmup or --precision fp32."
        )

    def log(self, *args, **kwargs) -> None:
        self._stop_if(self.expected.of_all())
        super().log(*args, **kwargs)

    def create_optimizer(self, model=None):
        if self.job.parameter_groups is not None and self.optimizer is None:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = kind(self.job.parameter_groups, weight_decay=self.args.weight_decay, **settings)
        return super().create_optimizer() if model is None else super().create_optimizer(model)

    def evaluation_loop(self, *args, **kwargs):
        """Validation loss, then captions of the sample: their mean cosine is a metric, a few are shown."""
        self._stop_if(self.expected.of_all())
        self.validated.clear()
        output = super().evaluation_loop(*args, **kwargs)
        self._stop_if(self.expected_of_validation.of_all(), training=False)
        metrics = {**(output.metrics or {}), "eval_loss": self._validation_loss()}
        if self.job.caption_sample is None:
            return output._replace(metrics=metrics)
        cosine = [0.0]
        if self.is_world_process_zero():
            samples = self.job.caption_sample()
            cosine = [sum(cosine for *_, cosine in samples) / len(samples)]
            show(samples, self.state.global_step)
        if torch.distributed.is_initialized():
            torch.distributed.broadcast_object_list(cosine, src=0)  # all must agree which checkpoint is best
        return output._replace(metrics={**metrics, "eval_cosine": cosine[0]})

    def _validation_loss(self) -> float:
        """The mean over all labels, of all processes. The Trainer's counts each batch's mean once a picture, so that it
        depends on which pictures are in one batch."""
        sums = torch.tensor([[loss.item() * labels, labels] for loss, labels in self.validated]).sum(0)
        total, labels = self.accelerator.reduce(sums.to(self.args.device)).tolist()
        return total / max(1, labels)

    def _save_checkpoint(self, model, trial) -> None:
        folder = self.out / f"checkpoint-{self.state.global_step}"
        self._stop_if(self.expected.of_all())
        refuse_no_numbers(self.job.model, self.out)
        try:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                atomic.write_text(folder / WHOLE, json.dumps({"step": self.state.global_step}))
        except CANNOT_WRITE as error:
            shutil.rmtree(folder, ignore_errors=True)
            earlier = newest_whole(self.out)
            raise BadOutput(
                f"Checkpoint {folder.name} cannot be written ({error}). "
                f"{f'{earlier.name} is whole' if earlier else 'There is no earlier one'}; "
                "make room and go on with --resume."
            ) from error
        if self.args.should_save:
            drop_old_checkpoints(self.out, self.job.recipe.keep, self.state.best_model_checkpoint)

    def take_finished(self, checkpoint: Path) -> None:
        """Of a run that had made all its steps: the state, and the weights that it would have ended with."""
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        best = checkpoint.with_name(f"checkpoint-{self.state.best_global_step}")
        self._load_from_checkpoint(str(best if self.args.load_best_model_at_end and best.is_dir() else checkpoint))


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
    trainer = LoopTrainer(job, arguments(job.recipe, job))
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
    data = learnt_from(job)
    check_data(job.recipe, data)
    write_object(out / RECIPE, asdict(job.recipe))
    write_object(out / DATA, data)
    if job.save_base is not None and not (out / "base").exists():
        with atomic.replacing_folder(out / "base") as new:
            job.save_base(new)
    announce(job, trainer, start_from)


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
    print(f"Done ({which}). Use it: captioner {job.verb} --model {out} picture.png", flush=True)


@contextmanager
def quiet() -> Iterator[None]:
    """A bar for each file saved would hide what matters; so would what libraries say of what is meant to be so."""
    with without_bars(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Could not find a config file in")  # peft, offline and of the base beside it
        warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU")  # `announce` says it
        yield


@contextmanager
def with_advice(out: Path) -> Iterator[None]:
    """The messages of a full disk, wherever it is met, of a missing compiler and of Ctrl-C tell how to go on."""
    try:
        yield
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


def refuse_no_numbers(model: nn.Module, out: Path) -> None:
    """Weights that are no numbers must not take the place of those that are."""
    spoilt = [name for name, p in model.named_parameters() if p.is_floating_point() and not p.isfinite().all()]
    if spoilt:
        raise DivergedError(
            f"There are values that are no numbers in {counted(len(spoilt), 'tensor')} of weights ({spoilt[0]} …): the "
            f"model is not saved. {untouched(out)}. Try a lower --lr, more --warmup or --precision fp32."
        )


def untouched(out: Path) -> str:
    """What a run that must stop leaves behind."""
    newest = newest_whole(out)
    return f"{newest.name} is whole and untouched" if newest else "There is no checkpoint yet"


def tensorboard_is_here() -> bool:
    """TensorBoard is in an extra: without it a run has its log on standard error and its curves."""
    return importlib.util.find_spec("tensorboard") is not None


def tensorboard(folder: Path) -> TrainerCallback:
    """Writes loss, rate and cosine there."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(folder))


def can_checkpoint(model: nn.Module) -> bool:
    """True when the model has layers whose activations can be computed again instead of kept."""
    base = without_adapter(model)
    supports = isinstance(base, PreTrainedModel) and base.supports_gradient_checkpointing
    return supports and any(isinstance(module, GradientCheckpointingLayer) for module in base.modules())


def compile_layers(model: nn.Module) -> None:
    """Let torch compile the layers, in place. They are alike: one is compiled, and all use it. The whole model would
    take many times as long; that is for those without such layers."""
    layers: list[nn.Module] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for module in layers or [model]:
        module.compile()


def save_config(model: PeftModel, out: Path) -> None:
    """The settings that the adapter was trained with, such as OFA's question; how its base was packed is none."""
    base = without_adapter(model)
    if isinstance(base, PreTrainedModel):
        config = copy(base.config)
        vars(config).pop("quantization_config", None)
        config.save_pretrained(out)


def arguments(recipe: Recipe, job: Job) -> TrainingArguments:
    """Our recipe in the Trainer's words."""
    evaluates = job.validation_rows is not None
    every = recipe.eval_every or (min(EVERY, recipe.max_steps) if recipe.stream else 0)
    by_steps = "steps" if every else "epoch"
    on_cpu = recipe.device == "cpu" or not torch.cuda.is_available()
    cosine = recipe.select_by == "cosine"
    recomputes: dict[str, Any] = {RECOMPUTES: recipe.gradient_checkpointing}
    return OneDevice(
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
        optim="adamw_torch_fused" if recipe.optimizer == "adamw" and not on_cpu else OPTIMIZERS[recipe.optimizer],
        bf16=recipe.precision == "bf16",
        fp16=recipe.precision == "fp16",
        eval_strategy=by_steps if evaluates else "no",
        eval_steps=every or None,
        save_strategy=by_steps,
        save_steps=every or EVERY,  # at every evaluation: any may be the best one
        restore_callback_states_from_checkpoint=True,  # how long early stopping has waited
        load_best_model_at_end=evaluates,
        metric_for_best_model=("eval_cosine" if cosine else "eval_loss") if evaluates else None,
        greater_is_better=cosine if evaluates else None,
        logging_steps=recipe.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it waits for every loss; one that is no number stops the run
        report_to="none",
        log_level="error",
        log_level_replica="error",
        seed=recipe.seed,
        data_seed=recipe.seed,
        dataloader_num_workers=0 if on_cpu and recipe.workers < 0 else workers(recipe),
        # Each process makes its own batches, of a stream too; they go to a GPU while it works on the last.
        accelerator_config={"dispatch_batches": False, "non_blocking": True},
        **recomputes,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and "RANK" in os.environ else None,
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        label_names=["labels"],
        prediction_loss_only=True,
        disable_tqdm=True,  # progress.py shows what happens
    )


def workers(recipe: Recipe) -> int:
    """Processes that load pictures, of which one reads dozens a second and a GPU learns from hundreds."""
    if recipe.workers >= 0:
        return recipe.workers
    if recipe.stream or recipe.cache_features:
        return 0
    cores = os.cpu_count() or 1
    room = shutil.disk_usage(SHARED).free if SHARED.is_dir() else sys.maxsize  # a container's is often 64 MB
    fit = room // (BATCHES_OF_WORKER * recipe.batch_size * PICTURE)
    return min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), fit)


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
        lines.append("TensorBoard is not installed, so there is no log for it (pip install 'captioner[train]').")
    prompts = set() if validation is None else validation.fingerprints()
    if prompts and (seen := len(prompts & job.train_rows.fingerprints())):
        lines.append(
            f"{seen:,} of the {counted(len(prompts), 'prompt')} to validate on are trained on, too: "
            "the validation does not tell how the model does on new ones."
        )
    if "RANK" not in os.environ and "ACCELERATE_USE_CPU" in os.environ:
        lines.append("`accelerate launch --cpu` runs a single process: `torchrun --nproc-per-node N` runs several.")
    print("\n".join(lines), flush=True)


def checkpoints(out: Path) -> list[Path]:
    """By their steps; whole ones and others."""
    by_step = {int(name[1]): folder for folder in out.glob("*") if (name := CHECKPOINT.fullmatch(folder.name))}
    return [by_step[step] for step in sorted(by_step)]


def newest_whole(out: Path, warn: bool = False) -> Path | None:
    """The newest checkpoint that was written to its end."""
    for folder in reversed(checkpoints(out)):
        if (folder / WHOLE).exists():
            return folder
        if warn:
            print(f"{folder.name} was cut off while it was written: passed over", file=sys.stderr)
    return None


def drop_old_checkpoints(out: Path, keep: int, best: str | None) -> None:
    """Keep the newest `keep` whole checkpoints and the best one."""
    whole = [folder for folder in checkpoints(out) if (folder / WHOLE).exists()]
    for folder in whole[:-keep]:
        if best is None or folder.name != Path(best).name:
            (folder / WHOLE).unlink()  # first: a kill in between leaves a folder that is known to be broken
            shutil.rmtree(folder)
