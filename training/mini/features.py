"""Stages `features` and `texts`: everything frozen is computed once and kept as float16."""

from __future__ import annotations

import json
from collections import defaultdict
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
from captioner.text.embedding import TextEmbedder, text_embedder
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
    """Stage `texts`: pair texts and prompts, cleaned, with their MiniLM embeddings, held-out prompts left out.

    most: at most so many prompts of the one huge list; the small lists are kept whole. What is left of long pair
    prompts counts as the source "parts", the further captions of photographs as "captions".
    """
    embed = text_embedder()
    rows = [row for file in sources.pair_files(data) for row in sources.pair_rows(file)]
    held_out = [
        row["text"] for file in sorted((data / "heldout-dev").glob("*.parquet")) for row in sources.pair_rows(file)
    ]
    held_out_cleaned, held_out_whole = embed(sorted(set(map(sources.clean, held_out)))), embed(sorted(set(held_out)))
    raw_texts: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        raw_texts[sources.clean(row["text"])].update(row["texts"] if "texts" in row else [row["text"]])
    of_pairs = sorted(raw_texts)
    whole = whole_embeddings([sorted(raw_texts[text]) for text in of_pairs], embed)
    clear = _save(
        work / "pair-texts", ["pairs"] * len(of_pairs), of_pairs, embed(of_pairs).astype(np.float16), held_out_cleaned
    )
    whole[~sources.clear_of(held_out_whole, whole)] = 0
    save_array(work / "pair-whole-texts.npy", whole[clear].astype(np.float16))

    prompts = sources.thinned(list(sources.prompts(data)), most, seed)
    known = {*of_pairs, *(text for _, text in prompts)}
    for name, found in {
        "captions": {sources.clean(text) for row in rows for text in row.get("texts", [])},
        "parts": {part for row in rows for part in sources.parts(row["text"])},
    }.items():
        prompts += [(name, text) for text in sorted(found - known)]
        known |= found
    origins, lines = [source for source, _ in prompts], [text for _, text in prompts]
    quick = quick_embedder()
    embeddings = np.empty((len(lines), 384), dtype=np.float16)
    by_length = sorted(range(len(lines)), key=lambda row: len(lines[row]))
    for start in range(0, len(lines), 4096):
        rows_of_batch = by_length[start : start + 4096]
        embeddings[rows_of_batch] = quick([lines[row] for row in rows_of_batch])
        print(f"{start + len(rows_of_batch)} of {len(lines)} prompts", flush=True)
    _save(work / "prompts", origins, lines, embeddings, held_out_cleaned)


def quick_embedder() -> TextEmbedder:
    """MiniLM as it is good enough to learn from: in bf16, where the processor has it."""
    return text_embedder(precision="bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32")


def whole_embeddings(raw_texts: list[list[str]], embed: TextEmbedder) -> np.ndarray:
    """For each cleaned text the mean embedding of all that it was cut from, as they were typed. [n, 384]"""
    vectors = embed([text for texts in raw_texts for text in texts])
    ends = np.cumsum([len(texts) for texts in raw_texts])
    means = np.stack([part.mean(0) for part in np.split(vectors, ends[:-1])])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def _save(path: Path, origins: list[str], lines: list[str], embeddings: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Write the texts that are clear of the held-out prompts, and their embeddings; returns the rows of those."""
    clear = np.flatnonzero(sources.clear_of(held_out, embeddings))
    print(f"{path.name}: {len(lines)} texts, {len(lines) - len(clear)} near a held-out prompt left out", flush=True)
    save_array(path.with_suffix(".npy"), embeddings[clear])
    texts = {"source": [origins[row] for row in clear], "text": [lines[row] for row in clear]}
    atomic.write_text(path.with_suffix(".json"), json.dumps(texts))
    return clear
