"""Stage `measure`: the finished checkpoint on pictures it has never met, beside two baselines, with intervals.

For measuring only: nothing is chosen by these pictures.
"""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import torch
from PIL import Image
from torch.nn import functional as F

from captioner import pipeline
from captioner.files.json import write_object
from captioner.statistics import bootstrap_interval, paired_difference
from captioner.text.embedding import text_embedder
from captioner.text.finish import Finish
from training.mini.split import Pairs, load_pairs


def measure(data: Path, work: Path, out: Path) -> None:
    """Stage `measure`."""
    captioner = pipeline.load(str(out), device="cpu")
    pairs, embed = load_pairs(data, work), text_embedder()
    found = {}
    for name in ("pairs", "other-models"):
        rows = parquet.read_table(data / "heldout-dev" / f"{name}.parquet", columns=["image", "text"]).to_pylist()
        pictures = [Image.open(BytesIO(row["image"]["bytes"])).convert("RGB") for row in rows]
        prompts = [row["text"] for row in rows]
        found[name] = table(captioner, pictures, prompts, pairs, embed)
        print(name, json.dumps(found[name], indent=1), flush=True)
    write_object(work / "measured.json", found)


def table(captioner, pictures: list[Image.Image], prompts: list[str], pairs: Pairs, embed) -> dict:
    """Mean cosines with 95 % intervals, resampled by prompt, and the paired gains over the baselines."""
    truth = embed(prompts)
    readings = list(captioner.readings(pictures))
    said = [captioner.prompt(reading, Finish()).text for reading in readings]
    weights = pairs.weights()[:, None]
    mean = (pairs.embeddings[pairs.prompt] * weights).sum(0)
    constant = pairs.texts[int((pairs.embeddings @ mean).argmax())]
    nearest = nearest_training_text(captioner, pictures, pairs)
    cosine = {
        "text": (embed(said) * truth).sum(1),
        "predicted embedding": (np.stack([reading.embedding for reading in readings]) * truth).sum(1),
        "best constant prompt": (embed([constant]) * truth).sum(1),
        "text of the nearest training picture": (embed(nearest) * truth).sum(1),
    }
    found = {name: _rounded(bootstrap_interval(values, prompts)) for name, values in cosine.items()}
    for name in ("best constant prompt", "text of the nearest training picture"):
        found[f"text above {name}"] = _rounded(paired_difference(cosine[name], cosine["text"], prompts).interval)
    return found | {
        "pictures": len(said),
        "prompts": len(set(prompts)),
        "constant": constant,
        "distinct captions": round(len(set(said)) / len(said), 3),
        "mean words": round(float(np.mean([len(text.split()) for text in said])), 1),
    }


@torch.inference_mode()
def nearest_training_text(captioner, pictures: list[Image.Image], pairs: Pairs) -> list[str]:
    """By cosine of the centred pooled features, as a kNN with k = 1."""
    speaker = captioner.speaker
    width = speaker.model.backbone.grid_width  # the first statistics are the mean of the last map
    seen = torch.from_numpy(pairs.features[:, :width]).float()
    centre = seen.mean(0)
    seen = F.normalize(seen - centre, dim=-1)
    found = []
    for start in range(0, len(pictures), 16):
        pooled = speaker.model.backbone.pooled(speaker.processor.pixels(pictures[start : start + 16]))[:, :width]
        found += (F.normalize(pooled - centre, dim=-1) @ seen.T).argmax(1).tolist()
    return [pairs.texts[pairs.prompt[row]] for row in found]


def _rounded(interval) -> list[float]:
    return [round(float(value), 4) for value in (interval.mean, interval.low, interval.high)]
