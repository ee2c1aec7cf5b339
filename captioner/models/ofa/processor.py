"""OFA's ways in and out: pictures squashed to a square, byte pairs, and tokens for image codes and coordinates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from captioner.errors import BadCheckpoint
from captioner.models.parts import checkpoint
from captioner.models.parts.backbones.preprocess import RESAMPLING, Preprocess
from captioner.models.parts.narrow import narrowed

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
CODES = [f"<code_{n}>" for n in range(8192)]
BINS = [f"<bin_{n}>" for n in range(1000)]
QUESTION = "what does the image describe?"


class OFAProcessor:
    """Pixels, token ids and questions."""

    def __init__(self, preprocess: Preprocess, tokenizer: Tokenizer) -> None:
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        tokenizer.encode_special_tokens = True  # "</s>" within a prompt is text; <bin_7> is a coordinate
        start, self.pad_id, end = (narrowed(tokenizer.token_to_id(token), int) for token in SPECIAL[:3])
        self.first_code = narrowed(tokenizer.token_to_id(CODES[0]), int)
        self.start_ids = [start]
        self.eos_ids: tuple[int, ...] = (end,)

    @classmethod
    def from_folder(cls, folder: Path, size: int) -> OFAProcessor:
        """The processor of a checkpoint. size: pixels a side where no preprocessor_config.json says so."""
        source = checkpoint.folder_with(folder, "vocab.json", "merges.txt")
        with checkpoint.reading(source):
            preprocess = Preprocess.from_folder(source, Preprocess(size))
        return cls(preprocess, read_tokenizer(source / "vocab.json", source / "merges.txt"))

    def question(self, text: str) -> list[int]:
        """What the encoder reads: in lower case, as the model was trained."""
        return [*self.start_ids, *self.encode(text.strip().lower()), *self.eos_ids]

    def encode(self, text: str) -> list[int]:
        """Text → ids without any special token. A first word has the space before it that all words have."""
        text = f" {text}" if text[:1].isalnum() else text
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Ids → text; special tokens, image codes and coordinates left out."""
        return self.tokenizer.decode([i for i in ids if i < self.first_code], skip_special_tokens=True).strip()

    def save_pretrained(self, folder: str | Path) -> None:
        """vocab.json, merges.txt and preprocessor_config.json."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.tokenizer.model.save(str(folder))
        settings = {
            "size": {"height": self.preprocess.size, "width": self.preprocess.size},
            "resample": RESAMPLING[self.preprocess.resample],
            "image_mean": self.preprocess.mean,
            "image_std": self.preprocess.std,
        }
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def read_tokenizer(vocabulary: Path, merges: Path) -> Tokenizer:
    """The byte pairs of BART, with the codes and coordinates that OFA puts after them."""
    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges), unk_token="<unk>"))
    except Exception as error:  # the only class that tokenizers raises
        raise BadCheckpoint(f"{vocabulary} and {merges.name} are no tokenizer ({error}). Fetch them again.") from error
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if absent := [token for token in SPECIAL[:4] if tokenizer.token_to_id(token) is None]:
        raise BadCheckpoint(f"{vocabulary} lacks {', '.join(absent)}: it is not OFA's vocabulary.")
    tokenizer.add_special_tokens(SPECIAL[:4] if tokenizer.token_to_id("<mask>") is None else SPECIAL)
    tokenizer.add_tokens(CODES + BINS)
    return tokenizer
