"""The library names its settings; the command line shows them as the flags that a user types."""

from __future__ import annotations

import re

from captioner.cli.options import InputFlags, RankingFlags, TextFlags, names
from captioner.contracts import LoadOptions, Request
from captioner.run.flags import OF_PAIRS, flag, spelled

SERVING = ("api_key", "no_auth", "allow_urls")
SETTINGS = (
    *(name for group in (InputFlags, RankingFlags, Request, TextFlags, LoadOptions) for name in names(group)),
    "expected",
    *SERVING,
)
FLAGS = {name: flag(name) for name in SETTINGS}
FLAGS |= OF_PAIRS | {"num_return_sequences": "--num-candidates", "max_clip_tokens": "--max-tokens-clip"}
_PHRASES = {
    r"\b([Ss])et do_sample to false": r"\1ay --no-do-sample",
    r"\b([Ss])et do_sample( to true)?": r"\1ay --do-sample",
    r"\bSet (recursive|resume|overwrite)\b": r"Add --\1",
    r"\bset (recursive|resume|overwrite|partial)\b": r"add --\1",
    r"\b(with|instead of) resume\b": r"\1 --resume",
    r"^overwrite (?=does not )": "--overwrite ",
    r"\bname an(other)? output\b": r"name an\1 --out",
    r"^k must be\b": "--k must be",
    r"\bset k to\b": "set --k to",
    r"\b(list|lists of your own) as terms\.": r"\1 with --terms FILE.",
    r"\b([Ll])eave embedder out\b": r"\1eave --embedder out",
    r"\bprecision (bf16|fp32)\b": r"--precision \1",
    r"\bset trust_remote_code\.": "add --trust-remote-code.",
    r"^attention (?=is about )": "--attention ",
    r"^replace (?=found )": "--replace ",
    r"\bleave out metadata\.": "leave out --metadata.",
    r"\bby metadata only (?=no model is)": "by --metadata only ",
    r"\bSet metadata to first, and\b": "Say --metadata first, and",
    r"\bSet metadata to first or only\.": "Say --metadata first or only.",
    r"\bset embed or consensus\.": "add --embed or --consensus.",
    r"(settings: |; )clean was not given and is now false\b": r"\1--raw was not given and now is",
    r"(settings: |; )clean was false and is now not given\b": r"\1--raw was given and now is not",
    r"\bname a model to say that all\b": "name a --model to say that all",
    r"\bor a file with one text a line\b": "or --file FILE with one text a line",
    r"\bset normalize to true or false\.": "say --normalize or --no-normalize.",
    r"\bthat makes them as clip\.": "that makes them with --clip.",
}
"""What the library says of a setting that is switched on or chosen → what is typed. As much of a sentence as no file
is called."""


def with_flags(message: str) -> str:
    """A message of the library in the words of the command line: max_new_tokens → --max-new-tokens."""
    for pattern, words in _PHRASES.items():
        message = re.sub(pattern, words, message)
    return spelled(message, FLAGS)
