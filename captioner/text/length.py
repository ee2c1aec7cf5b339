"""How long a text is to a model that will read it, and where it is cut so that it fits."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.text.clean import drop_dangling

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CLIP_MERGES = Path(__file__).parent.parent / "bundled" / "clip" / "merges.txt.gz"
CLIP_LIMIT = 77
"""Tokens that CLIP's text tower reads, start and end included."""
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"

_BOUNDARIES = (",", r"(?<=[.!?]) ", r"\s", "(?s:.)")
"""Where a text may end, the best first: before a comma, after a sentence, after a word, anywhere."""


def cut_to_tokens(text: str, count: Callable[[str], int], limit: int) -> str:
    """The longest beginning with `count` ≤ limit that ends before a comma; only if no comma term fits, inside one."""
    if count(text) <= limit:
        return text
    for boundary in _BOUNDARIES:
        for match in reversed(list(re.finditer(boundary, text))):
            piece = text[: match.start()].rstrip(" ,")
            if boundary == r"\s":
                piece = drop_dangling(piece).rstrip(" ,")
            if piece and count(piece) <= limit:
                return piece
    return ""


def clip_tokens(text: str) -> int:
    """How many tokens CLIP's text tower would read, its start and end included (it truncates at 77)."""
    text = text.encode("utf-8", "replace").decode()  # half a surrogate pair has no bytes
    return 2 + len(clip_tokenizer().encode(text, add_special_tokens=False).ids)


def clip_length(text: str) -> tuple[int, int | None]:
    """`clip_tokens`, and the character where CLIP's text tower stops reading, if it does not read all."""
    encoded = clip_tokenizer().encode(text.encode("utf-8", "replace").decode(), add_special_tokens=False)
    most = CLIP_LIMIT - 2
    return 2 + len(encoded.ids), encoded.offsets[most][0] if len(encoded.ids) > most else None


def clip_tokens_of(texts: Sequence[str]) -> list[int]:
    """`clip_tokens` of many texts, while other threads work on."""
    encoded = clip_tokenizer().encode_batch_fast(
        [text.encode("utf-8", "replace").decode() for text in texts], add_special_tokens=False
    )
    return [2 + len(one.ids) for one in encoded]


@lru_cache(maxsize=1)
def clip_tokenizer() -> Tokenizer:
    """CLIP's byte-pair encoding, built as transformers' `CLIPTokenizer` builds it."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    lines = gzip.decompress(CLIP_MERGES.read_bytes()).decode("utf-8").splitlines()[1:]  # the first is a heading
    merges = [(first, second) for first, second in map(str.split, lines)]
    letters = _byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), CLIP_START, CLIP_END]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=merges,
            end_of_word_suffix="</w>",
            unk_token=CLIP_END,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (CLIP_START, CLIP_END)])
    return tokenizer


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte, in the order of CLIP's vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
