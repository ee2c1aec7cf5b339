"""A recipe in the words of transformers' Trainer."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from training.job import Job
from training.recipe import OPTIMIZERS, Recipe

EVERY = 500
"""Steps between two checkpoints, where no epoch and no option says it."""

SHARED = Path("/dev/shm")
"""Through here Linux hands on what worker processes have loaded."""
BATCHES_OF_WORKER = 3
"""Two that wait and one that is used."""
PICTURE = 3 * 480 * 480 * 4
"""Bytes of a picture's pixels, of the largest that a model here reads."""

RECOMPUTES = f"{'activation' if hasattr(TrainingArguments, 'activation_checkpointing') else 'gradient'}_checkpointing"
"""The Trainer's word for it, since transformers 5.23 and before."""


class OneDevice(TrainingArguments):
    """A process learns on one device, as it announces; several are for torchrun. The Trainer would spread each batch
    over all GPUs that it sees (DataParallel), every one with a whole batch of its own: N times what was asked for."""

    @property
    def n_gpu(self) -> int:
        return min(super().n_gpu, 1)


def arguments(job: Job) -> TrainingArguments:
    """The job's recipe in the Trainer's words."""
    recipe, evaluates = job.recipe, job.validation_rows is not None
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
