"""The library names its settings; the command line shows them as the flags that a user types."""

from __future__ import annotations

import re

from captioner.cli.options import InputFlags, TextFlags, names
from captioner.contracts import LoadOptions, Request

SERVING = ("api_key", "no_auth", "allow_urls")
SETTINGS = (
    *(name for group in (InputFlags, Request, TextFlags, LoadOptions) for name in names(group)),
    "expected",
    *SERVING,
)
FLAGS = {name: f"--{name.replace('_', '-')}" for name in SETTINGS}
FLAGS |= {"num_return_sequences": "--num-candidates", "max_clip_tokens": "--max-tokens-clip"}
_PHRASES = {
    r"\b([Ss])et do_sample to false": r"\1ay --no-do-sample",
    r"\b([Ss])et do_sample( to true)?": r"\1ay --do-sample",
    r"\bSet (recursive|resume|overwrite)\b": r"Add --\1",
    r"\bset (recursive|resume|overwrite)\b": r"add --\1",
    r"\b(with|instead of) resume\b": r"\1 --resume",
    r"^overwrite (?=does not )": "--overwrite ",
    r"\bname an(other)? output\b": r"name an\1 --out",
    r"^k must be\b": "--k must be",
    r"\bset k to\b": "set --k to",
    r"\bas terms\b": "with --terms FILE",
    r"\b([Ll])eave embedder out\b": r"\1eave --embedder out",
    r"\bprecision bf16\b": "--precision bf16",
}
"""What the library says of a setting that is switched on or chosen → what is typed."""
_SPELLED = re.compile(rf"(?<![\w/.-])(?:{'|'.join(name for name in FLAGS if '_' in name)})(?![\w/-]|\.\w)")
_NAMED = re.compile(rf"\b(?:{'|'.join(FLAGS)})\b(?!-)")
_NAMING = re.compile(r"^\w+(?= must be )|^.+(?= would change nothing)|(?<= has no use for ).+?(?=:)")
"""Where a message names settings alone, so that a common word is a setting too."""


def with_flags(message: str) -> str:
    """A message of the library in the words of the command line: max_new_tokens → --max-new-tokens."""
    for pattern, words in _PHRASES.items():
        message = re.sub(pattern, words, message)
    message = _NAMING.sub(lambda names: _NAMED.sub(lambda name: FLAGS[name[0]], names[0]), message)
    return _SPELLED.sub(lambda name: FLAGS[name[0]], message)
