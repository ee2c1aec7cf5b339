"""Stage `language`: mapper and GPT-2 learn, from text alone, to write a prompt back from its noised embedding.

What the decoder will be given is no prompt's embedding but one predicted from a picture: blurred, and pulled towards
the mean. The noise of training imitates that: a random share of the way from the true embedding to one with the
errors that the image head makes on pictures it has not seen.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config

from captioner.files import atomic
from captioner.models.parts.backbones.backbones import blank
from captioner.models.prefix.clip_prefix import ClipPrefix, ClipPrefixConfig
from captioner.text.embedding import text_embedder
from training.mini import sources
from training.mini.quick import Quick, surprise
from training.mini.saving import save_state

VOCABULARY = 5000
END = "<|endoftext|>"
WIDTH, LAYERS, HEADS, PREFIX = 192, 6, 4, 4
LONGEST = 36
"""Tokens, the end included."""
BATCH = 64
PEAK_RATE = 2e-3
WARM_UP = 200
FARTHEST = 0.85
"""Of the way to a real guess: to write well from less is learnt better by stage `reward`, from the texts themselves."""
NEAREST_FROM, NEAREST_TO = 0.47, 0.85
"""The part of training in which the decoder learns to write the text nearest to its blurred embedding."""
PLAIN = {
    "pairs",
    "captions",
    "flickr8k-captions",
    "parts",
    "partiprompts",
    "tifa",
    "drawbench",
    "geneval",
    "t2i-compbench",
}
"""Sources of plain, short captions: seen OFTEN times as often, since prompts of the wild are mostly long lists of
styles, and six times as many."""
OFTEN = 4
SEARCHED = 30_000
"""Of all texts of like lengths, at most about so many are looked through for the nearest one, others in every step."""


def load_texts(work: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Sources, texts and embeddings of all training texts, validation texts left out."""
    origins: list[str] = []
    lines: list[str] = []
    embeddings = []
    held_back = np.load(work / "validation-embeddings.npy").astype(np.float32)
    for name in ("pair-texts", "prompts"):
        texts = json.loads((work / f"{name}.json").read_text())
        vectors = np.load(work / f"{name}.npy")
        rows = np.flatnonzero(sources.clear_of(held_back, vectors))
        origins += [texts["source"][row] for row in rows]
        lines += [texts["text"][row] for row in rows]
        embeddings.append(vectors[rows])
    return origins, lines, np.concatenate(embeddings)


def train_tokenizer(lines: list[str]) -> Tokenizer:
    """Byte-pair vocabulary of the training prompts. Words carry their leading space; a text gets one before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = [chr(code) for code in range(33, 127)] + ["Ġ"]  # the corpus is cleaned ASCII
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def load_tokenizer(work: Path) -> Tokenizer:
    """The vocabulary that this stage left."""
    return Tokenizer.from_str((work / "tokenizer.json").read_text(encoding="utf-8"))


def new_model(tokenizer: Tokenizer, head: dict[str, int] | None = None, gist: bool = False) -> ClipPrefix:
    """Mini's architecture, random."""
    gpt2 = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(), n_positions=64, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        activation_function="gelu_pytorch_tanh",  # the same function as gelu_new, fused: a fifth faster
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    config = ClipPrefixConfig(
        backbone=blank("efficientnet-lite2", pool="statistics").config, joint_dim=384, normalize=True, head=head,
        gist=gist, mapper="mlp", prefix_length=PREFIX, gpt2=gpt2.to_diff_dict(), eos_ids=(0,), pad_id=0,
    )  # fmt: skip
    return ClipPrefix(config)


def begin_with_meanings(model: ClipPrefix, tokenizer: Tokenizer) -> None:
    """Let the word embeddings start as MiniLM's embeddings of the same words, in fewer dimensions.

    Words of like meaning then lie near each other from the first step on, in the geometry that the prefix comes from.
    """
    words = [tokenizer.decode([token]).strip() or "." for token in range(tokenizer.get_vocab_size())]
    meanings = torch.from_numpy(text_embedder()(words))
    meanings = meanings - meanings.mean(0)
    _, _, axes = torch.linalg.svd(meanings, full_matrices=False)
    start = F.normalize(meanings @ axes[:WIDTH].T, dim=-1) * 0.02 * math.sqrt(WIDTH)
    with torch.no_grad():
        model.gpt.transformer.wte.weight.copy_(start)


class Blur:
    """Embeddings as the image head would give them: what it keeps of the truth, and noise with its errors' shape."""

    def __init__(self, file: Path) -> None:
        saved = np.load(file)
        self.keep = torch.from_numpy(saved["keep"]).float()  # [384, 384]
        self.offset = torch.from_numpy(saved["offset"]).float()
        self.noise = torch.from_numpy(saved["noise"]).float()  # a square root of the errors' covariance

    def whole(self, truth: Tensor, generator: torch.Generator) -> Tensor:
        """What a picture of these prompts may give."""
        normal = torch.randn(truth.shape, generator=generator)
        return F.normalize(truth @ self.keep + self.offset + normal @ self.noise, dim=-1)

    def __call__(self, truth: Tensor, generator: torch.Generator) -> Tensor:
        """A random part of the way there, at most FARTHEST."""
        blurred = self.whole(truth, generator)
        share = FARTHEST * torch.rand(len(truth), 1, generator=generator)
        return F.normalize(truth * (1 - share) + blurred * share, dim=-1)


class NearestText:
    """Which training text comes nearest to a blurred embedding, among those of the lengths at hand.

    For a while that text is what the decoder learns to write: it should say what it was given, not guess what was lost
    in the blur. To the end of training it is not: captions then become alike.
    """

    def __init__(self, embeddings: Tensor, lengths: list[int]) -> None:
        self.lengths, self.order = torch.tensor(lengths).sort()
        self.embeddings = F.normalize(embeddings[self.order].float(), dim=-1)

    def __call__(self, blurred: Tensor, shortest: int, longest: int, generator: torch.Generator) -> list[int]:
        """One of the three nearest texts for each row of `blurred`: drawn by likeness."""
        first, last = torch.searchsorted(self.lengths, torch.tensor([shortest - 4, longest + 1])).tolist()
        apart = math.ceil((last - first) / SEARCHED)
        first += int(torch.randint(apart, (1,), generator=generator))
        searched = self.embeddings[first:last:apart]
        near = (blurred @ searched.T).topk(min(3, len(searched)), dim=1)
        pick = torch.multinomial((near.values / 0.02).softmax(-1), 1, generator=generator)
        return self.order[first + apart * near.indices.gather(1, pick)[:, 0]].tolist()


def batches(lengths: list[int], weights: list[int], seed: int) -> Iterator[list[int]]:
    """Endless batches of rows of like length, in random order."""
    generator = random.Random(seed)
    rows = [row for row, weight in enumerate(weights) for _ in range(weight)]
    while True:
        generator.shuffle(rows)
        groups = []
        for start in range(0, len(rows), BATCH * 64):
            pool = sorted(rows[start : start + BATCH * 64], key=lambda row: lengths[row])
            groups += [pool[first : first + BATCH] for first in range(0, len(pool), BATCH)]
        generator.shuffle(groups)
        yield from groups


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, a plateau, and a linear fall over the last two fifths."""
    return PEAK_RATE * min((step + 1) / WARM_UP, 1, max((steps - step) / (0.4 * steps), 0.01))


def resume(checkpoint: Path, parts: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """The steps already made: weights and optimizer go on from the checkpoint, where there is one."""
    if not checkpoint.exists():
        return 0
    saved = torch.load(checkpoint, weights_only=True)
    parts.load_state_dict(saved["parts"])
    optimizer.load_state_dict(saved["optimizer"])
    return saved["step"]


def save_checkpoint(checkpoint: Path, parts: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Write a checkpoint in the place of the last one."""
    save_state(checkpoint, {"parts": parts.state_dict(), "optimizer": optimizer.state_dict(), "step": steps})


def language(work: Path, seed: int, steps: int = 6000) -> None:
    """Stage `language`; resumes from its last checkpoint."""
    torch.manual_seed(seed)
    origins, lines, embeddings = load_texts(work)
    tokenizer = train_tokenizer(lines)
    atomic.write_text(work / "tokenizer.json", tokenizer.to_str(pretty=True))
    end = tokenizer.token_to_id(END)
    ids = [[*encoded.ids[: LONGEST - 1], end] for encoded in tokenizer.encode_batch(lines)]
    truth = torch.from_numpy(embeddings)
    print(f"{len(lines)} texts, {sum(map(len, ids)) / len(ids):.1f} tokens each", flush=True)
    model, blur = new_model(tokenizer), Blur(work / "blur.npz")
    begin_with_meanings(model, tokenizer)
    parts = torch.nn.ModuleList([model.mapper, model.gpt])
    matrices = [p for p in parts.parameters() if p.ndim > 1]
    vectors = [p for p in parts.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98), fused=True)
    checkpoint = work / "language.pt"
    first = resume(checkpoint, parts, optimizer)
    quick = Quick(model)
    generator = torch.Generator()
    lengths = [len(row) for row in ids]
    nearest = NearestText(truth, lengths)
    order = batches(lengths, [OFTEN if source in PLAIN else 1 for source in origins], seed)
    smooth, since = 0.0, time.time()
    for step, rows in zip(range(steps), order, strict=False):
        if step < first:
            continue
        generator.manual_seed(seed * 1_000_003 + step)
        blurred = blur(truth[rows].float(), generator)
        if NEAREST_FROM * steps <= step < NEAREST_TO * steps:
            of_rows = [lengths[row] for row in rows]
            rows = nearest(blurred, min(of_rows), max(of_rows), generator)
        tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids[row]) for row in rows], True, -100)
        loss = surprise(quick.model, blurred, tokens).sum() / (tokens >= 0).sum()
        loss.backward()
        quick.give_gradients()
        torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        optimizer.step()
        quick.take_weights()
        smooth = loss.item() if step == first else 0.98 * smooth + 0.02 * loss.item()
        if (step + 1) % 50 == 0:
            print(
                f"step {step + 1} loss {smooth:.3f} {(time.time() - since) / (step + 1 - first):.3f} s/step", flush=True
            )
        if (step + 1) % 500 == 0 or step + 1 == steps:
            save_checkpoint(checkpoint, parts, optimizer, step + 1)
