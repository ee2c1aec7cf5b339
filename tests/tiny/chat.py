"""What tiny chat models share: byte-pair words with special tokens of their own, and the files of a processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2Tokenizer

from tests.tiny.resnet_lstm_gpt2 import tokenizer

END = "<|im_end|>"


def words(**named: str) -> PreTrainedTokenizerFast:
    """Byte pairs, begun and ended by tokens; named: special tokens that a processor asks for by these names."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer().backend_tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token=END,
        pad_token="<pad>",
        extra_special_tokens=named,
    )


def qwen_words(**named: str) -> Qwen2Tokenizer:
    """The same in the class that Qwen's checkpoints name; its texts have no beginning."""
    pairs = json.loads(tokenizer().backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in pairs["merges"]]
    return Qwen2Tokenizer(pairs["vocab"], merges, eos_token=END, pad_token="<pad>", extra_special_tokens=named)


def save_processor(
    folder: Path, name: str, pixels: Any, tokens: PreTrainedTokenizerBase, template: str | None, **settings: Any
) -> None:
    """A processor as the Hub has it: a file for each part, its class named in all of them."""
    pixels.save_pretrained(folder)
    tokens.save_pretrained(folder)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": name, **settings}), encoding="utf-8")


def save_video_part(folder: Path, name: str) -> None:
    """The file of a part that captions have no use for."""
    (folder / "video_preprocessor_config.json").write_text(json.dumps({"video_processor_type": name}), encoding="utf-8")
