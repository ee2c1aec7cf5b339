"""Stages `features` and `texts`: everything frozen is computed once and kept as float16."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.utils import convert_conv2d_weight_memory_format

from captioner.files import atomic
from captioner.models.parts.backbones.backbones import build
from captioner.models.parts.backbones.towers import Backbone
from captioner.text.embedding import text_embedder
from training.mini import sources
from training.mini.saving import save_array

BATCH = 16


@torch.inference_mode()
def statistics(pictures: Iterable[Image.Image], backbone: Backbone) -> np.ndarray:
    """The backbone's pooled vector of every picture, float16 `[n, 2992]`."""
    pictures, rows = iter(pictures), []
    while batch := list(islice(pictures, BATCH)):
        pixels = backbone.preprocess(batch).to(memory_format=torch.channels_last)
        rows.append(backbone.pooled(pixels).half().numpy())
    return np.concatenate(rows)


def imagenet_backbone() -> Backbone:
    """EfficientNet-Lite2 with its ImageNet weights; its channels-last layout is a quarter faster on CPUs."""
    backbone = build("efficientnet-lite2", pool="statistics").eval()
    return convert_conv2d_weight_memory_format(backbone, torch.channels_last)


def features(data: Path, work: Path, backwards: bool = False) -> None:
    """Stage `features`: statistics of the pictures, one array per file of pairs; arrays that exist stay.

    A second run backwards shares the work with the first.
    """
    folder, backbone = work / "features", imagenet_backbone()
    folder.mkdir(exist_ok=True)
    for file in sorted(sources.pair_files(data), reverse=backwards):
        if not (finished := folder / f"{file.stem}.npy").exists():
            array = statistics(sources.pictures(file), backbone)
            save_array(finished, array)
            print(f"{file.stem}: {len(array)} pictures", flush=True)


def texts(data: Path, work: Path, most: int, seed: int) -> None:
    """Stage `texts`: cleaned prompts and pair texts with their MiniLM embeddings, held-out prompts left out.

    most: at most so many prompts of the one huge list; the small lists are kept whole. The captions of the pictures
    that are not learnt from count as prompts of the source "captions".
    """
    embed, files = text_embedder(), sources.pair_files(data)
    held_out = embed(_texts_of(sorted((data / "heldout-dev").glob("*.parquet"))))
    of_pairs = _texts_of(files)
    _save(work / "pair-texts", ["pairs"] * len(of_pairs), of_pairs, embed(of_pairs).astype(np.float16), held_out)
    prompts = sources.thinned(list(sources.prompts(data)), most, seed)
    unseen = set(_texts_of(files, every=True)).difference(of_pairs, (text for _, text in prompts))
    prompts += [("captions", text) for text in sorted(unseen)]
    origins, lines = [source for source, _ in prompts], [text for _, text in prompts]
    embeddings = np.empty((len(lines), 384), dtype=np.float16)
    by_length = sorted(range(len(lines)), key=lambda row: len(lines[row]))
    for start in range(0, len(lines), 4096):
        rows = by_length[start : start + 4096]
        embeddings[rows] = embed([lines[row] for row in rows])
        print(f"{start + len(rows)} of {len(lines)} prompts", flush=True)
    _save(work / "prompts", origins, lines, embeddings, held_out)


def _texts_of(files: list[Path], every: bool = False) -> list[str]:
    return sorted({sources.clean(row["text"]) for file in files for row in sources.pair_rows(file, every=every)})


def _save(path: Path, origins: list[str], lines: list[str], embeddings: np.ndarray, held_out: np.ndarray) -> None:
    """Write the texts that are clear of the held-out prompts, and their embeddings."""
    clear = np.flatnonzero(sources.clear_of(held_out, embeddings))
    print(f"{path.name}: {len(lines)} texts, {len(lines) - len(clear)} near a held-out prompt left out", flush=True)
    save_array(path.with_suffix(".npy"), embeddings[clear])
    texts = {"source": [origins[row] for row in clear], "text": [lines[row] for row in clear]}
    atomic.write_text(path.with_suffix(".json"), json.dumps(texts))
