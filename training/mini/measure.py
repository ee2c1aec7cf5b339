"""Stage `measure`: the finished checkpoint on pictures it has never met, beside two baselines, with intervals.

For measuring only: nothing is chosen by these pictures.
"""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import torch
from PIL import Image
from torch.nn import functional as F

from captioner import pipeline
from captioner.errors import BadInput
from captioner.files.json import write_object
from captioner.models.parts.backbones.towers import Backbone
from captioner.models.prefix.layers import PrefixSpeaker
from captioner.pipeline import Captioner
from captioner.statistics import Interval, bootstrap_interval, paired_difference
from captioner.text.embedding import TextEmbedder, text_embedder
from captioner.text.finish import Finish
from training.mini.split import Pairs, load_pairs


def measure(data: Path, work: Path, out: Path) -> None:
    """Stage `measure`."""
    captioner = pipeline.load(str(out), device="cpu")
    if not isinstance(captioner, Captioner) or not isinstance(captioner.speaker, PrefixSpeaker):
        raise BadInput(f"{out} is no model of mini's kind: name the folder that stage `export` has written.")
    pairs, embed = load_pairs(data, work), text_embedder()
    measured: dict[str, Any] = {}
    kept_apart = parquet.read_table(work / "validation-photographs.parquet").to_pylist()
    if kept_apart:
        measured["photographs"] = photographs(captioner, kept_apart, embed)
        print("photographs", measured["photographs"], flush=True)
    for file in sorted((data / "heldout-dev").glob("*.parquet")):
        name, rows = file.stem, parquet.read_table(file, columns=["image", "text"]).to_pylist()
        pictures = [opened(row) for row in rows]
        prompts = [row["text"] for row in rows]
        nearest = nearest_training_text(captioner.speaker, pictures, pairs)
        measured[name] = table(captioner, pictures, prompts, pairs, nearest, embed)
        print(name, json.dumps(measured[name], indent=1), flush=True)
    write_object(work / "measured.json", measured)


def photographs(captioner: Captioner, rows: list[dict[str, Any]], embed: TextEmbedder) -> dict[str, Any]:
    """Mean cosine of the captions and the nearest of each photograph's own, on photographs that were kept apart."""
    captions = captioner.generate([opened(row) for row in rows])
    vectors = embed([caption.text for caption in captions])
    truths = [embed(row["texts"]) for row in rows]
    nearest = np.array([(truth @ vector).max() for truth, vector in zip(truths, vectors, strict=True)])
    return {
        "text to the nearest caption": _rounded(bootstrap_interval(nearest)),
        "photographs": len(rows),
        "distinct captions": round(len({caption.text for caption in captions}) / len(rows), 3),
    }


def opened(row: dict[str, Any]) -> Image.Image:
    """The picture of a row of a parquet file."""
    return Image.open(BytesIO(row["image"]["bytes"])).convert("RGB")


def table(
    captioner: Captioner,
    pictures: list[Image.Image],
    prompts: list[str],
    pairs: Pairs,
    nearest: list[str],
    embed: TextEmbedder,
) -> dict[str, Any]:
    """Mean cosines with 95 % intervals, resampled by prompt, and the paired gains over the baselines."""
    truth = embed(prompts)
    readings = list(captioner.readings(pictures))
    captions = [captioner.prompt(reading, Finish()).text for reading in readings]
    quick = [prompt.text for prompt in captioner.generate(pictures, quality="fast")]
    weights = pairs.weights()[:, None]
    mean = (pairs.embeddings[pairs.prompt] * weights).sum(0)
    constant = pairs.texts[int((pairs.embeddings @ mean).argmax())]
    predicted = [reading.embedding for reading in readings if reading.embedding is not None]
    cosine = {
        "text": (embed(captions) * truth).sum(1),
        "text, fast": (embed(quick) * truth).sum(1),
        "predicted embedding": (np.stack(predicted) * truth).sum(1),
        "best constant prompt": (embed([constant]) * truth).sum(1),
        "text of the nearest training picture": (embed(nearest) * truth).sum(1),
    }
    figures: dict[str, Any] = {name: _rounded(bootstrap_interval(values, prompts)) for name, values in cosine.items()}
    for name in ("best constant prompt", "text of the nearest training picture"):
        figures[f"text above {name}"] = _rounded(paired_difference(cosine[name], cosine["text"], prompts).interval)
    return figures | {
        "pictures": len(captions),
        "prompts": len(set(prompts)),
        "constant": constant,
        "distinct captions": round(len(set(captions)) / len(captions), 3),
        "mean words": round(float(np.mean([len(text.split()) for text in captions])), 1),
    }


@torch.inference_mode()
def nearest_training_text(speaker: PrefixSpeaker, pictures: list[Image.Image], pairs: Pairs) -> list[str]:
    """By cosine of the centred pooled features, as a kNN with k = 1."""
    backbone = speaker.model.backbone
    if not isinstance(backbone, Backbone):
        raise BadInput("The nearest training picture is looked for by the features of mini's backbone.")
    width = backbone.grid_width  # the first statistics are the mean of the last map
    known = torch.from_numpy(pairs.features[:, :width]).float()
    centre = known.mean(0)
    known = F.normalize(known - centre, dim=-1)
    nearest: list[int] = []
    for start in range(0, len(pictures), 16):
        pooled = backbone.pooled(speaker.processor.preprocess(pictures[start : start + 16]))[:, :width]
        nearest += (F.normalize(pooled - centre, dim=-1) @ known.T).argmax(1).tolist()
    return [pairs.texts[pairs.prompt[row]] for row in nearest]


def _rounded(interval: Interval) -> list[float]:
    return [round(float(value), 4) for value in (interval.mean, interval.low, interval.high)]
