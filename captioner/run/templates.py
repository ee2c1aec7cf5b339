"""What is asked, and the words around a text, may speak of the picture: "Describe {name} from {folder}, tagged {tags}."
is filled in for each one.

{name} is the file's name without its ending, {folder} the folder it lies in, {concept} the same without the number
that kohya's folders begin with, {tags} the caption beside it (.txt or .caption), {metadata} the prompt that it carries.
Of a picture in a tar or a table, they are what that calls it and keeps beside it. Where there is none, nothing takes
its place. A brace that is meant is written twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from captioner.contracts import Request
from captioner.errors import BadImage, BadInput, printable
from captioner.images import Source, is_url
from captioner.images.metadata import read_parameters

if TYPE_CHECKING:
    from captioner.text.finish import Finish

FIELDS = ("prompt", "question", "instruction", "prefix", "suffix")
"""Of a request, and of how a text is finished; each may hold variables."""
PARTS = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
Said = TypeVar("Said", Request, "Finish")


def parse(said: Said) -> tuple[Said, bool]:
    """The same, and whether it has to be filled in for each picture. Where not, braces are single in it."""
    if any(_variables(text) for text in _texts(said).values()):
        return said, True
    return _replaced(said, {}), False


def filled(said: Said, source: Source) -> Said:
    """The same for one picture."""
    names = {name for text in _texts(said).values() for name in _variables(text)}
    return _replaced(said, {name: VALUES[name](source) for name in names})


def literal(text: str) -> str:
    """A text in which braces stand for themselves."""
    return text.replace("{", "{{").replace("}", "}}")


def _replaced(said: Said, values: dict[str, str]) -> Said:
    texts: dict[str, Any] = {name: _with(text, values) for name, text in _texts(said).items()}
    return replace(said, **texts)


def _texts(said: Request | Finish) -> dict[str, str]:
    return {name: text for name in FIELDS if (text := getattr(said, name, None)) is not None}


def _variables(text: str) -> set[str]:
    """Those that a text names, all of them known."""
    if any(part[0] in ("{", "}") for part in PARTS.finditer(text)):
        raise BadInput(
            f"{text!r} has a brace without its other half. One that is meant is written twice: {{{{ or }}}}."
        )
    used = {part[1] for part in PARTS.finditer(text) if part[1] is not None}
    if unknown := sorted(used - VALUES.keys()):
        known = ", ".join(f"{{{name}}}" for name in VALUES)
        raise BadInput(f"There is no variable {{{unknown[0]}}}, only {known}. A brace that is meant is written twice.")
    return used


def _with(text: str, values: dict[str, str]) -> str:
    """In one pass: what is filled in is not looked at again."""
    return PARTS.sub(lambda part: part[0][0] if part[1] is None else values[part[1]], text)


# --- what a variable stands for ---------------------------------------------------------------------------------------


def _name(source: Source) -> str:
    if source.path is not None:
        return printable(source.path.stem)
    name = source.inner or source.name
    if is_url(name):
        return printable(unquote(PurePosixPath(urlsplit(name).path).stem))
    return printable(PurePosixPath(source.inner).stem)


def _folder(source: Source) -> str:
    if source.path is not None:
        return printable(source.path.absolute().parent.name)
    return "" if is_url(source.inner) else printable(PurePosixPath(source.inner).parent.name)


def _concept(source: Source) -> str:
    return re.sub(r"^\d+_", "", _folder(source))


def _tags(source: Source) -> str:
    from captioner.pairs.layouts import NO_CAPTION, Record, with_sidecar

    if source.caption is not None:
        return source.caption()
    if source.path is None:
        return ""
    beside = with_sidecar(source.path, source.title)
    if isinstance(beside, Record):
        return beside.text
    if beside.reason != NO_CAPTION:
        raise BadImage(str(beside))
    return ""


def _metadata(source: Source) -> str:
    parameters = read_parameters(source.content(), source.title)
    return "" if parameters is None else parameters.prompt


VALUES: dict[str, Callable[[Source], str]] = {
    "name": _name,
    "folder": _folder,
    "concept": _concept,
    "tags": _tags,
    "metadata": _metadata,
}
