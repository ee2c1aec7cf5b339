"""Stages `export` and `choose`: the checkpoint folder, and how its decoder is best searched."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from captioner.decoding import Decoding
from captioner.files import atomic
from captioner.files.json import write_object
from captioner.models.prefix.clip_prefix import ClipPrefix
from captioner.models.prefix.layers import PrefixProcessor
from captioner.pairs.fingerprint import fingerprint
from captioner.search.search import Hypothesis, search
from captioner.text import clean, consensus
from captioner.text.embedding import text_embedder
from training.mini import sources
from training.mini.features import imagenet_backbone
from training.mini.language import load_tokenizer, new_model
from training.mini.split import load_pairs

DECODING = {"do_sample": True, "num_return_sequences": 4, "temperature": 0.7, "top_p": 0.9, "seed": 0,
            "max_new_tokens": 28, "consensus": True}  # fmt: skip
"""Chosen by stage `choose`: six samples come 0.003 nearer to the true prompt, and take a seventh longer."""
TRIED = [{"num_beams": 1}, {"num_beams": 4}] + [
    {"do_sample": True, "num_return_sequences": 16, "temperature": temperature, "top_p": 0.9}
    for temperature in (0.5, 0.7, 0.8)
]
COUNTS = (1, 2, 3, 4, 6, 8, 16)
"""Samples that are compared, out of the 16."""


def assembled(work: Path, head: str = "head.pt", language: str = "reward.pt") -> tuple[ClipPrefix, PrefixProcessor]:
    """Backbone, head, mapper, GPT-2 and gist in one model."""
    tokenizer = load_tokenizer(work)
    of_head = torch.load(work / head, weights_only=True)
    prototypes, rank = of_head["keys"].shape
    model = new_model(tokenizer, {"rank": rank, "prototypes": prototypes}, gist=True)
    model.head.load_state_dict(of_head)
    model.gist.load_state_dict(torch.load(work / "gist.pt", weights_only=True))
    model.backbone = imagenet_backbone()
    learnt = torch.load(work / language, weights_only=True)["parts"]
    torch.nn.ModuleList([model.mapper, model.gpt]).load_state_dict(learnt)
    return model.eval(), PrefixProcessor(model.backbone.preprocess, tokenizer, model.config)


def export(data: Path, work: Path, out: Path, held_back: bool = False) -> None:
    """Stage `export`: float16 weights, vocabulary, search settings, and what it has learnt from.

    held_back: with the head that met no validation prompt.
    """
    model, processor = assembled(work, "head-without-validation.pt" if held_back else "head.pt")
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    processor.save_pretrained(out)
    write_object(out / "decoding.json", DECODING)
    atomic.write_text(out / "training_data.json", json.dumps(learnt_from(data)))
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {size / 1e6:.1f} MB in {out}")


def learnt_from(data: Path) -> dict[str, list[str]]:
    """The names of all sources, and the fingerprints of the prompts whose pictures were learnt from."""
    files = sources.pair_files(data)
    lists = [file.name.removesuffix(".txt.gz") for file in sorted((data / "prompts").glob("*.txt.gz"))]
    spoken = {fingerprint(row["text"]) for file in files for row in sources.pair_rows(file)}
    return {"sources": [file.stem for file in files] + lists, "fingerprints": sorted(spoken)}


@torch.inference_mode()
def choose(data: Path, work: Path, count: int) -> None:
    """Stage `choose`: what each way of searching gives on the validation prompts of generated pictures."""
    pairs = load_pairs(data, work)
    model, processor = assembled(work, "head-without-validation.pt")
    embed = text_embedder()
    rows = one_each(pairs, count)
    predicted = model.head(torch.from_numpy(pairs.features[rows]).float())
    truth = pairs.embeddings[pairs.prompt[rows]]
    print(f"{len(rows)} prompts; the predicted embedding itself {(predicted.numpy() * truth).sum(1).mean():.4f}")
    for settings in TRIED:
        seed = {"seed": 0} if settings.get("do_sample") else {}
        decoding = Decoding(max_new_tokens=DECODING["max_new_tokens"], **seed, **settings)
        tried = Tried(model, processor, embed, predicted, truth, decoding)
        for part in COUNTS if settings.get("do_sample") else [1]:
            figures, said = tried.figures(part)
            print(f"{settings}, {part}: {figures}", flush=True)
    for row, text in list(zip(rows, said, strict=True))[:12]:
        print(f"  {pairs.texts[pairs.prompt[row]]!r} → {text!r}")


class Tried:
    """What a search writes for predicted embeddings, and how near it comes to the true ones."""

    @torch.inference_mode()
    def __init__(
        self, model: ClipPrefix, processor: PrefixProcessor, embed, predicted: Tensor, truth: np.ndarray, by: Decoding
    ) -> None:
        found = search(model, model.remember(predicted), processor, by, list(range(len(predicted))))
        chance = random.Random(0)  # the search gives the likeliest first: parts of that order would be no fair samples
        found = [chance.sample(of_image, len(of_image)) for of_image in found]
        self.texts = [[finished(each, processor) for each in of_image] for of_image in found]
        self.vectors = np.stack([embed(each) for each in self.texts])  # [n, candidates, 384]
        self.gists = np.stack([model.gists([each.ids for each in of_image]) for of_image in found])
        self.scores = np.array([[each.score for each in of_image] for of_image in found])
        self.predicted, self.truth = predicted.numpy(), truth

    def figures(self, count: int) -> tuple[str, list[str]]:
        """For so many candidates each: a line of means over all parts of that size, which are samples of their own,
        and the captions of the last."""
        first = range(0, self.scores.shape[1] - count + 1, count)
        found, said = zip(*(self._part(slice(start, start + count)) for start in first), strict=True)
        return ", ".join(f"{name} {np.mean([each[name] for each in found]):.4f}" for name in found[0]), said[-1]

    def _part(self, part: slice) -> tuple[dict[str, float], list[str]]:
        vectors, scores = self.vectors[:, part], self.scores[:, part]
        best = [consensus.choose(*reading) for reading in zip(self.gists[:, part], scores, self.predicted, strict=True)]
        readings = zip(vectors, scores, self.predicted, strict=True)
        expected = np.stack([consensus.expected_embedding(*reading) for reading in readings])
        chosen = vectors[np.arange(len(best)), best]
        said = [each[part][one] for each, one in zip(self.texts, best, strict=True)]
        return {
            "true": (chosen * self.truth).sum(1).mean(),
            "any candidate": (vectors @ self.truth[:, :, None]).mean(),
            "to the prediction": (chosen * self.predicted).sum(1).mean(),
            "expected embedding": (expected * self.truth).sum(1).mean(),
            "distinct": len(set(said)) / len(said),
            "words": np.mean([len(text.split()) for text in said]),
        }, said


def finished(found: Hypothesis, processor: PrefixProcessor) -> str:
    """The text as a user gets it."""
    return clean.clean(processor.decode(found.ids), finished=found.finished)


def one_each(pairs, count: int) -> list[int]:
    """One picture of each of so many validation prompts that are the literal prompts of generated pictures."""
    rows = np.flatnonzero(pairs.validation[pairs.prompt] & ~pairs.aside())
    random.Random(3).shuffle(rows)
    first = {int(pairs.prompt[row]): int(row) for row in rows}
    return list(first.values())[:count]
