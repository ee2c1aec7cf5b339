"""CLIP or SigLIP as a judge: pictures and texts as unit vectors, and which of many texts fits a picture best.

CLIP reads text from left to right. So where many texts begin alike, as the extensions of one prompt do, their common
beginning is read once and its keys and values are shared: a term of five tokens costs five, not seventy.
"""

from __future__ import annotations

import hashlib
import html
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    BatchFeature,
    CLIPModel,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Siglip2Model,
    SiglipModel,
)
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from captioner import compute
from captioner.contracts import LoadOptions
from captioner.errors import BadCheckpoint, MissingExtra
from captioner.models.parts import checkpoint
from captioner.models.parts.backbones.backbones import BACKBONES
from captioner.models.parts.backbones.preprocess import Preprocess
from captioner.models.parts.narrow import all_of, narrowed

JointModel = CLIPModel | SiglipModel | Siglip2Model
MODELS: dict[str, type[JointModel]] = {
    checkpoint.config_class(cls).model_type: cls for cls in (CLIPModel, SiglipModel, Siglip2Model)
}
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer_config.json")
AT_ONCE = 512
"""Texts read in one pass: enough to fill a processor, little enough for its memory."""


class Ranker:
    """Any CLIP or SigLIP checkpoint of transformers."""

    def __init__(
        self,
        model: JointModel,
        processor: BaseImageProcessor | Preprocess,
        tokenizer: PreTrainedTokenizerBase,
        fingerprint: str = "",
    ) -> None:
        self.model = model
        self.processor = processor
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        """The same for whatever gives the same text vectors."""
        self.text_config = narrowed(model.config.text_config, PreTrainedConfig)
        self.limit: int = self.text_config.max_position_embeddings
        """Tokens the text tower can read: 77 for CLIP, 64 for SigLIP."""
        self.causal = isinstance(model, CLIPModel)

    @classmethod
    def from_folder(cls, folder: Path, options: LoadOptions) -> Ranker:
        kind = checkpoint.read_config(folder).get("model_type")
        if kind not in MODELS:
            raise BadCheckpoint(f"{folder} holds a {kind!r} model: terms are ranked by a CLIP or SigLIP. Name one.")
        try:
            with checkpoint.reading(folder):
                if kind == "clip":
                    processor = replace(Preprocess.from_folder(folder, BACKBONES["clip"].preprocess), rounded=True)
                else:
                    processor = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except ImportError as error:
            raise MissingExtra(
                f"The tokenizer of {folder} needs another package: `pip install sentencepiece`."
            ) from error
        precision = compute.precision(options.precision, compute.device(options.device))
        model = checkpoint.read_model(MODELS[kind], folder, compute.DTYPES.get(precision, torch.float32))
        mark = _fingerprint(model, folder, precision)
        return cls(compute.prepare(model, options), processor, tokenizer, mark)

    @torch.inference_mode()
    def pictures(self, images: Sequence[Image]) -> Tensor:
        """Unit vectors `[n, d]`."""
        if isinstance(self.processor, Preprocess):
            inputs = BatchFeature({"pixel_values": self.processor(images)})
        else:
            inputs = self.processor(list(images), return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        return _unit(self.model.get_image_features(**inputs).pooler_output)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors `[n, d]`; what is too long is cut."""
        ids = self._ids(texts, truncate=True)
        order = _by_length(ids)  # like with like: little padding is read
        parts = [self._whole([ids[i] for i in order[at : at + AT_ONCE]]) for at in range(0, len(ids), AT_ONCE)]
        vectors = torch.cat(parts)
        return vectors[torch.tensor(order).argsort()]

    def tokens(self, text: str) -> int:
        """The length of a text, start and end included."""
        return len(self._ids([text])[0])

    @torch.inference_mode()
    def similarities(self, pictures: Tensor, texts: Sequence[Sequence[str]]) -> list[Tensor]:
        """Each picture `[d]` with each of its own texts: cosines; −inf where a text is past the limit."""
        ids = [self._ids(of_picture) for of_picture in texts]
        fitting = [[n for n, text in enumerate(rivals) if len(text) <= self.limit] for rivals in ids]
        short = [[rivals[n] for n in indices] for rivals, indices in zip(ids, fitting, strict=True)]
        vectors = self._extended(short) if self.causal else self._one_by_one(short)
        scores = []
        for picture, rivals, indices, of_texts in zip(pictures, ids, fitting, vectors, strict=True):
            scores.append(torch.full((len(rivals),), -torch.inf, dtype=picture.dtype))
            scores[-1][indices] = (of_texts @ picture).cpu()
        return scores

    def _ids(self, texts: Sequence[str], truncate: bool = False) -> list[list[int]]:
        if not texts:
            return []
        if self.causal:
            texts = list(map(straightened, texts))
        cut = {"truncation": True, "max_length": self.limit} if truncate else {}
        return self.tokenizer(list(texts), verbose=False, **cut).input_ids  # it would warn of long ones

    def _one_by_one(self, ids: list[list[list[int]]]) -> list[Tensor]:
        flat = [text for rivals in ids for text in rivals]
        parts = [self._whole(flat[at : at + AT_ONCE]) for at in range(0, len(flat), AT_ONCE)]
        width = self.text_config.projection_size
        vectors = torch.cat(parts) if parts else torch.empty(0, width, dtype=self._dtype, device=self.model.device)
        return list(vectors.split([len(rivals) for rivals in ids]))

    def _whole(self, ids: list[list[int]]) -> Tensor:
        """Texts as transformers reads them."""
        rows = [torch.tensor(text) for text in ids]
        # Padding stands behind CLIP's end token and cannot reach it; SigLIP has only seen texts of the full length.
        end = ids[0][-1] if self.causal else self.tokenizer.pad_token_id
        padded = pad_sequence(rows, batch_first=True, padding_value=end)
        if not self.causal:
            padded = F.pad(padded, (0, self.limit - padded.shape[1]), value=end)
            if self.tokenizer.padding_side == "left":
                padded = torch.stack([row.roll(self.limit - len(text)) for row, text in zip(padded, ids, strict=True)])
        return _unit(self.model.get_text_features(padded.to(self.model.device)).pooler_output)

    # --- CLIP's own way: what texts share is read once ----------------------------------------------------------------

    def _extended(self, ids: list[list[list[int]]]) -> list[Tensor]:
        """Unit vectors of each picture's texts, a block of every picture's in one pass."""
        width = narrowed(self._clip.config.projection_dim, int)
        vectors = [torch.empty(len(rivals), width, dtype=self._dtype, device=self.model.device) for rivals in ids]
        asked = [i for i, rivals in enumerate(ids) if rivals]
        if not asked:
            return vectors
        # At least one token of each text is left to read behind what they share.
        shared = [min(_common(ids[i]), min(map(len, ids[i])) - 1) for i in asked]
        starts = pad_sequence([torch.tensor(ids[i][0][:length]) for i, length in zip(asked, shared, strict=True)], True)
        beginnings = _Beginnings(torch.tensor(shared), [])
        self._read(starts[:, None], None, beginnings.layers)
        orders = [_by_length(ids[i]) for i in asked]
        step = max(1, AT_ONCE // len(asked))
        for at in range(0, max(map(len, orders)), step):
            blocks = [order[at : at + step] or order[-1:] for order in orders]
            tails = [[ids[i][n][length:] for n in b] for i, length, b in zip(asked, shared, blocks, strict=True)]
            of_texts = self._tails(beginnings, tails)
            for row, (i, block) in enumerate(zip(asked, blocks, strict=True)):
                vectors[i][block] = of_texts[row, : len(block)]
        return vectors

    def _tails(self, beginnings: _Beginnings, tails: list[list[list[int]]]) -> Tensor:
        """What follows the beginnings → unit vectors `[pictures, most tails, d]`; where there are fewer, filling."""
        most, longest = max(map(len, tails)), max(len(tail) for rivals in tails for tail in rivals)
        ids = torch.full((len(tails), most, longest), tails[0][0][-1])
        last = torch.zeros(len(tails), most, dtype=torch.long)
        for row, rivals in enumerate(tails):
            for column, tail in enumerate(rivals):
                ids[row, column, : len(tail)] = torch.tensor(tail)
                last[row, column] = len(tail) - 1
        x = self._read(ids, beginnings)  # [pictures, most, longest, width]
        at_end = x.gather(2, last.to(x.device)[..., None, None].expand(-1, -1, 1, x.shape[-1])).squeeze(2)
        return _unit(self._clip.text_projection(self._clip.text_model.final_layer_norm(at_end)))

    def _read(
        self, ids: Tensor, beginnings: _Beginnings | None, keep: list[tuple[Tensor, Tensor]] | None = None
    ) -> Tensor:
        """CLIP's text tower over ids `[pictures, m, t]`: m texts that go on where their picture's beginning ends.

        Into `keep` go the keys and values of every layer, `[pictures, heads, t, head_dim]`, where m is 1.
        """
        text, heads, device = self._clip.text_model, self.text_config.num_attention_heads, self.model.device
        pictures, _, t = ids.shape
        before = torch.zeros(pictures, dtype=torch.long) if beginnings is None else beginnings.lengths
        positions = (before[:, None] + torch.arange(t)).clamp(max=self.limit - 1).to(device)  # only padding is clamped
        x = text.embeddings.token_embedding(ids.to(device)) + text.embeddings.position_embedding(positions)[:, None]
        hidden = torch.ones(t, t, dtype=torch.bool, device=device).triu(1)  # [t, t]: the future
        for index, layer in enumerate(all_of(text.encoder.layers, CLIPEncoderLayer)):
            attention, y = layer.self_attn, layer.layer_norm1(x)
            query, keys, values = (
                part(y).unflatten(-1, (heads, -1)).permute(0, 3, 1, 2, 4)  # [pictures, heads, m, t, head_dim]
                for part in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            if keep is not None:
                keep.append((keys.squeeze(2), values.squeeze(2)))
            scores = (query @ keys.transpose(-1, -2) * attention.scale).masked_fill(hidden, -torch.inf)
            if beginnings is None:
                mixed = scores.softmax(-1) @ values
            else:
                mixed = _with_beginning(
                    query * attention.scale, scores, values, *beginnings.layers[index], before.to(device)
                )
            x = x + attention.out_proj(mixed.permute(0, 2, 3, 1, 4).flatten(3))
            x = x + layer.mlp(layer.layer_norm2(x))
        return x

    @property
    def _clip(self) -> CLIPModel:
        return narrowed(self.model, CLIPModel)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self.model.dtype, torch.float32)


class _Beginnings:
    """The beginnings that texts share, one a picture: their lengths, and each layer's keys and values."""

    def __init__(self, lengths: Tensor, layers: list[tuple[Tensor, Tensor]]) -> None:
        self.lengths = lengths
        self.layers = layers


def _by_length(texts: list[list[int]]) -> list[int]:
    """The indices of texts, shortest first."""
    return sorted(range(len(texts)), key=lambda index: len(texts[index]))


def _common(texts: list[list[int]]) -> int:
    """How many ids these texts begin with together."""
    first, last = min(texts), max(texts)  # whatever these two share, all between them share
    return next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def _with_beginning(
    query: Tensor, scores: Tensor, values: Tensor, first_keys: Tensor, first_values: Tensor, lengths: Tensor
) -> Tensor:
    """Attention of m texts a picture to themselves and to their beginning, which is there once, in one softmax.

    query [pictures, heads, m, t, head_dim], scaled; scores [pictures, heads, m, t, t] of the texts themselves;
    first_* [pictures, heads, p, head_dim], of which lengths [pictures] count.
    """
    m, t = query.shape[2:4]
    p = first_keys.shape[2]
    unread = torch.arange(p, device=lengths.device) >= lengths[:, None]  # [pictures, p]
    over_first = query.flatten(2, 3) @ first_keys.transpose(-1, -2)  # [pictures, heads, m·t, p]
    over_first = over_first.masked_fill(unread[:, None, None], -torch.inf).unflatten(2, (m, t))
    weights = torch.cat((over_first, scores), -1).softmax(-1)
    seen = (weights[..., :p].flatten(2, 3) @ first_values).unflatten(2, (m, t))
    return seen + weights[..., p:] @ values


def _unit(vectors: Tensor) -> Tensor:
    """Of length 1, in at least single precision."""
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)


def straightened(text: str) -> str:
    """A text as CLIP's own tokenizer and open_clip's read it (by ftfy's rules), where transformers' reads it as it is:
    curly quotes straight, wide letters and ligatures plain, entities of HTML as what they stand for, no control
    characters. It makes a difference for 369 of the 106,570 lines of clip-interrogator's lists, and is theirs for all.
    """
    return unicodedata.normalize("NFC", html.unescape(html.unescape(text)).translate(_STRAIGHT))


_STRAIGHT: dict[int, str | None] = {
    **dict.fromkeys((0x2BC, *range(0x2018, 0x201C)), "'"),
    **dict.fromkeys(range(0x201C, 0x2020), '"'),
    **{
        code: unicodedata.normalize("NFKC", chr(code))
        for code in (0x3000, *range(0xFB00, 0xFB07), *range(0xFF01, 0xFFF0))
    },
    **dict.fromkeys((*range(9), 0xB, *range(0xE, 0x20), 0x7F, 0xFEFF)),
}


def _fingerprint(model: JointModel, folder: Path, precision: str) -> str:
    """A hash of all that a text's vector depends on: how it is read, tokenizer, configuration, weights, precision."""
    digest = hashlib.sha256(f"{precision} {straightened.__name__}".encode())
    for file in (folder / name for name in ("config.json", *TOKENIZER_FILES)):
        if file.is_file():
            digest.update(file.read_bytes())
    for name, weight in sorted(model.state_dict().items()):
        if name.startswith("text_"):
            digest.update(name.encode() + weight.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
