"""A recipe in the Trainer's words."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from transformers import TrainingArguments

from training import arguments as of_recipe
from training.arguments import arguments, workers
from training.blip import BlipRecipe
from training.job import Job
from training.recipe import Recipe


def test_a_process_learns_on_one_gpu_however_many_it_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the Trainer makes the batch as many times larger, and nobody is told."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    recipe = BlipRecipe(out=str(tmp_path / "run"), batch_size=8)
    job = Job(recipe, torch.nn.Identity(), [], None, targets=dict, save_processor=print)
    chosen = arguments(job)
    assert chosen.device.type == "cuda"
    assert (chosen.n_gpu, chosen.train_batch_size, chosen.eval_batch_size) == (1, 8, 8)


def test_a_recipe_in_the_trainers_words(tmp_path: Path) -> None:
    steps = {"epochs": 7.0, "accumulate": 3, "lr": 0.02, "warmup": 5, "weight_decay": 0.3, "seed": 4, "log_every": 6}
    recipe = BlipRecipe(out=str(tmp_path / "run"), device="cpu", **steps)

    def chosen(**changes: object) -> TrainingArguments:
        return arguments(
            Job(replace(recipe, **changes), torch.nn.Identity(), [], [], targets=dict, save_processor=print)
        )

    plain = chosen(schedule="cosine")
    assert (plain.num_train_epochs, plain.gradient_accumulation_steps, plain.learning_rate) == (7, 3, 0.02)
    assert (plain.warmup_steps, plain.weight_decay, plain.seed, plain.data_seed) == (5, 0.3, 4, 4)
    assert (plain.lr_scheduler_type, chosen(schedule="constant").lr_scheduler_type) == (
        "cosine",
        "constant_with_warmup",
    )
    assert (plain.report_to, plain.logging_steps, plain.use_cpu) == ([], 6, True)
    assert (plain.eval_strategy, plain.save_strategy, plain.metric_for_best_model) == ("epoch", "epoch", "eval_loss")
    streamed = chosen(stream=True, max_steps=9, select_by="cosine")
    assert (streamed.eval_strategy, streamed.eval_steps, streamed.save_steps) == ("steps", 9, 9)
    assert (streamed.metric_for_best_model, streamed.greater_is_better) == ("eval_cosine", True)


def test_workers_beside_a_gpu_fit_the_memory_they_hand_on_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_recipe.os, "cpu_count", lambda: 6)
    monkeypatch.setattr(of_recipe.shutil, "disk_usage", lambda path: Mock(free=2**34))
    assert workers(Recipe()) == 6
    assert workers(Recipe(workers=3)) == 3
    assert workers(Recipe(stream=True)) == 0
    assert workers(Recipe(cache_features="kept")) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert workers(Recipe()) == 3
    monkeypatch.setattr(of_recipe, "SHARED", Path(__file__).parent)
    monkeypatch.setattr(of_recipe.shutil, "disk_usage", lambda path: Mock(free=32 * 2**20))
    assert workers(Recipe()) == 0
