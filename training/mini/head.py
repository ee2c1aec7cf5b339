"""Stage `head`: from a picture's statistics to its prompt's embedding, and how far such guesses are off.

Two guesses that err differently are averaged: ridge regression, and prototypes (one per prompt: the mean of its
pictures) that answer by likeness. Nothing is learnt by gradient, so it takes a minute.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from captioner.models.prefix.layers import JointHead
from training.mini.saving import save_arrays, save_state
from training.mini.sources import PHOTOGRAPHS
from training.mini.split import ALIKE, DESCRIBED, REBUILT, Pairs, load_pairs

RIDGE, RANK, SHARPNESS, SHARE = 10_000.0, 128, 16.0, 0.45
"""SHARE is the prototypes' part of the answer."""
FOLDS = 5
BLUR_RIDGE = 10.0
WEIGHTS = dict.fromkeys(REBUILT, 0.05) | dict.fromkeys(DESCRIBED, 0.2) | dict.fromkeys(ALIKE, 0.3)
"""Of style studies, of photographs and clip art, and of sources with one look each, against 1 of a generated picture
with its literal prompt. 0.05 was chosen by leaving whole sources out, 0.2 by validation prompts."""


class Examples:
    """The training pictures as regression sees them: standardised statistics, the rows of their prompts, weights, and
    the weighted Gram matrix `inputsᵀ · inputs`, which every fit on these pictures needs."""

    def __init__(self, pairs: Pairs, chosen: np.ndarray) -> None:
        self.weights = importance(pairs)[chosen]  # [n]
        self.inputs = torch.from_numpy(pairs.features[chosen]).float()  # [n, 2992]
        self.prompt = torch.from_numpy(pairs.prompt[chosen])  # [n]
        self.embeddings = torch.from_numpy(pairs.embeddings)  # [prompts, 384]
        share = (self.weights / self.weights.sum())[:, None]
        self.centre = (self.inputs * share).sum(0)
        self.scale = 1 / (((self.inputs - self.centre).square() * share).sum(0).sqrt() + 1e-4)
        self.inputs = (self.inputs - self.centre) * self.scale
        self.gram = (self.inputs * self.weights[:, None]).T @ self.inputs


def importance(pairs: Pairs) -> Tensor:
    """The weight of each picture `[pictures]`. A prompt with n pictures weighs √n in all: more than one with a single
    picture, but not n times as much. A source counts by WEIGHTS."""
    of_source = np.array([WEIGHTS.get(source, 1.0) for source in pairs.source])
    return torch.from_numpy(np.sqrt(pairs.weights()) * of_source).float()


def fit(examples: Examples, axes: Tensor | None = None) -> JointHead:
    """Weighted ridge regression from statistics to prompt embeddings, and the prototypes: one per prompt.

    axes: `principal_axes` of an earlier fit, since computing them takes longest.
    """
    targets, weights = examples.embeddings[examples.prompt], examples.weights[:, None]
    mean = (targets * weights).sum(0) / weights.sum()
    ridge = examples.gram + RIDGE * torch.eye(len(examples.gram))
    matrix = torch.linalg.solve(ridge, (examples.inputs * weights).T @ (targets - mean))
    axes = principal_axes(examples) if axes is None else axes
    prompts, of_prompt = examples.prompt.unique(return_inverse=True)
    keys = torch.zeros(len(prompts), RANK).index_add_(0, of_prompt, F.normalize(examples.inputs @ axes, dim=-1))
    prior = torch.zeros(len(prompts)).index_add_(0, of_prompt, examples.weights).log()
    head = JointHead(len(axes), mean.shape[0], RANK, len(prompts))
    weights_of_head = {
        "centre": examples.centre,
        "scale": examples.scale,
        "linear.weight": matrix.T,
        "linear.bias": mean,
        "axes.weight": axes.T,
        "keys": F.normalize(keys, dim=-1),
        "values": examples.embeddings[prompts],
        "prior": prior,
        "sharpness": torch.tensor(SHARPNESS),
        "share": torch.tensor(SHARE),
    }
    head.load_state_dict(weights_of_head)
    return head


def principal_axes(examples: Examples) -> Tensor:
    """The strongest axes of the statistics, a little evened out. [2992, RANK]"""
    variances, axes = torch.linalg.eigh(examples.gram / examples.weights.sum())
    return axes[:, -RANK:] * variances[-RANK:] ** -0.25


@torch.inference_mode()
def guesses_on_unseen(pairs: Pairs, axes: Tensor) -> Tensor:
    """For every training picture the answer of a head that was fitted without pictures of similar prompts: k-fold
    cross-validation by groups of prompts. [pictures, 384]"""
    fold = torch.randint(FOLDS, (len(pairs.texts),), generator=torch.Generator().manual_seed(5)).numpy()[pairs.group]
    guesses = torch.zeros(len(pairs.prompt), pairs.embeddings.shape[1])
    for number in range(FOLDS):
        unseen = (fold == number)[pairs.prompt]
        head = fit(Examples(pairs, np.flatnonzero(~unseen & ~pairs.validation[pairs.prompt])), axes)
        guesses[unseen] = head(torch.from_numpy(pairs.features[unseen]).float())
    return guesses


def measure_blur(pairs: Pairs, guesses: Tensor) -> dict[str, np.ndarray]:
    """How guesses differ from the true embeddings, as a linear model with normal errors: guess = truth · keep +
    offset + error. `noise` is a square root of the errors' covariance, so that `normal · noise` draws such an error."""
    rows = np.flatnonzero(~pairs.validation[pairs.prompt])
    weights = importance(pairs)[rows][:, None]
    truth, guess = torch.from_numpy(pairs.embeddings[pairs.prompt[rows]]), guesses[rows]
    truth_mean, guess_mean = ((x * weights).sum(0) / weights.sum() for x in (truth, guess))
    centred = truth - truth_mean
    gram = (centred * weights).T @ centred
    keep = torch.linalg.solve(gram + BLUR_RIDGE * torch.eye(len(gram)), (centred * weights).T @ (guess - guess_mean))
    errors = guess - guess_mean - centred @ keep
    variances, axes = torch.linalg.eigh((errors * weights).T @ errors / weights.sum())
    noise = variances.clamp(min=0).sqrt()[:, None] * axes.T
    return {"keep": keep.numpy(), "offset": (guess_mean - truth_mean @ keep).numpy(), "noise": noise.numpy()}


@torch.inference_mode()
def report(pairs: Pairs, head: JointHead) -> None:
    """Mean cosine on the validation prompts, by kind."""
    rows = np.flatnonzero(pairs.validation[pairs.prompt])
    cosine = (head(torch.from_numpy(pairs.features[rows]).float()).numpy() * pairs.embeddings[pairs.prompt[rows]]).sum(
        1
    )
    source, weights = np.array(pairs.source)[rows], pairs.weights()[rows]
    kinds = {"style studies": np.isin(source, list(REBUILT)), "described": np.isin(source, list(DESCRIBED))}
    kinds["generated"] = ~kinds["style studies"] & ~kinds["described"]
    for name, which in kinds.items():
        if not which.any():  # other data than mini's
            continue
        print(f"{name}: {np.average(cosine[which], weights=weights[which]):.4f} ({which.sum()} pictures)", flush=True)


def head(data: Path, work: Path) -> None:
    """Stage `head`; the photographs that are kept to measure the finished model on are never learnt from."""
    pairs = load_pairs(data, work)
    examples = Examples(pairs, np.flatnonzero(~pairs.validation[pairs.prompt]))
    axes = principal_axes(examples)
    chosen_by = fit(examples, axes)
    report(pairs, chosen_by)
    save_state(work / "head-without-validation.pt", chosen_by.state_dict())
    guesses = guesses_on_unseen(pairs, axes)
    save_arrays(work / "guesses.npz", guesses=guesses.half().numpy(), prompt=pairs.prompt)
    save_arrays(work / "blur.npz", **measure_blur(pairs, guesses))
    kept_apart = pairs.validation[pairs.prompt] & np.isin(pairs.source, list(PHOTOGRAPHS))
    save_state(work / "head.pt", fit(Examples(pairs, np.flatnonzero(~kept_apart))).state_dict())
