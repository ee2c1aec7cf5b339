"""The library names its settings; command lines show them as the flags that a user types."""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAMING = re.compile(
    r"^\w+(?= must be )|^.+(?= would change nothing)|(?<= has no use for ).+?(?=:)"
    r"|(?:(?<= begun with other settings: )|(?<=; ))\w+(?= was .+ and is now )"
)
"""Where a message names settings alone, so that a common word is a setting too."""


def flag(setting: str) -> str:
    """text_column → --text-column."""
    return "--" + setting.replace("_", "-")


OF_PAIRS = {setting: flag(setting) for setting in ("text_column", "image_column", "split")}
"""Of every command that reads pictures with their prompts."""


def spelled(message: str, flags: Mapping[str, str] = OF_PAIRS) -> str:
    """A message in the words of a command line that has these flags for settings: text_column → --text-column.

    What stands in quotes, or is part of a path, is the user's own.
    """
    named = re.compile(rf"(?<![\w-])(?:{'|'.join(flags)})\b(?!-)")
    unmistakable = re.compile(rf"(?<![\w/.'\"-])(?:{'|'.join(name for name in flags if '_' in name)})(?![\w/-]|\.\w)")
    message = _NAMING.sub(lambda names: named.sub(lambda name: flags[name[0]], names[0]), message)
    return unmistakable.sub(lambda name: flags[name[0]], message)
