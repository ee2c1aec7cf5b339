"""What every prefix model shares: head, mappers, the prefix read once per image, processor and speaker.

Nothing here needs transformers' model classes, whose import takes longer than a caption: `mini` starts without them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from captioner import compute
from captioner.contracts import PLAIN_REQUEST, Request
from captioner.decoding import Decoding, DecodingChanges
from captioner.models.parts.attention import TextCache, attend_shared, attend_words
from captioner.models.parts.backbones.preprocess import Preprocess
from captioner.models.parts.recording import Recordings
from captioner.models.parts.speaker import SearchedDecoder
from captioner.prompt import Reading
from captioner.search.search import Hypothesis

FAST, SHORTLIST = 4, 8
"""Texts of a picture that are written where they are wanted fast, and those that are embedded where they are not."""


class JointHead(nn.Module):
    """Pooled statistics of a picture → the predicted embedding of its prompt, a unit vector.

    The mean of two guesses that err differently: a linear one, and what a memory of prototypes (centres of training
    pictures, each with a prompt embedding) answers, weighted by likeness.
    """

    def __init__(self, inputs: int, joint_dim: int, rank: int, prototypes: int) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.zeros(inputs))
        self.scale = nn.Parameter(torch.ones(inputs))
        self.linear = nn.Linear(inputs, joint_dim)
        self.axes = nn.Linear(inputs, rank, bias=False)
        self.keys = nn.Parameter(nn.init.normal_(torch.empty(prototypes, rank), std=rank**-0.5))
        self.values = nn.Parameter(nn.init.normal_(torch.empty(prototypes, joint_dim)))
        self.prior = nn.Parameter(torch.zeros(prototypes))
        self.sharpness = nn.Parameter(torch.tensor(20.0))
        self.share = nn.Parameter(torch.tensor(0.5))
        """Of the prototypes' guess."""

    def forward(self, pooled: Tensor) -> Tensor:
        pooled = (pooled - self.centre) * self.scale
        likeness = self.likeness(F.normalize(self.axes(pooled), dim=-1))
        recalled = self.recall((self.sharpness * likeness + self.prior).softmax(-1))
        guesses = F.normalize(self.linear(pooled), dim=-1), F.normalize(recalled, dim=-1)
        return F.normalize(torch.lerp(*guesses, self.share), dim=-1)

    def likeness(self, picture: Tensor) -> Tensor:
        """On the axes → to every prototype `[n, prototypes]`."""
        return picture @ self.keys.T

    def recall(self, shares: Tensor) -> Tensor:
        """Shares of the prototypes → the sum of their embeddings `[n, joint_dim]`."""
        return shares @ self.values


class LinearMapper(nn.Linear):
    """Embedding → prefix in one layer."""

    def __init__(self, joint_dim: int, prefix_length: int, width: int) -> None:
        super().__init__(joint_dim, prefix_length * width)
        self.width = width

    def forward(self, embedding: Tensor) -> Tensor:
        return super().forward(embedding).unflatten(1, (-1, self.width))  # [n, prefix, width]


class MlpMapper(nn.Module):
    """Embedding → hidden layer with tanh → prefix."""

    def __init__(self, joint_dim: int, prefix_length: int, width: int) -> None:
        super().__init__()
        self.width = width
        hidden = prefix_length * width // 2
        self.model = nn.Sequential(nn.Linear(joint_dim, hidden), nn.Tanh(), nn.Linear(hidden, prefix_length * width))

    def forward(self, embedding: Tensor) -> Tensor:
        return self.model(embedding).unflatten(1, (-1, self.width))  # [n, prefix, width]


class MapperAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"{heads} heads cannot share a width of {width}")
        self.heads = heads
        self.to_queries = nn.Linear(width, width, bias=False)
        self.to_keys_values = nn.Linear(width, 2 * width, bias=False)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        queries = self.to_queries(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [n, heads, t, head_dim]
        both = self.to_keys_values(x).unflatten(-1, (2, self.heads, -1))  # [n, t, 2, heads, head_dim]
        keys, values = both.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        return self.project(mixed.transpose(1, 2).flatten(2))


class MapperMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))


class MapperLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = MapperAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MapperMlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MapperLayers(nn.Module):
    """The layers one after the other: the published key names have this level."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MapperLayer(width, heads) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class TransformerMapper(nn.Module):
    """The embedding spread over clip_length positions, then learnt constants; where those end up is the prefix."""

    def __init__(
        self, joint_dim: int, prefix_length: int, clip_length: int, width: int, layers: int, heads: int
    ) -> None:
        super().__init__()
        self.clip_length = clip_length
        self.linear = nn.Linear(joint_dim, clip_length * width)
        self.prefix_const = nn.Parameter(torch.randn(prefix_length, width))
        self.transformer = MapperLayers(width, heads, layers)

    def forward(self, embedding: Tensor) -> Tensor:
        spread = self.linear(embedding).unflatten(1, (self.clip_length, -1))  # [n, clip_length, width]
        x = torch.cat((spread, self.prefix_const.expand(len(spread), -1, -1)), dim=1)
        x = self.transformer(x)
        return x[:, self.clip_length :]  # [n, prefix, width]


@dataclass
class PrefixMemory:
    """What depends on the picture alone."""

    prefix: TextCache
    """What has been read of the prefix, a text of every picture."""
    first_logits: Tensor
    """`[images, vocabulary]` of the first word."""
    features: Tensor
    """The image embedding `[images, joint_dim]`."""

    def __len__(self) -> int:
        return len(self.features)

    def begin(self, copies: int) -> TextCache:
        """The past of so many texts of every picture."""
        return self.prefix.copy().select(torch.arange(len(self), device=self.features.device).repeat_interleave(copies))

    def select(self, images: Tensor) -> PrefixMemory:
        return PrefixMemory(self.prefix.select(images), self.first_logits[images], self.features[images])


class Pooling(Protocol):
    """A backbone as it is needed here."""

    def pooled(self, pixels: Tensor) -> Tensor:
        """Pixels → one vector a picture `[n, width]`."""
        raise NotImplementedError


class PrefixDecoder:
    """The decoder contract over `backbone`, `head`, `mapper` and `gpt` (GPT-2's modules under their usual names).

    `head` and `gist` may be None.
    """

    backbone: Pooling
    head: JointHead | None
    mapper: nn.Module
    normalize: bool
    """The mapper reads image embeddings of length 1."""
    gpt: Any
    """transformers' GPT-2 or mini's: two classes that share no base, but the names of their modules."""
    gist: nn.Embedding | None
    """What each token adds to a text's embedding."""
    forks = True
    """The past holds the prefix: once begun, a text needs no memory (see contracts.py)."""
    fixed = False
    """Its weights change no more: a step may be traced."""
    traced_after = 0
    """Steps that are written before one is traced: what that takes, so many have to win back."""
    steps = 0

    @property
    def device(self) -> torch.device:
        return self.gpt.transformer.wte.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.gpt.transformer.wte.weight.dtype

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels → image embedding `[n, joint_dim]`."""
        pooled = self.backbone.pooled(pixels)
        return pooled if self.head is None else self.head(pooled)

    def prefix(self, features: Tensor) -> Tensor:
        """Image embedding → prefix `[n, prefix, width]`."""
        return self.mapper(F.normalize(features, dim=-1) if self.normalize else features)

    def remember(self, features: Tensor) -> PrefixMemory:
        hidden = self.prefix(features)
        past = TextCache.begin(len(hidden), len(self.gpt.transformer.h), self.gpt.config.n_head, hidden)
        logits = self._read_on(hidden, past)
        return PrefixMemory(past, logits, features)

    def read(self, pixels: Tensor) -> PrefixMemory:
        return self.remember(self.encode(pixels))

    def step(self, tokens: Tensor, memory: PrefixMemory, past: TextCache | None) -> tuple[Tensor, TextCache]:
        if past is not None and self.fixed and compute.pays_to_record(tokens):
            return self._recordings.step(tokens, len(memory), [], past)
        copies = len(tokens) // len(memory)
        past = past or memory.begin(copies)
        if tokens.shape[1] == 0:  # the text begins with nothing: the prefix alone predicts its first word
            return memory.first_logits.repeat_interleave(copies, 0), past
        return self._read_on(self.gpt.transformer.wte(tokens), past), past

    @cached_property
    def _recordings(self) -> Recordings:
        return Recordings(self._write)

    def _write(
        self, tokens: Tensor, position: Tensor, words: Tensor, newest: Tensor, unseen: Tensor, _: Sequence[Tensor]
    ) -> Tensor:
        """A step as `Recordings` records it."""
        embedded = self.gpt.transformer.wte(tokens) + self.gpt.transformer.wpe(position)
        return self.gpt2(embedded, words, newest, unseen)

    def _read_on(self, embedded: Tensor, past: TextCache) -> Tensor:
        """Logits after the last position `[rows, vocabulary]`. embedded `[rows, t, width]`"""
        before, t = past.length, embedded.shape[1]
        positions = torch.arange(before, before + t, device=embedded.device)
        past.extend(t)
        write = self.gpt2
        if t == 1 and before and self.fixed:
            self.steps += 1
            if self.steps > self.traced_after or "traced" in vars(self):
                write = self.traced
        return write(embedded + self.gpt.transformer.wpe(positions), past.words, past.places)

    @cached_property
    def traced(self) -> Callable[..., Tensor]:
        """`gpt2` for one more token of every text."""
        word = torch.zeros(1, 1, self.gpt.config.n_embd, dtype=self.dtype, device=self.device)
        past = TextCache.begin(1, len(self.gpt.transformer.h), self.gpt.config.n_head, word)
        past.extend(2)
        return compute.traced(self.gpt2, self.gpt, word, past.words, past.places)

    def gpt2(self, hidden: Tensor, words: Tensor, places: Tensor, unseen: Tensor | None = None) -> Tensor:
        """GPT-2 layer by layer over the last t positions → logits after the last `[rows, vocabulary]`.

        hidden `[rows, t, width]`; words and places of a `TextCache` that was extended by t; unseen: for
        `attend_shared`, whose words and places these are then.
        """
        attend = attend_words if unseen is None else partial(attend_shared, unseen=unseen)
        for block, of_text in zip(self.gpt.transformer.h, words, strict=True):
            projected = block.attn.c_attn(block.ln_1(hidden)).unflatten(2, (3, self.gpt.config.n_head, -1))
            mixed = attend(projected[:, :, 0].transpose(1, 2), projected[:, :, 1:], of_text, places)
            hidden = hidden + block.attn.c_proj(mixed.transpose(1, 2).flatten(2))
            hidden = hidden + block.mlp(block.ln_2(hidden))
        return self.gpt.lm_head(self.gpt.transformer.ln_f(hidden[:, -1]))

    def gists(self, texts: Sequence[Sequence[int]]) -> np.ndarray | None:
        """The texts' embeddings as their tokens alone suggest them, unit vectors `[texts, joint_dim]`."""
        if self.gist is None:
            return None
        sums = [self.gist(torch.tensor(ids, dtype=torch.long, device=self.device)).float().sum(0) for ids in texts]
        return F.normalize(torch.stack(sums), dim=-1).cpu().numpy()


class PrefixProcessor:
    """Pictures → pixels as the backbone wants them; ids ↔ text by the checkpoint's byte-pair vocabulary."""

    def __init__(self, preprocess: Preprocess, tokenizer: Tokenizer, config) -> None:
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self.start_ids: list[int] = []
        self.eos_ids = tuple(config.eos_ids)
        self.pad_id = config.pad_id

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids)).strip()

    def save_pretrained(self, folder: str | Path) -> None:
        self.tokenizer.save(str(Path(folder) / "tokenizer.json"))


class PrefixSpeaker(SearchedDecoder[PrefixMemory]):
    """Says with every reading what the checkpoint predicts: the prompt's embedding, and those of the candidates."""

    model: PrefixDecoder

    def __init__(self, model: PrefixDecoder, processor: PrefixProcessor, positions: int | None = None) -> None:
        super().__init__(model, processor, positions)
        self.uses = super().uses | ({"quality"} if self._judges else set())

    @property
    def predicts(self) -> bool:
        """Its readings tell where the picture's prompt lies."""
        return self.model.head is not None

    @property
    def _judges(self) -> bool:
        """Its candidates can be judged in more ways than one."""
        return self.predicts and self.model.gist is not None

    def readings(
        self, memory: PrefixMemory, seeds: Sequence[int] | None, decoding: Decoding, request: Request = PLAIN_REQUEST
    ) -> list[Reading]:
        fast, changes = request.quality == "fast", request.decoding
        if fast and isinstance(changes, DecodingChanges) and changes.num_candidates is None:
            decoding = replace(decoding, num_return_sequences=min(FAST, decoding.num_return_sequences))
        readings = super().readings(memory, seeds, decoding, request)
        if not self.predicts:
            return readings
        embeddings = memory.features.float().cpu().numpy()
        shortlist = SHORTLIST if self._judges and not fast else 0
        return [
            replace(reading, embedding=vector, shortlist=shortlist)
            for reading, vector in zip(readings, embeddings, strict=True)
        ]

    def reading(self, hypotheses: Sequence[Hypothesis]) -> Reading:
        gists = self.model.gists([text.ids for text in hypotheses])
        return replace(super().reading(hypotheses), gists=gists)
