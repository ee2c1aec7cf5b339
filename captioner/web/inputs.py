"""Pictures and settings out of a request: uploads, base64, data URLs and, where allowed, addresses.

Sizes are looked at before anything is decoded; the pictures themselves are opened by `captioner.images`, later and in
other threads.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from captioner.errors import BadInput, printable
from captioner.files.names import is_url
from captioner.images.fetch import fetch_image
from captioner.serving.engine import Picture
from captioner.web.errors import TooLarge
from captioner.web.held import OF_REQUEST
from captioner.web.settings import Settings

MAX_FIELDS = 200
"""Of a form, or of an object: of two million that are not known, each would be an error of its own."""
MAX_PARTS = 500_000
"""Of JSON, roughly: its commas and opening brackets, those in texts too. Python reads it at one go, and answers nobody
meanwhile: 20 MB of empty lists took 1.5 seconds, a picture of that size a few hundredths."""
MAX_PICTURES = 64
"""Of one request."""
DATA_URL = re.compile(r"data:([^,;]{0,100})((?:;[^,;]{0,100}){0,10}),", re.IGNORECASE)
FETCHERS = ThreadPoolExecutor(16, "fetch")
"""As many addresses are fetched at once; they take no thread from anything else."""


async def picture(text: object, settings: Settings, name: str = "-") -> Picture:
    """The picture that a client names in a text: plain base64, a data URL, or an address."""
    if not isinstance(text, str) or not text.strip():
        raise BadInput("There is no picture: give it as base64 or as a data URL.")
    if is_url(text):
        return await _fetched(text.strip(), settings)
    return Picture(await run_in_threadpool(decoded, text, settings.max_bytes), name)


def inside(root: Path, path: str) -> Path | None:
    """What a path below the root leads to, links followed; None where that lies elsewhere."""
    try:
        target = (root / path).resolve()
    except (OSError, RuntimeError, ValueError):  # a circle of links, a zero byte
        return None
    return target if target.is_relative_to(root.resolve()) else None


def decoded(text: str, max_bytes: int) -> bytes:
    """The bytes behind base64, plain or in a data URL."""
    if (head := DATA_URL.match(text)) is not None:
        if ";base64" not in head[2].lower():
            raise BadInput("A data URL holds a picture as base64: data:image/png;base64,…")
        text = text[head.end() :]
    if len(text) * 3 // 4 > max_bytes:
        raise TooLarge(f"The picture is larger than {max_bytes:,} bytes.")
    try:
        packed = re.sub(rb"[\s=]+", b"", text.encode("ascii")).translate(bytes.maketrans(b"-_", b"+/"))
        data = base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise BadInput(
            "The picture is neither base64 nor a data URL; addresses and file names are not read here."
        ) from error
    if not data:
        raise BadInput("The picture is empty (0 bytes).")
    return data


async def _fetched(url: str, settings: Settings) -> Picture:
    if not settings.allow_urls:
        raise BadInput("Addresses are not fetched here: send the picture, or start the server with --allow-urls.")
    from captioner.web.addresses import PUBLIC_ONLY

    share = OF_REQUEST.get()
    count = None if share is None else share.take
    fetch = partial(fetch_image, url, max_bytes=settings.max_bytes, handlers=PUBLIC_ONLY, take=count)
    return Picture(await asyncio.get_running_loop().run_in_executor(FETCHERS, fetch))


async def body(request: Request, settings: Settings) -> dict[str, Any]:
    """A request's fields, whether it is JSON or a form; in a form each upload is a `Picture`, and a field that comes
    several times a list. A body that is a picture itself is the field `image`. The query is left to who asks."""
    kind = content_type(request)
    if kind == "multipart/form-data":
        return await _form(request)
    data = await request.body()
    if kind.startswith("image/") or kind == "application/octet-stream":
        return {"image": Picture(data)}
    try:
        fields = json.loads(bounded(data))
    except (ValueError, RecursionError) as error:
        raise BadInput("The body is no JSON. Send an object, or a form with the picture as `image`.") from error
    if not isinstance(fields, dict):
        raise BadInput("The body is not a JSON object.")
    if len(fields) > MAX_FIELDS:
        raise BadInput(f"The body has {len(fields):,} fields, more than the {MAX_FIELDS} that a request may have.")
    return fields


def content_type(request: Request) -> str:
    """What kind of body a request says it has."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


def bounded(data: bytes) -> bytes:
    """JSON that is read soon enough."""
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_PARTS:
        raise BadInput(f"The body has more than {MAX_PARTS:,} commas and brackets: send fewer things at a time.")
    return data


async def _form(request: Request) -> dict[str, Any]:
    parser = InMemory(request.headers, request.stream(), max_files=MAX_PICTURES, max_fields=MAX_FIELDS)
    try:
        form = await parser.parse()
        if parser.is_cut:
            raise MultiPartException("it is cut off before its end")
    except (MultiPartException, KeyError, ValueError) as error:
        words = error.message if isinstance(error, MultiPartException) else "it is damaged"
        raise BadInput(f"The form cannot be read: {printable(str(words))[:200]}") from error
    texts = [value for _, value in form.multi_items() if isinstance(value, str)]
    bounded("".join(texts).encode(errors="replace"))  # some of them are read as JSON
    return gathered(
        [
            (name, Picture(await value.read(), value.filename or "-") if isinstance(value, UploadFile) else value)
            for name, value in form.multi_items()
        ]
    )


def gathered(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Fields by their names; one that comes several times is a list."""
    fields: dict[str, Any] = {}
    for name, item in items:
        if name in fields:
            fields[name] = [*(fields[name] if isinstance(fields[name], list) else [fields[name]]), item]
        else:
            fields[name] = item
    return fields


class InMemory(MultiPartParser):
    """A form's files stay in memory: their size is bounded by the body's, and nothing is written to a disk."""

    spool_max_size = 1 << 40
    is_cut = False
    """It ends within a part, which is lost."""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        super().on_header_field(data, start, end)
        self.is_cut = True

    def on_part_end(self) -> None:
        super().on_part_end()
        self.is_cut = False
