"""CLIP or SigLIP as a judge: pictures and texts as unit vectors, and which of many texts fits a picture best."""

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

from captioner import compute
from captioner.contracts import LoadOptions
from captioner.errors import BadCheckpoint, MissingExtra
from captioner.models.parts import checkpoint
from captioner.models.parts.backbones.backbones import BACKBONES
from captioner.models.parts.backbones.preprocess import Preprocess
from captioner.models.parts.clip_texts import silu_for_quick_gelu, text_vectors
from captioner.models.parts.narrow import narrowed

JointModel = CLIPModel | SiglipModel | Siglip2Model
MODELS: dict[str, type[JointModel]] = {
    checkpoint.config_class(cls).model_type: cls for cls in (CLIPModel, SiglipModel, Siglip2Model)
}
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer_config.json")
AT_ONCE = 512
"""SigLIP's texts in one pass: enough to fill a processor, little enough for its memory."""


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
        silu_for_quick_gelu(model)
        return cls(compute.prepare(model, options), processor, tokenizer, mark)

    @compute.inference_mode()
    def pictures(self, images: Sequence[Image]) -> Tensor:
        """Unit vectors `[n, d]`."""
        if isinstance(self.processor, Preprocess):
            inputs = BatchFeature({"pixel_values": self.processor(images)})
        else:
            inputs = self.processor(list(images), return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        return _unit(self.model.get_image_features(**inputs).pooler_output)

    @compute.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors `[n, d]`; what is too long is cut."""
        return self._vectors([self._ids(texts, truncate=True)])[0]

    def tokens(self, text: str) -> int:
        """The length of a text, start and end included."""
        return len(self._ids([text])[0])

    @compute.inference_mode()
    def similarities(self, pictures: Tensor, texts: Sequence[Sequence[str]]) -> list[Tensor]:
        """Each picture `[d]` with each of its own texts: cosines; −inf where a text is past the limit."""
        ids = [self._ids(of_picture) for of_picture in texts]
        fitting = [[n for n, text in enumerate(rivals) if len(text) <= self.limit] for rivals in ids]
        short = [[rivals[n] for n in indices] for rivals, indices in zip(ids, fitting, strict=True)]
        scores = []
        for picture, rivals, indices, of_texts in zip(pictures, ids, fitting, self._vectors(short), strict=True):
            scores.append(torch.full((len(rivals),), -torch.inf, dtype=picture.dtype))
            scores[-1][indices] = (of_texts @ picture).cpu()
        return scores

    def _ids(self, texts: Sequence[str], truncate: bool = False) -> list[list[int]]:
        if not texts:
            return []
        if isinstance(self.model, CLIPModel):
            texts = list(map(straightened, texts))
        cut = {"truncation": True, "max_length": self.limit} if truncate else {}
        return self.tokenizer(list(texts), verbose=False, **cut).input_ids  # it would warn of long ones

    def _vectors(self, ids: list[list[list[int]]]) -> list[Tensor]:
        """Unit vectors `[n, d]` of each list of texts."""
        if isinstance(self.model, CLIPModel):
            return [_unit(vectors) for vectors in text_vectors(self.model, ids)]
        flat = [text for texts in ids for text in texts]
        parts = [self._padded(flat[at : at + AT_ONCE]) for at in range(0, len(flat), AT_ONCE)]
        empty = torch.empty(0, self.text_config.projection_size, dtype=self.model.dtype, device=self.model.device)
        vectors = torch.cat([*parts, _unit(empty)])
        return list(vectors.split([len(texts) for texts in ids]))

    def _padded(self, ids: list[list[int]]) -> Tensor:
        """SigLIP has only seen texts of the full length."""
        padding = self.tokenizer.pad_token_id
        rows = [F.pad(torch.tensor(text), (0, self.limit - len(text)), value=padding) for text in ids]
        if self.tokenizer.padding_side == "left":
            rows = [row.roll(self.limit - len(text)) for row, text in zip(rows, ids, strict=True)]
        return _unit(self.model.get_text_features(torch.stack(rows).to(self.model.device)).pooler_output)


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
