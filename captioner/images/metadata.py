"""The generation parameters that a picture carries: what A1111, ComfyUI, InvokeAI, NovelAI or Fooocus wrote into it.

sd-parsers understands the programs' formats but for ComfyUI's graphs, which `comfyui.py` reads. Finding the texts is
done here: its own reader remembers the last picture by `id()`, which Python gives out again, so that one picture could
get another one's parameters.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from captioner.errors import printable
from captioner.images import comfyui, stealth
from captioner.images.open import identified

MAX_TEXT = 4_000_000
"""Bytes of one text inside a picture; a large ComfyUI workflow takes one or two million."""
MAX_SETTINGS = 100_000
"""Characters at each end of A1111's text that are looked at: the prompt begins it, the settings end it."""
MAX_HASHES = 100
"""How often "Hashes:" may occur there: sd-parsers' pattern for it takes quadratic time on many."""
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
    model_hash: str | None = None
    clip_skip: int | None = None
    loras: str | None = None
    """Name:weight, separated by commas."""

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
            "Model hash": self.model_hash,
            "Model": self.model,
            "Clip skip": self.clip_skip,
            "LoRAs": self.loras,
            "Tool": self.tool,
        }
        lines = [self.prompt] if self.prompt else []
        if self.negative_prompt:
            lines.append(f"Negative prompt: {self.negative_prompt}")
        lines.append(", ".join(f"{name}: {value}" for name, value in settings.items() if value not in (None, "")))
        return "\n".join(lines)


def read_parameters(source: str | Path | bytes | Image.Image, name: str | None = None) -> Parameters | None:
    """The parameters a picture carries, or None; no picture at all is a `BadImage`.

    The pixels are decoded only where no text tells of parameters and they may (see `stealth.py`).

    name: what messages call the picture; a path has one of its own.
    """
    if isinstance(source, Image.Image):
        return _parse(_texts(source)) or _parse(_hidden(source))
    name = name or ("the data" if isinstance(source, bytes) else printable(os.fspath(source)))
    with identified(source, name, MAX_TEXT) as image:
        parameters = _parse(_texts(image))
        if parameters is not None or not stealth.may_hide(image):
            return parameters
    with identified(source, name) as image:  # with its pixels
        return _parse(_hidden(image))


def read_texts(source: bytes, name: str = "the data") -> dict[str, str]:
    """All texts in a picture by their names, as the programs wrote them: "parameters", "workflow", "Software" …"""
    with identified(source, name, MAX_TEXT) as image:
        texts = _texts(image)
    # Half a surrogate pair cannot be sent on.
    return {name: text.encode("utf-8", "replace").decode() for name, text in texts.items() if isinstance(text, str)}


# --- the texts in a picture ------------------------------------------------------------------------------------------


def _texts(image: Image.Image) -> dict[str, Any]:
    """The texts under the names that the programs use in a PNG, wherever this format keeps them."""
    texts = {name: text for name, text in image.info.items() if isinstance(name, str)}
    if image.format == "PNG":
        return texts
    comment, tags = _exif(image)
    if isinstance(comment, bytes):
        texts["parameters"] = _user_comment(comment[:MAX_TEXT])
    # ComfyUI writes "prompt:{…}" and "workflow:{…}" into whatever tags are free.
    for value in tags:
        if isinstance(value, str) and value.startswith("prompt:"):
            texts["prompt"] = value[len("prompt:") : MAX_TEXT]
    return texts


def _hidden(image: Image.Image) -> dict[str, Any]:
    """The same, from the lowest bits of the pixels: A1111's text, or all of NovelAI's texts as JSON."""
    if not stealth.may_hide(image):
        return {}
    try:
        text = stealth.read(image, MAX_TEXT)
    except Exception:  # a decoder that meets hostile bytes may raise anything, and what is broken carries nothing
        return {}
    if text is None:
        return {}
    texts = _json(text)
    return dict(texts) if "Comment" in texts else {"parameters": text}


def _exif(image: Image.Image) -> tuple[Any, list[Any]]:
    """The user's comment and the values of the other tags. What is broken carries nothing, and breaks in any way."""
    comment, values = None, []
    try:
        exif = image.getexif()
        tags = list(exif)
    except Exception:
        return None, []
    with suppress(Exception):
        comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    for tag in tags:
        with suppress(Exception):
            values.append(exif[tag])
    return comment, values


def _user_comment(comment: bytes) -> str:
    """EXIF's comment: eight bytes that name the encoding, then the text. Programs disagree on the byte order."""
    kind, text = comment[:8], comment[8:]
    if kind != b"UNICODE\0":
        return text.decode("utf-8", "replace")
    little = text[1::2].count(0) > text[::2].count(0)  # in mostly Latin text the upper bytes are 0
    return text.decode("utf-16-le" if little else "utf-16-be", "replace")


# --- from texts to parameters ----------------------------------------------------------------------------------------


def _parse(texts: dict[str, Any]) -> Parameters | None:
    return _by_sd_parsers(texts) or _by_comfyui(texts)


def _by_comfyui(texts: Mapping[str, Any]) -> Parameters | None:
    drawing = comfyui.read(_json(texts.get("prompt")))
    if drawing is None:
        return None
    return _that_says_anything(
        _parameters(
            drawing.settings,
            ", ".join(drawing.prompts),
            ", ".join(drawing.negative_prompts),
            tool="ComfyUI",
            model=_value(drawing.model),
            sampler=_value(drawing.sampler),
            loras=drawing.loras,
        )
    )


def _by_sd_parsers(texts: Mapping[str, Any]) -> Parameters | None:
    from sd_parsers import parsers

    texts = _without_traps(texts)
    managed: Sequence[type[parsers.Parser]] = parsers.MANAGED_PARSERS
    for parser in managed:
        if parser is parsers.ComfyUIParser:
            continue
        try:
            parsed = parser().parse(dict(texts))
            sampler = parsed.samplers[0]
            parameters = _parameters(
                {**_flat(parsed.metadata), **_flat(sampler.parameters)},
                _text(parsed.full_prompt),
                _text(parsed.full_negative_prompt),
                tool=parsed.generator.value,
                model=_value(sampler.model and sampler.model.name),
                model_hash=_value(sampler.model and sampler.model.hash),
                sampler=_value(sampler.name),
                loras=_loras(parsed.metadata),
            )
        except Exception:  # not this program's format, or texts made to break a parser: either way it says nothing
            continue
        if _that_says_anything(parameters):
            return parameters
    return None


def _that_says_anything(parameters: Parameters) -> Parameters | None:
    return parameters if parameters.prompt or parameters.negative_prompt or parameters.seed is not None else None


def _without_traps(texts: Mapping[str, Any]) -> dict[str, Any]:
    """Texts on which sd-parsers' patterns would take quadratic time are shortened or dropped."""
    texts = dict(texts)
    for name in ("Dream", "Source"):  # long runs of spaces
        if name in texts:
            texts[name] = _clean(texts[name], MAX_PROMPT)
    settings = texts.get("parameters")
    if isinstance(settings, str):
        if len(settings) > 2 * MAX_SETTINGS:
            settings = settings[:MAX_SETTINGS] + settings[-MAX_SETTINGS:]
        texts["parameters"] = settings if settings.count("Hashes:") <= MAX_HASHES else ""
    return texts


def _json(text: Any) -> Mapping[str, Any]:
    try:
        return _mapping(json.loads(text))
    except (TypeError, ValueError, RecursionError):
        return {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _parameters(
    values: Mapping[str, Any],
    prompt: str,
    negative_prompt: str,
    *,
    loras: Sequence[str],
    **rest: Any,
) -> Parameters:
    """`values`: the program's settings by its own names, in small letters."""
    width, height = _number(values.get("width")), _number(values.get("height"))
    size = f"{width:g}x{height:g}" if width and height else values.get("size")
    seed, steps, clip_skip = (
        _number(_first(values, *names)) for names in (("seed", "noise_seed"), ("steps",), ("clip skip", "clip_skip"))
    )
    tags = [f"{name}:{weight or 1}" for name, weight in _LORA_TAG.findall(prompt[:MAX_PROMPT])]
    return Parameters(
        prompt=_clean(prompt, MAX_PROMPT),
        negative_prompt=_clean(negative_prompt, MAX_PROMPT),
        steps=None if steps is None else int(steps),
        seed=None if seed is None else int(seed),
        cfg_scale=_number(_first(values, "cfg", "cfg_scale", "scale", "guidance_scale")),
        size=_value(size),
        clip_skip=int(clip_skip) if clip_skip else None,
        loras=_value(", ".join(dict.fromkeys([*tags, *loras]))),
        **rest,
    )


_LORA_TAG = re.compile(r"<lora:([^:<>]{1,200})(?::([0-9.-]{1,10}))?[^<>]{0,100}>")


def _loras(metadata: Mapping[str, Any]) -> list[str]:
    """Those that Fooocus ([name, weight]) and InvokeAI ({"model": {"name": …}, "weight": …}) list."""
    named = []
    for lora in metadata["loras"] if isinstance(metadata.get("loras"), list) else []:
        if isinstance(lora, list) and len(lora) == 2:
            named.append(f"{lora[0]}:{lora[1]}")
        elif isinstance(lora, dict):
            model = _mapping(lora.get("model") or lora.get("lora"))
            if name := _first(model, "name", "model_name", "key"):
                named.append(f"{name}:{lora.get('weight', 1)}")
    return named


def _text(prompt: Any) -> str:
    """Fooocus writes the prompt that its styles have extended as a list."""
    return ", ".join(map(str, prompt)) if isinstance(prompt, list) else str(prompt)


def _flat(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Lower-case names → plain values."""
    return {str(key).lower(): value for key, value in metadata.items() if not isinstance(value, list)}


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
