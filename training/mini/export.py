"""Stages `export` and `choose`: the checkpoint folder, and how its decoder is best searched."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from captioner.decoding import Decoding
from captioner.errors import counted
from captioner.files import atomic
from captioner.files.json import write_object
from captioner.models.prefix.clip_prefix import ClipPrefix
from captioner.models.prefix.layers import JointHead, PrefixProcessor
from captioner.pairs.fingerprint import fingerprint
from captioner.quiet import without_bars
from captioner.search.search import Hypothesis, search
from captioner.sinks import check_new_folder
from captioner.text import clean, consensus
from captioner.text.embedding import TextEmbedder, text_embedder
from training.mini import sources
from training.mini.features import imagenet_backbone
from training.mini.language import load_tokenizer, new_model
from training.mini.split import Pairs, load_pairs, validation_texts

FILES = {"config.json", "model.safetensors", "tokenizer.json", "decoding.json", "training_data.json"}
"""What an export consists of."""
MAX_NEW_TOKENS = 34
DECODING = {"do_sample": True, "num_return_sequences": 16, "temperature": 0.7, "top_p": 0.9, "seed": 0,
            "max_new_tokens": MAX_NEW_TOKENS, "consensus": True}  # fmt: skip
"""As many texts as let a caption stay under 300 milliseconds on one core."""
CANDIDATE_DECODINGS = [
    Decoding(num_beams=1, max_new_tokens=MAX_NEW_TOKENS),
    Decoding(num_beams=4, max_new_tokens=MAX_NEW_TOKENS),
    *(
        Decoding(
            do_sample=True,
            num_return_sequences=16,
            temperature=temperature,
            top_p=0.9,
            seed=0,
            max_new_tokens=MAX_NEW_TOKENS,
        )
        for temperature in (0.5, 0.7, 0.8)
    ),
]
COUNTS = (1, 2, 3, 4, 6, 8, 16)
"""Samples that are compared, out of the 16."""


def assembled(work: Path, head: str = "head.pt", language: str = "reward.pt") -> tuple[ClipPrefix, PrefixProcessor]:
    """Backbone, head, mapper, GPT-2 and gist in one model."""
    tokenizer = load_tokenizer(work)
    of_head = torch.load(work / head, weights_only=True)
    prototypes, rank = of_head["keys"].shape
    model = new_model(tokenizer, {"rank": rank, "prototypes": prototypes}, gist=True)
    head_of(model).load_state_dict(of_head)
    if model.gist is not None:
        model.gist.load_state_dict(torch.load(work / "gist.pt", weights_only=True))
    model.backbone = imagenet_backbone()
    learnt = torch.load(work / language, weights_only=True)["parts"]
    torch.nn.ModuleList([model.mapper, model.gpt]).load_state_dict(learnt)
    return model.eval(), PrefixProcessor(model.backbone.preprocess, tokenizer, model.config)


def head_of(model: ClipPrefix) -> JointHead:
    """The head, which every `ClipPrefix` made here has."""
    if not isinstance(model.head, JointHead):
        raise TypeError("this ClipPrefix was made without a head")
    return model.head


def export(data: Path, work: Path, out: Path, held_back: bool = False) -> None:
    """Stage `export`: float16 weights, vocabulary, search settings, and what it has learnt from.

    held_back: with the head that met no validation prompt.
    """
    if not holds_an_export(out):
        check_new_folder(out)
    model, processor = assembled(work, "head-without-validation.pt" if held_back else "head.pt")
    unmet = validation_texts(work) if held_back else set()
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing_folder(out) as new:
        with without_bars():
            model.half().save_pretrained(new)
        processor.save_pretrained(new)
        write_object(new / "decoding.json", DECODING)
        atomic.write_text(new / "training_data.json", json.dumps(learnt_from(data, unmet)))
        if holds_an_export(out):
            shutil.rmtree(out)
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {size / 1e6:.1f} MB in {out}")


def holds_an_export(out: Path) -> bool:
    """True for a folder with the files of an earlier export and nothing else: it may be replaced."""
    return out.is_dir() and {file.name for file in out.iterdir()} == FILES


def learnt_from(data: Path, unmet: Collection[str]) -> dict[str, list[str]]:
    """The names of all sources, and the fingerprints of the prompts whose pictures were learnt from: all but those
    whose cleaned texts are unmet."""
    files = sources.pair_files(data)
    lists = [file.name.removesuffix(".txt.gz") for file in sorted((data / "prompts").glob("*.txt.gz"))]
    texts = (row["text"] for file in files for row in sources.pair_rows(file))
    prompts = {fingerprint(text) for text in texts if not unmet or sources.clean(text) not in unmet}
    return {"sources": [file.stem for file in files] + lists, "fingerprints": sorted(prompts)}


@torch.inference_mode()
def choose(data: Path, work: Path, count: int) -> None:
    """Stage `choose`: what each way of searching gives on the validation prompts of generated pictures."""
    pairs = load_pairs(data, work)
    model, processor = assembled(work, "head-without-validation.pt")
    embed = text_embedder()
    rows = one_each(pairs, count)
    predicted = head_of(model)(torch.from_numpy(pairs.features[rows]).float())
    truth = pairs.embeddings[pairs.prompt[rows]]
    cosine = (predicted.numpy() * truth).sum(1).mean()
    print(f"{counted(len(rows), 'prompt')}; the predicted embedding itself {cosine:.4f}")
    captions: list[str] = []
    for decoding in CANDIDATE_DECODINGS:
        trial = Trial(model, processor, embed, predicted, truth, decoding)
        for count_each in COUNTS if decoding.do_sample else [1]:
            figures, captions = trial.figures(count_each)
            print(f"{described(decoding)}, {count_each}: {figures}", flush=True)
    for row, text in list(zip(rows, captions, strict=True))[:12]:
        print(f"  {pairs.texts[pairs.prompt[row]]!r} → {text!r}")


def described(decoding: Decoding) -> str:
    """The settings that differ between what stage `choose` compares."""
    return f"sampled at {decoding.temperature}" if decoding.do_sample else f"{decoding.num_beams} beams"


class Trial:
    """What a search writes for predicted embeddings, and how near it comes to the true ones."""

    @torch.inference_mode()
    def __init__(
        self,
        model: ClipPrefix,
        processor: PrefixProcessor,
        embed: TextEmbedder,
        predicted: Tensor,
        truth: np.ndarray,
        decoding: Decoding,
    ) -> None:
        best_first = search(model, model.remember(predicted), processor, decoding, list(range(len(predicted))))
        # The search gives the likeliest first: parts of that order would be no fair samples.
        generator = random.Random(0)
        candidates = [generator.sample(of_image, len(of_image)) for of_image in best_first]
        self.texts = [[finished(text, processor) for text in of_image] for of_image in candidates]
        self.vectors = np.stack([embed(texts) for texts in self.texts])  # [n, candidates, 384]
        gists = [model.gists([text.ids for text in of_image]) for of_image in candidates]
        self.gists = np.stack([of_image for of_image in gists if of_image is not None])
        self.scores = np.array([[text.score for text in of_image] for of_image in candidates])
        self.predicted, self.truth = predicted.numpy(), truth

    def figures(self, count: int) -> tuple[str, list[str]]:
        """With `count` candidates per picture: a line of mean figures, and the captions.

        The candidates are cut into parts of that size, each a sample of its own; the figures are means over the parts,
        the captions are those of the last one.
        """
        starts = range(0, self.scores.shape[1] - count + 1, count)
        parts = [self._part(slice(start, start + count)) for start in starts]
        means = {name: np.mean([figures[name] for figures, _ in parts]) for name in parts[0][0]}
        return ", ".join(f"{name} {mean:.4f}" for name, mean in means.items()), parts[-1][1]

    def _part(self, part: slice) -> tuple[dict[str, float], list[str]]:
        vectors, scores = self.vectors[:, part], self.scores[:, part]
        best = [consensus.choose(*reading) for reading in zip(self.gists[:, part], scores, self.predicted, strict=True)]
        readings = zip(vectors, scores, self.predicted, strict=True)
        expected = np.stack(
            [consensus.expected_embedding(*reading, weight=consensus.PREDICTED) for reading in readings]
        )
        chosen = vectors[np.arange(len(best)), best]
        captions = [texts[part][index] for texts, index in zip(self.texts, best, strict=True)]
        return {
            "true": (chosen * self.truth).sum(1).mean(),
            "any candidate": (vectors @ self.truth[:, :, None]).mean(),
            "to the prediction": (chosen * self.predicted).sum(1).mean(),
            "expected embedding": (expected * self.truth).sum(1).mean(),
            "distinct": len(set(captions)) / len(captions),
            "words": np.mean([len(text.split()) for text in captions]),
        }, captions


def finished(text: Hypothesis, processor: PrefixProcessor) -> str:
    """The text as a user gets it."""
    return clean.clean(processor.decode(text.ids), finished=text.finished)


def one_each(pairs: Pairs, count: int) -> list[int]:
    """One picture of each of so many validation prompts that are the literal prompts of generated pictures."""
    rows = np.flatnonzero(pairs.validation[pairs.prompt] & ~pairs.aside()).tolist()
    random.Random(3).shuffle(rows)
    row_of_prompt = {int(pairs.prompt[row]): row for row in rows}
    return list(row_of_prompt.values())[:count]
