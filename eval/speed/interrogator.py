"""The interrogator: its chain of terms, its table of 100,000 terms, and ranking them for 1,000 pictures.

CLIP ViT-L/14, random weights of the real size in the real format. What is compared with is the algorithm of the package
clip-interrogator 0.6.0 (`Interrogator.chain` and `LabelTable`, MIT licence), written down here without what it imports
(open_clip, timm, torchvision): each picture alone, every text padded to 77 tokens and read whole.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from captioner.contracts import LoadOptions
from captioner.errors import MissingExtra
from captioner.models.interrogator.interrogator import FEWEST, MOST, Chooser
from captioner.models.interrogator.tables import TermTable, TermTables, package_lists
from captioner.models.parts.narrow import narrowed
from captioner.models.parts.ranker import Ranker
from captioner.quiet import without_bars
from captioner.text.length import clip_tokenizer
from eval.speed.clock import by_turns, timed
from eval.speed.suite import Row

TOWERS = {
    "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
               "patch_size": 14},
}  # fmt: skip
"""ViT-L/14."""
PICTURES = 8
CANDIDATES = 64
"""Of the 2,048 terms that the chain tries: the package would take hours. What a term costs does not depend on it, but
that more of ours begin alike where there are more."""
ROUNDS = 2
REPEATS = 2
READ = 1024
"""Terms that are read to learn what the table costs …"""
READ_WHOLE = 128
"""… and by the package's way."""
TABLE, RANKED = 100_000, 1_000
"""Terms, and pictures that they are ranked for."""
NEAREST = 2048
CHUNK = 2048


def measure(say: Callable[[str], object]) -> list[Row]:
    """The chain in a batch against one by one and against the package's; the table read; the table ranked."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = random_clip(Path(scratch))
        say(f"  terms: {'those of clip-interrogator' if package_terms() else 'words of the tokenizer'}")
        rows = [ranking(torch.Generator().manual_seed(0))]
        theirs = PublishedWay(CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder))
        for precision in ("fp32", "bf16") if torch.cpu._is_avx512_bf16_supported() else ("fp32",):
            ours = Ranker.from_folder(folder, LoadOptions(device="cpu", precision=precision))
            rows += [*chains(ours, theirs, precision), reading(ours, theirs, precision)]
    return rows


def chains(ours: Ranker, theirs: PublishedWay, precision: str) -> list[Row]:
    """Rounds of the chain for every picture: all at once, one by one, and the first of them by the package's way."""
    draw = random.Random(0)
    terms = terms_of(CANDIDATES * PICTURES)
    candidates = [terms[n::PICTURES] for n in range(PICTURES)]
    starts = [f"a painting of {n} ships at sea, {', '.join(draw.sample(terms, 4))}" for n in range(PICTURES)]
    pictures = F.normalize(
        torch.randn(PICTURES, narrowed(theirs.model.config.projection_dim, int), dtype=theirs.model.dtype), dim=-1
    )
    choose = Chooser(ours, TermTables({}, TermTable([], torch.empty(0, 0))))

    def one_by_one() -> None:
        for n in range(PICTURES):
            choose.chain(pictures[n : n + 1], starts[n : n + 1], candidates[n : n + 1], ROUNDS)

    together, alone, published = by_turns(
        lambda: choose.chain(pictures, starts, candidates, ROUNDS),
        one_by_one,
        lambda: theirs.chain(pictures[0], candidates[0], starts[0], ROUNDS),
        repeats=REPEATS,
    )
    subject = f"best at ViT-L/14, {PICTURES} pictures, {CANDIDATES} terms, {ROUNDS} rounds, {precision}"
    counts = {"seconds": together, "seconds_one_by_one": alone, "seconds_published_one_picture": published,
              "texts_a_second": [PICTURES * CANDIDATES * ROUNDS / seconds for seconds in together]}  # fmt: skip
    return [
        Row(
            subject,
            "times faster than clip-interrogator's way in fp32",
            [PICTURES * b / a for a, b in zip(together, published, strict=True)],
            least=8,
            details=counts,
        ),
        Row(subject, "times faster than one by one", [b / a for a, b in zip(together, alone, strict=True)]),
    ]


def reading(ours: Ranker, theirs: PublishedWay, precision: str) -> Row:
    """Terms into vectors, as for the table that is cached."""
    terms = terms_of(READ)
    taken, whole = by_turns(lambda: ours.texts(terms), lambda: theirs.vectors(terms[:READ_WHOLE]), repeats=REPEATS)
    minutes = [seconds / READ * TABLE / 60 for seconds in taken]
    return Row(
        f"{READ:,} terms read at ViT-L/14, {precision} ({TABLE:,}: {min(minutes):.1f} min)",
        "times faster than clip-interrogator's way in fp32",
        [b / READ_WHOLE / (a / READ) for a, b in zip(taken, whole, strict=True)],
        details={"seconds": taken, "seconds_published": whole, "minutes_for_the_table": minutes},
    )


def ranking(generator: torch.Generator, terms: int = TABLE, pictures: int = RANKED, width: int = 768) -> Row:
    """The nearest 2,048 of all terms for every picture, against the package's chunks for a few of them."""
    table = TermTable(
        [f"term {n}" for n in range(terms)], F.normalize(torch.randn(terms, width, generator=generator), dim=-1).half()
    )
    seen = F.normalize(torch.randn(pictures, width, generator=generator), dim=-1)
    few = seen[:2]
    embeddings = [row.float() for row in table.vectors]  # as LabelTable keeps them
    (ours,) = timed(lambda: table.nearest(seen, NEAREST))
    (theirs,) = timed(lambda: [published_ranking(picture, embeddings, NEAREST) for picture in few])
    return Row(
        f"{terms:,} terms ranked for {pictures:,} pictures: {ours:.1f} s",
        "times faster than clip-interrogator's way",
        [theirs / len(few) / (ours / pictures)],
        details={"seconds": ours, "seconds_published_a_picture": theirs / len(few)},
    )


# --- the package's algorithm ------------------------------------------------------------------------------------------


class PublishedWay:
    """`Interrogator.chain` of clip-interrogator 0.6.0 over transformers' CLIP."""

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @torch.no_grad()
    def vectors(self, texts: Sequence[str]) -> Tensor:
        """All texts in one batch, each padded to what CLIP reads."""
        tokens = self.tokenizer(list(texts), padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        return F.normalize(self.model.get_text_features(**tokens).pooler_output, dim=-1)

    def similarity(self, picture: Tensor, text: str) -> float:
        """Of one text."""
        return (self.vectors([text])[0] @ picture).item()

    def chain(
        self, picture: Tensor, phrases: Sequence[str], text: str, rounds: int = MOST, fewest: int = FEWEST
    ) -> str:
        """The nearest phrase is added again and again; it is then compared once more, alone."""
        left = list(phrases)
        best, best_similarity = text, self.similarity(picture, text)
        now, now_similarity = best, best_similarity
        for count in range(rounds):
            longer = [f"{now}, {phrase}" for phrase in left]
            index = int((self.vectors(longer) @ picture).argmax())
            similarity = self.similarity(picture, longer[index])
            if similarity > best_similarity:
                best, best_similarity = longer[index], similarity
            if similarity <= now_similarity and count >= fewest:
                break
            now, now_similarity = longer[index], similarity
            if len(self.tokenizer(now).input_ids) >= 77:
                break
            del left[index]
        return best


def published_ranking(picture: Tensor, embeddings: list[Tensor], count: int) -> list[int]:
    """`LabelTable.rank`: the best of every chunk, and the best of those."""
    chunks = math.ceil(len(embeddings) / CHUNK)
    kept: list[int] = []
    for start in range(0, len(embeddings), CHUNK):
        chunk = torch.stack(embeddings[start : start + CHUNK])
        kept += [start + n for n in (chunk @ picture).topk(min(max(1, CHUNK // chunks), len(chunk))).indices.tolist()]
    top = (torch.stack([embeddings[n] for n in kept]) @ picture).topk(min(count, len(kept))).indices
    return [kept[n] for n in top.tolist()]


# --- what is measured with --------------------------------------------------------------------------------------------


@without_bars()
def random_clip(folder: Path, towers: dict[str, dict] = TOWERS, size: int = 224) -> Path:
    """A CLIP of this size in transformers' files, its weights drawn at random, with CLIP's own tokenizer."""
    read = json.loads(clip_tokenizer().to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(read["vocab"]), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in read["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    tokenizer.save_pretrained(folder)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config=towers["text"] | ends | {"vocab_size": len(tokenizer)},
        vision_config=towers["vision"] | {"image_size": size},
        projection_dim=towers["text"]["hidden_size"],
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    side = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    CLIPImageProcessorPil(**side).save_pretrained(folder)
    return folder


def package_terms() -> list[str]:
    """The flavours of clip-interrogator, where it is installed."""
    try:
        return package_lists()["flavors"]
    except MissingExtra:
        return []


def terms_of(count: int) -> list[str]:
    """Style terms: drawn from clip-interrogator's, or of one to four words that are one token of CLIP's each."""
    draw = random.Random(0)
    if terms := package_terms():
        return draw.sample(terms, count)
    words = [token[:-4] for token in clip_tokenizer().get_vocab() if token.endswith("</w>") and token[:-4].isalpha()]
    words = sorted(word for word in words if word.isascii() and len(word) > 3)[::16]  # so that some begin alike
    made = dict[str, None]()
    while len(made) < count:
        made[" ".join(draw.choices(words, k=draw.randint(1, 4)))] = None
    return list(made)
