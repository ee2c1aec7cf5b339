"""The generation parameters that a picture carries: what A1111, ComfyUI, InvokeAI, NovelAI or Fooocus wrote into it.

sd-parsers understands the programs' formats. Finding the texts is done here: its own reader remembers the last
picture by `id()`, which Python gives out again, so that one picture could get another one's parameters.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from captioner.images.open import identified, printable

MAX_TEXT = 4_000_000
"""Bytes of one text inside a picture; a large ComfyUI workflow takes one or two million."""
MAX_NODES = 2_000
"""Of a ComfyUI graph: sd-parsers' time grows with their square."""
MAX_PROMPT = 20_000
MAX_VALUE = 300


@dataclass(frozen=True)
class Parameters:
    """How a picture was made, by its own account. Anybody can write anything there: it proves nothing."""

    prompt: str
    negative_prompt: str = ""
    tool: str = ""
    model: str | None = None
    sampler: str | None = None
    steps: int | None = None
    seed: int | None = None
    cfg_scale: float | None = None
    size: str | None = None
    """Width×height as drawn: "512x768"."""

    def to_dict(self) -> dict[str, str | int | float | None]:
        """All fields, for JSON."""
        return asdict(self)

    def to_text(self) -> str:
        """As A1111 shows it: the prompt, the negative prompt, one line of settings."""
        settings = {
            "Steps": self.steps,
            "Sampler": self.sampler,
            "CFG scale": self.cfg_scale,
            "Seed": self.seed,
            "Size": self.size,
            "Model": self.model,
            "Tool": self.tool,
        }
        lines = [self.prompt] if self.prompt else []
        if self.negative_prompt:
            lines.append(f"Negative prompt: {self.negative_prompt}")
        lines.append(", ".join(f"{name}: {value}" for name, value in settings.items() if value not in (None, "")))
        return "\n".join(lines)


def read_parameters(source: str | Path | bytes | Image.Image, name: str | None = None) -> Parameters | None:
    """The parameters a picture carries, or None. The pixels are not decoded; no picture at all is a `BadImage`.

    name: what messages call the picture; a path has one of its own.
    """
    if isinstance(source, Image.Image):
        return _parse(_texts(source))
    name = name or ("the data" if isinstance(source, bytes) else printable(os.fspath(source)))
    with identified(source, name, MAX_TEXT) as image:
        return _parse(_texts(image))


# --- the texts in a picture ------------------------------------------------------------------------------------------


def _texts(image: Image.Image) -> dict[str, Any]:
    """The texts under the names that the programs use in a PNG, wherever this format keeps them."""
    texts = dict(image.info)
    if image.format == "PNG":
        return texts
    try:
        exif = image.getexif()
        comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    except Exception:  # broken EXIF carries nothing, and may break its reader in any way
        return texts
    if isinstance(comment, bytes):
        texts["parameters"] = _user_comment(comment[:MAX_TEXT])
    # ComfyUI writes "prompt:{…}" and "workflow:{…}" into whatever tags are free.
    for value in exif.values():
        if isinstance(value, str) and value.startswith("prompt:"):
            texts["prompt"] = value[len("prompt:") : MAX_TEXT]
    return texts


def _user_comment(comment: bytes) -> str:
    """EXIF's comment: eight bytes that name the encoding, then the text. Programs disagree on the byte order."""
    kind, text = comment[:8], comment[8:]
    if kind != b"UNICODE\0":
        return text.decode("utf-8", "replace")
    little = text[1::2].count(0) > text[::2].count(0)  # in mostly Latin text the upper bytes are 0
    return text.decode("utf-16-le" if little else "utf-16-be", "replace")


# --- from texts to parameters ----------------------------------------------------------------------------------------


def _parse(texts: dict[str, Any]) -> Parameters | None:
    from sd_parsers.parsers import MANAGED_PARSERS

    for name in ("Dream", "Source"):  # sd-parsers' patterns for these take quadratic time on long runs of spaces
        if name in texts:
            texts[name] = _clean(texts[name], MAX_PROMPT)
    graph = _json(texts.get("prompt"))
    texts |= {"prompt": graph if len(graph) <= MAX_NODES else None, "workflow": _links(graph)}
    for parser in MANAGED_PARSERS:
        try:
            found = parser().parse(dict(texts))
            parameters = _parameters(found)
        except Exception:  # not this program's format, or texts made to break a parser: either way it says nothing
            continue
        if parameters.prompt or parameters.negative_prompt or parameters.seed is not None:
            return parameters
    return None


def _links(graph: Mapping[str, Any]) -> dict[str, list]:
    """The links of a ComfyUI graph as sd-parsers wants them. The drawn workflow has them too, but not every picture
    has a workflow: those made through the API carry the graph alone."""
    links = []
    for target, node in graph.items():
        for name, value in _mapping(_mapping(node).get("inputs")).items():
            if isinstance(value, list) and len(value) == 2:
                links.append([len(links), value[0], value[1], target, 0, name.upper()])
    return {"links": links}


def _json(text: Any) -> Mapping[str, Any]:
    try:
        return _mapping(json.loads(text))
    except (TypeError, ValueError, RecursionError):
        return {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _parameters(found) -> Parameters:
    sampler = found.samplers[0]
    values = {**_flat(found.metadata), **_flat(sampler.parameters)}
    width, height = _number(values.get("width")), _number(values.get("height"))
    size = f"{width:g}x{height:g}" if width and height else values.get("size")
    seed, steps = (_number(_first(values, *names)) for names in (("seed", "noise_seed"), ("steps",)))
    return Parameters(
        prompt=_clean(found.full_prompt, MAX_PROMPT),
        negative_prompt=_clean(found.full_negative_prompt, MAX_PROMPT),
        tool=found.generator.value,
        model=_value(sampler.model and (sampler.model.name or sampler.model.hash)),
        sampler=_value(sampler.name),
        steps=None if steps is None else int(steps),
        seed=None if seed is None else int(seed),
        cfg_scale=_number(_first(values, "cfg_scale", "scale", "guidance_scale")),
        size=_value(size),
    )


def _flat(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Lower-case names → plain values; ComfyUI keeps the size in a list under the class of the node."""
    flat: dict[str, Any] = {}
    for key, value in metadata.items():
        if isinstance(value, list):
            for inner in filter(lambda item: isinstance(item, dict), value):
                flat |= {k.lower(): v for k, v in inner.items() if k in ("width", "height", "seed", "noise_seed")}
        else:
            flat[str(key).lower()] = value
    return flat


def _first(values: Mapping[str, Any], *names: str) -> Any:
    return next((values[name] for name in names if name in values), None)


def _number(value: Any) -> int | float | None:
    if isinstance(value, str) and len(value) <= 40:
        for kind in (int, float):
            try:
                value = kind(value)
                break
            except ValueError:
                continue
    return value if isinstance(value, int | float) and abs(value) < 1e30 else None


def _value(value: Any) -> str | None:
    return _clean(str(value), MAX_VALUE) if value not in (None, "") else None


def _clean(text: str, longest: int) -> str:
    """Untrusted text for terminals and tables: bounded, on one line, no control characters."""
    text = re.sub(r"\s+", " ", str(text)[:longest])
    return re.sub("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", "", text).strip()
