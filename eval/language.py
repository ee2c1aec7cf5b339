"""BERTScore and perplexity with any encoder and any language model of transformers: asked for, never by default.

BERTScore (Zhang et al., 2020): every token of one text is matched with the most alike one of the other by the cosine of
their contextual embeddings; the matches of the predicted tokens give precision, those of the true ones recall. As the
authors' own package by default: neither weighted by rarity nor rescaled; the special tokens at both ends can be
matched, but do not count themselves.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from captioner import compute, zoo
from captioner.contracts import LoadOptions
from captioner.errors import BadCheckpoint
from captioner.models.parts import checkpoint
from captioner.sinks.row import groups

BEST_LAYERS = {
    ("bert", 12): 9,
    ("bert", 24): 18,
    ("roberta", 6): 5,
    ("roberta", 12): 10,
    ("roberta", 24): 17,
    ("distilbert", 6): 5,
    ("deberta", 12): 9,
    ("deberta", 24): 16,
}
"""(type, layers) → the layer that agrees best with people, as the authors found; of other encoders the last counts."""
BATCH = 16


@dataclass(frozen=True)
class Tokens:
    """A text as the encoder sees it."""

    vectors: Tensor
    """Unit vectors `[T, d]`, those of special tokens with them."""
    counted: Tensor
    """`[T]`: False for special tokens."""


class BertScore:
    """Precision, recall and F1 of pairs of texts."""

    def __init__(self, name: str, options: LoadOptions | None = None) -> None:
        folder = zoo.weights_folder(os.path.expanduser(name))
        self.model = _load(AutoModel, folder, options or LoadOptions())
        self.tokenizer = _tokenizer(folder)
        config = self.model.config
        if config.is_encoder_decoder or not hasattr(config, "num_hidden_layers"):  # a T5; a CLIP, which has two towers
            raise BadCheckpoint(
                f"{folder} holds a {config.model_type!r} model: BERTScore needs a text encoder, e.g. roberta-large."
            )
        self.layer = BEST_LAYERS.get((config.model_type, config.num_hidden_layers), config.num_hidden_layers)
        self.limit = _limit(self.tokenizer, config)

    def f1(self, predicted: Sequence[str], true: Sequence[str]) -> np.ndarray:
        """F1 `[n]` of each pair; 0 where a text has no token."""
        return self.scores(predicted, true)[:, 2]

    def scores(self, predicted: Sequence[str], true: Sequence[str]) -> np.ndarray:
        """`[n, 3]`: precision, recall, F1 of each pair."""
        vectors = self._tokens(list(dict.fromkeys([*predicted, *true])))
        return np.array([_match(vectors[a], vectors[b]) for a, b in zip(predicted, true, strict=True)]).reshape(-1, 3)

    @torch.inference_mode()
    def _tokens(self, texts: list[str]) -> dict[str, Tokens]:
        vectors: dict[str, Tokens] = {}
        for batch in groups(sorted(texts, key=len), BATCH):
            # Not padded by the tokenizer: some have no padding token.
            encoded = self.tokenizer(batch, truncation=True, max_length=self.limit, return_special_tokens_mask=True)
            ids, mask = _padded(encoded["input_ids"], self.model.device)
            hidden = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            states = F.normalize(hidden.hidden_states[self.layer].float(), dim=-1).cpu()  # [B, T, d]
            for text, state, special in zip(batch, states, encoded["special_tokens_mask"], strict=True):
                vectors[text] = Tokens(state[: len(special)], torch.tensor(special) == 0)
        return vectors


class Perplexity:
    """exp of the mean negative log-likelihood of a text's tokens, the first one given the model's start token."""

    def __init__(self, name: str, options: LoadOptions | None = None) -> None:
        folder = zoo.weights_folder(os.path.expanduser(name))
        self.model = _load(AutoModelForCausalLM, folder, options or LoadOptions())
        self.tokenizer = _tokenizer(folder)
        self.limit = _limit(self.tokenizer, self.model.config)
        start = self.tokenizer.bos_token_id
        self.start = self.tokenizer.eos_token_id if start is None else start

    @torch.inference_mode()
    def of(self, texts: Sequence[str]) -> np.ndarray:
        """`[n]`; NaN for a text without a token to predict."""
        values = np.full(len(texts), np.nan)
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        for rows in groups(order, BATCH):
            encoded = self.tokenizer([texts[row] for row in rows], add_special_tokens=False, verbose=False)["input_ids"]
            begin = [] if self.start is None else [self.start]
            sequences = [(begin + ids)[: self.limit] for ids in encoded]
            present = [(row, ids) for row, ids in zip(rows, sequences, strict=True) if len(ids) > 1]
            if not present:
                continue
            ids, mask = _padded([ids for _, ids in present], self.model.device)
            logits = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()  # [B, T - 1, vocabulary]
            loss = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * mask[:, 1:]  # [B, T - 1]
            means = loss.sum(1) / mask[:, 1:].sum(1)
            values[[row for row, _ in present]] = means.exp().cpu().numpy()
        return values


def _match(predicted: Tokens, true: Tokens) -> tuple[float, float, float]:
    if not predicted.counted.any() or not true.counted.any():
        return 0.0, 0.0, 0.0
    alike = predicted.vectors @ true.vectors.T  # [predicted tokens, true tokens]
    precision = float(alike.max(1).values[predicted.counted].mean())
    recall = float(alike.max(0).values[true.counted].mean())
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total > 0 else 0.0


def _padded(ids: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids `[B, T]` and which of them count; what is padded is seen by no other token."""
    rows = [torch.tensor(row, dtype=torch.long) for row in ids]
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return pad_sequence(rows, batch_first=True).to(device), mask.to(device)


def _load(kind: Any, folder: Path, options: LoadOptions) -> PreTrainedModel:
    checkpoint.check_files(folder)
    precision = compute.precision(options.precision, compute.device(options.device))
    dtype = torch.float32 if precision == "int8" else compute.DTYPES.get(precision, torch.float32)
    with checkpoint.reading(folder):
        model, info = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
    if missing := [key for key in info["missing_keys"] if "pooler" not in key]:  # the pooled vector is not used
        raise BadCheckpoint(f"{folder} lacks weights that {type(model).__name__} needs, e.g. {min(missing)}.")
    return model.eval().to(compute.device(options.device))


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    with checkpoint.reading(folder):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _limit(tokenizer: PreTrainedTokenizerBase, config: Any) -> int:
    """Tokens that the model reads at most: RoBERTa counts two positions that are no tokens."""
    positions = getattr(config, "max_position_embeddings", None) or math.inf
    offset = 2 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    return int(min(positions - offset, tokenizer.model_max_length, 4096))
