"""What the page asks beside the public routes: what a model can be asked, how alike texts are, the pictures of the
server's folder, and finished files.

The page alone calls these: they change whenever it does, and OpenAPI does not list them.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from captioner.contracts import MODES, Attentive
from captioner.errors import BadImage, BadInput, printable
from captioner.files.json import read_object
from captioner.images import looks_like_picture, open_image
from captioner.images.find import EXTENSIONS, MASKS
from captioner.sinks.row import Row, to_json
from captioner.sinks.table import write_csv_rows
from captioner.styles import STYLES
from captioner.text.length import clip_tokens
from captioner.text.similarity import likeness
from captioner.web.captioning import AT_ONCE
from captioner.web.context import Context, one
from captioner.web.inputs import inside
from captioner.web.ranges import ranges
from captioner.web.routes.native import Generate

MOST_PAIRS = 256
"""Compared in one request."""
MOST_LETTERS = 20_000
"""Of one text."""
MOST_LISTED = 5000
"""Pictures of one folder that are shown to be picked from."""
SMALL = 256
"""Pixels of the longest side of a picture in the list."""
Text = Annotated[str, Field(max_length=MOST_LETTERS)]


class Pairs(BaseModel):
    """Texts to be compared, one of the left with one of the right."""

    left: Annotated[list[Text], Field(min_length=1, max_length=MOST_PAIRS)]
    right: Annotated[list[Text], Field(min_length=1, max_length=MOST_PAIRS)]


class Candidate(BaseModel):
    """As a row holds it."""

    text: Text
    score: float
    finished: bool = True


class Written(BaseModel):
    """A row as the page holds it: what the model said, the text perhaps corrected."""

    file: Annotated[str, Field(min_length=1, max_length=4000)]
    text: Text
    score: float | None = None
    model: Annotated[str | None, Field(max_length=4000)] = None
    precision: Annotated[str | None, Field(max_length=4000)] = None
    source: Literal["model", "metadata"] = "model"
    raw: Text = ""
    candidates: Annotated[list[Candidate], Field(max_length=1000)] = []


class Download(BaseModel):
    """Rows, and the file that they are to become."""

    kind: Literal["sidecars", "jsonl", "csv"]
    rows: Annotated[list[Written], Field(min_length=1, max_length=100_000)]


class Near(BaseModel):
    """Pictures as an index names them."""

    pictures: Annotated[list[Annotated[str, Field(max_length=4000)]], Field(max_length=100)]


def router(context: Context) -> APIRouter:
    """The routes of this module."""
    routes = APIRouter(prefix="/page", include_in_schema=False)
    engine, settings = context.engine, context.settings

    @routes.get("/settings")
    async def about() -> Any:
        pictures = {"endings": EXTENSIONS, "masks": MASKS}
        asked = {"modes": MODES, "styles": list(STYLES), "ranges": ranges(Generate)}
        return context.about() | {"at_once": AT_ONCE, "pictures": pictures} | asked

    @routes.get("/model")
    async def model(request: Request, name: Annotated[str | None, Field(max_length=4000)] = None) -> Any:
        return one(await context.wait(request, [engine.call(described, (), name)]))

    @routes.post("/compare")
    async def compare(request: Request, pairs: Pairs) -> Any:
        if len(pairs.left) != len(pairs.right):
            raise BadInput(f"{len(pairs.left)} texts on the left, {len(pairs.right)} on the right: give pairs.")
        vectors = np.asarray(await context.vectors(request, [*pairs.left, *pairs.right]))
        return {"results": await run_in_threadpool(compared, pairs.left, pairs.right, vectors)}

    @routes.post("/download")
    async def download(asked: Download) -> Response:
        make, kind = {
            "sidecars": (sidecars, "application/zip"),
            "jsonl": (jsonl, "application/jsonl"),
            "csv": (csv, "text/csv"),
        }[asked.kind]
        rows = [row.model_dump() for row in asked.rows]
        return Response(await run_in_threadpool(make, rows), media_type=kind)

    @routes.post("/near")
    async def near(asked: Near) -> Any:
        """Which of an index's pictures lie in the server's folder, so that they can be shown."""
        index = engine.index
        if index is None or settings.root is None:
            return {"paths": [None] * len(asked.pictures)}
        return {"paths": await run_in_threadpool(shown, root(), index, asked.pictures)}

    @routes.get("/folder")
    async def folder(path: str = "") -> Any:
        return await run_in_threadpool(listed, root(), path)

    @routes.get("/file")
    async def file(path: str, small: bool = False) -> Response:
        picture = await run_in_threadpool(picture_inside, root(), path)
        if not small:
            return FileResponse(picture)
        return Response(await run_in_threadpool(thumbnail, picture), headers={"Cache-Control": "private, max-age=300"})

    def root() -> Path:
        if settings.root is None:
            raise BadInput("This server was started without a folder.")
        return settings.root.resolve()

    return routes


def described(model: Any, images: Sequence[Any]) -> Any:
    """What a model can be asked, and what it does where it is not."""
    speaker = getattr(model, "speaker", None)
    return {
        "name": model.name,
        "speaks": model.speaks,
        "uses": sorted(getattr(speaker, "uses", ())),
        "decoding": asdict(model.decoding) if model.decoding is not None else None,
        "consensus": getattr(model, "consensus", False),
        "attention": isinstance(getattr(speaker, "model", None), Attentive),
    }


def compared(left: Sequence[str], right: Sequence[str], vectors: np.ndarray) -> list[dict[str, float]]:
    """How alike each pair is; vectors: of all texts of the left, then of the right."""
    return [
        figures | {"left_tokens": clip_tokens(a), "right_tokens": clip_tokens(b)}
        for a, b, figures in zip(left, right, likeness(left, right, vectors), strict=True)
    ]


# --- finished files --------------------------------------------------------------------------------------------------


def jsonl(rows: Sequence[Row]) -> bytes:
    """As `captioner generate --out captions.jsonl` writes them."""
    return "".join(to_json(row) + "\n" for row in rows).encode("utf-8")


def csv(rows: Sequence[Row]) -> bytes:
    """As `--out captions.csv` writes them."""
    stream = io.StringIO(newline="")
    write_csv_rows(list(rows[0]), rows, stream)
    return stream.getvalue().encode("utf-8", "backslashreplace")


def sidecars(rows: Sequence[Row]) -> bytes:
    """As `--sidecar` writes them: photo.txt for photo.png. Where two would share a name the second keeps its ending:
    photo.jpg.txt."""
    stream, taken, numbers = io.BytesIO(), set[str](), Counter[str]()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for row in rows:
            picture = PurePosixPath(*_parts(row["file"]))
            name = str(picture.with_suffix(".txt"))
            while name.lower() in taken:
                number = numbers[str(picture).lower()] = numbers[str(picture).lower()] + 1
                name = f"{picture}.txt" if number == 1 else f"{picture}.{number}.txt"
            taken.add(name.lower())
            archive.writestr(name, row["text"].encode("utf-8", "backslashreplace") + b"\n")
    return stream.getvalue()


def _parts(name: str) -> list[str]:
    """The folders and the name of a picture as a browser calls it; none leads out of where the archive is opened."""
    parts = [printable(part) for part in name.replace("\\", "/").replace(":", "/").split("/")]
    return [part for part in parts if part.strip(" .")] or ["picture"]


# --- the folder of the server ----------------------------------------------------------------------------------------


def listed(root: Path, path: str) -> Any:
    """The subfolders and pictures of a folder in the root."""
    here = _inside(root, path)
    if not os.path.isdir(here):  # pathlib's raises an error of a name that is too long
        raise BadInput(f"There is no folder {printable(path)[:200]!r}.")
    folders, pictures = [], []
    try:
        names = sorted(os.listdir(here), key=str.lower)
    except OSError as error:
        raise BadInput(f"The folder {printable(path)[:200]!r} cannot be read ({error.strerror}).") from error
    for name in names:
        target = here / name
        if name.startswith(".") or not Path(os.path.realpath(target)).is_relative_to(root):
            continue
        if os.path.isdir(target):  # of a link that leads to itself `DirEntry.is_dir` raises an error
            folders.append(name)
        elif looks_like_picture(name) and os.path.isfile(target):
            pictures.append(name)
    relative = here.relative_to(root).as_posix()
    return {
        "path": "" if relative == "." else relative,
        "folders": folders,
        "pictures": pictures[:MOST_LISTED],
        "count": len(pictures),
    }


def picture_inside(root: Path, path: str) -> Path:
    """A picture in the root, links followed only where they stay inside."""
    picture = _inside(root, path)
    if not looks_like_picture(picture.name) or not os.path.isfile(picture):
        raise BadInput(f"There is no picture {printable(path)[:200]!r}.")
    return picture


def _inside(root: Path, path: str) -> Path:
    target = inside(root, path)
    if target is None or any(part.startswith(".") for part in target.relative_to(root).parts):
        raise BadInput(f"There is no {printable(path)!r} in the server's folder.")
    return target


def shown(root: Path, index: Path, pictures: Sequence[str]) -> list[str | None]:
    """The paths below the root of pictures that an index names as its data's folders do; None: it lies elsewhere."""
    named = [Path(name) for name in read_object(index / "index.json").get("data", [])]
    folders = [folder.absolute() for folder in named if folder.is_dir()]

    def path_of(picture: str) -> str | None:
        for folder in folders:
            try:
                return picture_inside(root, str(folder / picture)).relative_to(root).as_posix()
            except BadInput:
                continue
        return None

    return [path_of(picture) for picture in pictures]


def thumbnail(picture: Path) -> bytes:
    """A small JPEG."""
    image = open_image(picture)
    image.thumbnail((SMALL, SMALL))
    stream = io.BytesIO()
    try:
        image.save(stream, "JPEG", quality=82)
    except OSError as error:
        raise BadImage(f"{printable(picture.name)} cannot be shown small ({error}).") from error
    return stream.getvalue()
