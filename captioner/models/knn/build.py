"""Make the index of `knn.py`: `captioner index build`.

Pictures are read once, in batches; nothing but names and prompts is held in memory, so a million pictures need
little more of it than a thousand. The folder appears when it is whole, and not before; what a stopped run has read is
kept beside it, in `NAME.part`.
"""

from __future__ import annotations

import heapq
import json
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from operator import itemgetter
from pathlib import Path

import faiss
import numpy as np
import pyarrow
import pyarrow.parquet

from captioner import compute
from captioner.contracts import LoadOptions
from captioner.errors import BadInput, BadOutput, Stopped
from captioner.files import arrays
from captioner.files.atomic import is_temporary, replacing_folder
from captioner.files.json import read_object, write_object
from captioner.files.names import nearest_existing, path_of
from captioner.models.knn import knn
from captioner.models.parts.backbones import backbones
from captioner.models.parts.backbones.towers import Backbone
from captioner.pairs import sources
from captioner.pairs.layouts import LeftOut, Record
from captioner.pairs.provenance import name_of
from captioner.pairs.readable import opened
from captioner.sinks import RESUME, Journal, Row, check_new_folder, check_place, explained, groups, not_resumable
from captioner.sinks.journal import write_whole
from captioner.text.embedding import DEFAULT as DEFAULT_EMBEDDER
from captioner.text.embedding import text_embedder

FLAT_UP_TO = 200_000
"""Pictures that are searched exactly; more get a graph."""
LINKS = 16
"""Links a picture of the HNSW graph has, twice as many on its lowest level."""
CHUNK = 20_000
MADE_BY, DONE = "made-by.json", "done.json"
ANEW = "Remove it to start anew."
Progress = Callable[[str, int, int | None], None]
"""Is told of a step, how much of it was done just now, and how much there is in all, if that is known."""


@dataclass(frozen=True)
class Recipe:
    """How an index is to be made."""

    backbone: str
    weights: str | None = None
    """Hub id or folder; None: the backbone's usual weights."""
    settings: dict = field(default_factory=dict)
    """What `backbones.build` takes besides, e.g. {"pool": "statistics"}."""
    dims: int | None = None
    """Keep this many principal components of the features; None keeps all."""
    centred: bool = True
    scaled: bool = False
    """Divide every feature by its spread: where features of many kinds stand side by side."""
    graph: bool | None = None
    """Approximate search by an HNSW graph; None: for more than 200,000 pictures."""
    k: int = 40
    temperature: float = 0.05


@dataclass(frozen=True)
class Built:
    """What came of it."""

    pictures: int
    prompts: int
    left_out: list[LeftOut]


def build(
    data: Sequence[str | Path],
    out: str | Path,
    recipe: Recipe,
    options: LoadOptions | None = None,
    batch_size: int = 32,
    progress: Progress = lambda step, done, total: None,
    resume: bool = False,
) -> Built:
    """Features of all pictures and embeddings of all prompts of DATA → an index folder.

    resume: go on with what a stopped run has read.
    """
    options, out = options or LoadOptions(), path_of(out)
    records, backbone = _begun(data, out, recipe, options)
    made_by = _made_by(recipe, backbone)
    with _Partial(out.with_name(f"{out.name}.part"), backbone.width, made_by, resume) as partial:
        _collect(records, records.total(), compute.prepare(backbone, options), partial, batch_size, progress)
        partial.left_out = [*records.left_out, *partial.left_out]
        _finish(partial, out, recipe, _about(made_by, backbone, options, records), progress)
    return Built(len(partial.pictures), len(partial.prompts), partial.left_out)


def build_shard(
    data: Sequence[str | Path],
    out: str | Path,
    share: tuple[int, int],
    recipe: Recipe,
    options: LoadOptions | None = None,
    batch_size: int = 32,
    progress: Progress = lambda step, done, total: None,
) -> Built:
    """The I-th of N equal shares of the work of `build`: features, beside OUT, of every N-th picture. One that was
    stopped goes on. `merge` makes an index of all."""
    options, out = options or LoadOptions(), path_of(out)
    records, backbone = _begun(data, out, recipe, options)
    made_by = _made_by(recipe, backbone)
    about = {**_about(made_by, backbone, options, records), "recipe": asdict(recipe)}
    folder = out.with_name(f"{out.name}.shard-{share[0]}-of-{share[1]}")
    mine = (
        replace(record, id=str(number))  # its place among all
        for number, record in enumerate(records)
        if number % share[1] == share[0] - 1
    )
    total = None if (count := records.total()) is None else len(range(share[0] - 1, count, share[1]))
    with _Partial(folder, backbone.width, json.loads(json.dumps(about)), True, numbered=True) as partial:
        (folder / DONE).unlink(missing_ok=True)
        _collect(mine, total, compute.prepare(backbone, options), partial, batch_size, progress)
        partial.left_out += records.left_out if share[0] == 1 else []  # every share has met these
        left_out = [asdict(one) for one in partial.left_out]
        write_object(folder / DONE, {"pictures": len(partial.pictures), "left_out": left_out})
    return Built(len(partial.pictures), len(partial.prompts), partial.left_out)


def merge(out: str | Path, progress: Progress = lambda step, done, total: None) -> Built:
    """One index of all shards, the same as `build` makes of the same data; the shards go when it is there."""
    out = path_of(out)
    check_new_folder(out)
    folders = _shards_of(out)
    about = read_object(folders[0] / MADE_BY, BadOutput, ANEW)
    recipe = Recipe(**about.pop("recipe"))
    counts = [read_object(folder / DONE, BadOutput, ANEW) for folder in folders]
    made_by = {name: about[name] for name in ("backbone", "settings", "fingerprint")}
    with not_resumable("The shards are kept: put it right, and merge again."), _stoppable(), ExitStack() as stack:
        shards = [
            stack.enter_context(_Partial(folder, about["width"], None, True, numbered=True)) for folder in folders
        ]
        if [len(shard.pictures) for shard in shards] != [count["pictures"] for count in counts]:
            raise BadOutput(f"The shards of {out} have changed since they were done. {ANEW}")
        whole = out.with_name(f"{out.name}.merging")
        shutil.rmtree(whole, ignore_errors=True)  # of a merge that was killed
        partial = stack.enter_context(_Partial(whole, about["width"], made_by, False))
        partial.over = True  # however this ends: it is soon made anew
        total = sum(len(shard.pictures) for shard in shards)
        for batch, features in _in_order(shards):
            partial.append(batch, features)
            progress("pictures", len(batch), total)
        partial.left_out = [LeftOut(**one) for count in counts for one in count["left_out"]]
        _finish(partial, out, recipe, about, progress)
        for shard in shards:
            shard.over = True
    return Built(len(partial.pictures), len(partial.prompts), partial.left_out)


@contextmanager
def _stoppable() -> Iterator[None]:
    """A merge that is stopped begins anew: its shards are what is left of it."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped("Stopped. The shards are kept: the same command merges them.") from None


def _shards_of(out: Path) -> list[Path]:
    """The folders of all shards: as many as their names say, all done, of one recipe."""
    named = re.compile(rf"{re.escape(out.name)}\.shard-(\d+)-of-(\d+)")
    found = {
        (int(match[1]), int(match[2])): folder
        for folder in out.absolute().parent.iterdir()
        if (match := named.fullmatch(folder.name))
    }
    if not found:
        raise BadInput(f"There are no shards of {out}: make them with captioner index build --shard I/N.")
    count = max(count for _, count in found)
    missing = [f"{number}/{count}" for number in range(1, count + 1) if (number, count) not in found]
    missing += [f"{number}/{count}" for (number, count), folder in found.items() if not (folder / DONE).exists()]
    if missing or len(found) > count:
        raise BadInput(f"{out}: shards {', '.join(missing) or 'of several counts'} are not done, or in the way.")
    folders = [found[number, count] for number in range(1, count + 1)]
    abouts = [read_object(folder / MADE_BY, BadOutput, ANEW) for folder in folders]
    if any(about != abouts[0] for about in abouts):
        raise BadInput(f"The shards of {out} were made with different settings or data: make them anew.")
    return folders


def _in_order(shards: Sequence[_Partial]) -> Iterator[tuple[list[Record], np.ndarray]]:
    """All pictures of all shards in the order that one process would have met them in, some thousands at a time."""
    features = [shard.features() for shard in shards]

    def numbered(which: int) -> Iterator[tuple[int, int, int, Row]]:
        return ((row["number"], which, at, row) for at, row in enumerate(shards[which].journal))

    streams = map(numbered, range(len(shards)))
    for group in groups(heapq.merge(*streams, key=itemgetter(0)), CHUNK):
        records = [Record("", row["prompt"], "", row["file"]) for *_, row in group]
        yield records, np.stack([features[which][at] for _, which, at, _ in group])


def _begun(
    data: Sequence[str | Path], out: Path, recipe: Recipe, options: LoadOptions
) -> tuple[sources.Records, Backbone]:
    """What is wrong is said before an hour of reading."""
    check_new_folder(out)
    records = sources.read(data)
    records.check()
    if recipe.k < 1 or recipe.temperature <= 0:
        raise BadInput("k must be at least 1 and the temperature above 0.")
    if (prompts := records.different_prompts(up_to=recipe.k)) < recipe.k:
        raise knn.too_few("The data hold", sum(1 for _ in records), prompts, recipe.k)
    backbones.check_settings(recipe.backbone, recipe.settings)
    backbone = backbones.build(recipe.backbone, recipe.weights, **recipe.settings)
    if recipe.dims is not None and not 0 < recipe.dims <= backbone.width:
        raise BadInput(f"{recipe.backbone} gives {backbone.width} features; {recipe.dims} of them cannot be kept.")
    check_place(nearest_existing(out.absolute().parent))
    text_embedder(options.embedder or DEFAULT_EMBEDDER)
    return records, backbone


def _made_by(recipe: Recipe, backbone: Backbone) -> dict:
    return {"backbone": recipe.backbone, "settings": recipe.settings, "fingerprint": backbone.fingerprint()}


def _about(made_by: dict, backbone: Backbone, options: LoadOptions, records: sources.Records) -> dict:
    """What is told of an index beside the recipe."""
    data = [name_of(source) for source in records.sources]
    return {**made_by, "embedder": options.embedder or DEFAULT_EMBEDDER, "width": backbone.width, "data": data}


def _finish(partial: _Partial, out: Path, recipe: Recipe, about: dict, progress: Progress) -> None:
    """The index of all that was read."""
    if len(partial.prompts) < recipe.k:
        partial.over = True  # so few are soon read again
        raise knn.too_few("The data hold", len(partial.pictures), len(partial.prompts), recipe.k)
    with explained(out, RESUME), replacing_folder(out) as work:
        _write(work, partial, recipe, about, progress)
    partial.over = True


def _write(work: Path, partial: _Partial, recipe: Recipe, about: dict, progress: Progress) -> None:
    """All files of the index."""
    _write_features(work, partial.features(), recipe)
    embeddings = partial.embeddings(about["embedder"], progress)
    arrays.write(work / "embeddings.npy", embeddings)
    _write_texts(work, partial)
    features = np.load(work / "features.npy", mmap_mode="r")
    with_graph = len(features) > FLAT_UP_TO if recipe.graph is None else recipe.graph
    weights = recipe.weights
    if weights is not None and Path(weights).exists():
        weights = str(Path(weights).resolve())
    about = {
        "kind": "knn",
        **about,
        "weights": weights,
        "embedding_size": embeddings.shape[1],
        "dims": features.shape[1],
        "projected": recipe.dims is not None or recipe.scaled,
        "pictures": len(features),
        "prompts": len(partial.prompts),
        "k": recipe.k,
        "temperature": recipe.temperature,
        "graph": _write_graph(work, features, progress) if with_graph else None,
    }
    write_object(work / "index.json", about)


class _Partial:
    """The pictures read so far: their features in one file, their names and prompts in a journal beside it."""

    over = False
    """Whether its folder can go: the index is written, or what the folder holds is soon made anew."""

    def __init__(self, folder: Path, width: int, made_by: dict | None, resume: bool, numbered: bool = False) -> None:
        """made_by: None takes what is there. numbered: a record's id is its place among those of all shards."""
        self.folder, self.width, self.numbered = folder, width, numbered
        self.prompts: dict[str, int] = {}
        """Prompt → its row."""
        self.prompt_rows: list[int] = []
        self.pictures: list[str] = []
        self.left_out: list[LeftOut] = []
        begun = folder / MADE_BY
        if made_by is not None:
            is_begun = any(not is_temporary(file.name) for file in folder.glob("*"))  # a kill may come at once
            if is_begun and not (begun.is_file() and read_object(begun, BadOutput, ANEW) == made_by):
                raise BadOutput(f"{folder} was not begun with this backbone. {ANEW}")
            folder.mkdir(parents=True, exist_ok=True)
            write_object(begun, made_by)
        self.journal = Journal(folder / "pictures.jsonl", resume=resume)
        for row in self.journal:
            self._note(row)
        # Without a buffer: what a full disk does not take would be tried once more, and fail, when it is closed.
        self.raw = open(folder / "features.f16", "ab", buffering=0)  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> _Partial:
        named = 2 * self.width * len(self.pictures)
        if self.raw.tell() < named:
            raise BadOutput(f"{self.folder} lacks features of pictures that it names. Remove it to start anew.")
        self.raw.truncate(named)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.raw.close()
        self.journal.close(remove=False)
        if self.over or not self.pictures:
            shutil.rmtree(self.folder)
        elif kind is KeyboardInterrupt:
            read = f"Stopped with {len(self.pictures):,} pictures read."
            raise Stopped(f"{read} The same command with resume goes on from there.") from None

    def append(self, batch: Sequence[Record], features: np.ndarray) -> None:
        """Keep these. Features come first: what the journal names is there."""
        with explained(self.folder, RESUME):
            write_whole(self.raw, features.astype(np.float16).tobytes())
        rows: list[Row] = [{"file": record.name, "prompt": record.text} for record in batch]
        if self.numbered:
            rows = [row | {"number": int(record.id)} for row, record in zip(rows, batch, strict=True)]
        self.journal.append(rows)
        for row in rows:
            self._note(row)

    def _note(self, row: dict) -> None:
        self.pictures.append(row["file"])
        self.prompt_rows.append(self.prompts.setdefault(row["prompt"], len(self.prompts)))

    def features(self) -> np.ndarray:
        """`[pictures, width]`, mapped."""
        return np.memmap(self.folder / "features.f16", np.float16, "r", shape=(len(self.pictures), self.width))

    def embeddings(self, embedder: str, progress: Progress) -> np.ndarray:
        """`[prompts, d]`, mapped; those that an earlier run with this embedder embedded are not embedded again."""
        prompts, embed = list(self.prompts), text_embedder(embedder)
        file = self.folder / f"embeddings-{zlib.crc32(embedder.encode()):08x}.f16"
        size = embed(prompts[:1]).shape[1]
        with file.open("ab") as raw:
            done = raw.tell() // (2 * size)
            raw.truncate(2 * size * done)
            progress("prompts", done, len(prompts))
            for start in range(done, len(prompts), 1024):
                raw.write(embed(prompts[start : start + 1024]).astype(np.float16).data)
                raw.flush()
                progress("prompts", len(prompts[start : start + 1024]), len(prompts))
        return np.memmap(file, np.float16, "r", shape=(len(prompts), size))


def _collect(
    records: Iterable[Record],
    total: int | None,
    backbone: Backbone,
    partial: _Partial,
    batch_size: int,
    progress: Progress,
) -> None:
    """Read and embed every picture that is not read yet."""
    progress("pictures", len(partial.pictures), total)
    read = Counter((row["file"], row["prompt"]) for row in partial.journal)
    for batch, images in opened(_unread(records, read), batch_size, partial.left_out):
        partial.append(batch, knn.pooled(backbone, images))
        progress("pictures", len(batch), total)


def _unread(records: Iterable[Record], read: Counter[tuple[str, str]]) -> Iterator[Record]:
    """All but those read before, by name and prompt: two data folders may have a picture of the same name."""
    for record in records:
        if read[record.name, record.text]:
            read[record.name, record.text] -= 1
        else:
            yield record


def _write_features(work: Path, raw: np.ndarray, recipe: Recipe) -> None:
    """Centre, project, and scale to length 1."""
    width = raw.shape[1]
    mean = sum((chunk.sum(0) for chunk in chunks(raw)), np.zeros(width)) / len(raw)
    variance = sum((np.square(chunk - mean).sum(0) for chunk in chunks(raw)), np.zeros(width)) / len(raw)
    centre = (mean if recipe.centred else np.zeros(width)).astype(np.float32)
    scale = 1 / (np.sqrt(variance) + 1e-4) if recipe.scaled else np.ones(width)
    projection = _projection(raw, centre, scale.astype(np.float32), recipe)
    shape = (len(raw), recipe.dims or width)
    reduced = (knn.reduce(chunk, centre, projection) for chunk in chunks(raw))
    arrays.write_pieces(work / "features.npy", shape, np.float16, reduced)
    arrays.write(work / "centre.npy", centre)
    if projection is not None:
        arrays.write(work / "projection.npy", projection)


def _projection(raw: np.ndarray, centre: np.ndarray, scale: np.ndarray, recipe: Recipe) -> np.ndarray | None:
    """Scaling, then the directions in which the features vary most `[width, dims]`; None where neither is wanted."""
    if recipe.dims is None:
        return np.diag(scale) if recipe.scaled else None
    covariance = sum((chunk - centre).T @ (chunk - centre) for chunk in chunks(raw)) / len(raw)
    _, directions = np.linalg.eigh((covariance * np.outer(scale, scale)).astype(np.float64))  # smallest first
    return np.ascontiguousarray(scale[:, None] * directions[:, ::-1][:, : recipe.dims], dtype=np.float32)


def _write_texts(work: Path, partial: _Partial) -> None:
    arrays.write(work / "prompt_rows.npy", np.array(partial.prompt_rows, dtype=np.int32))
    for name, texts in (("pictures", partial.pictures), ("prompts", list(partial.prompts))):
        pyarrow.parquet.write_table(pyarrow.table({name: texts}), work / f"{name}.parquet", compression="zstd")


def _write_graph(work: Path, features: np.ndarray, progress: Progress) -> dict:
    """Link the pictures, and write the links down as arrays."""
    index = knn.new_graph(features.shape[1], LINKS)
    index.train(np.zeros((1, features.shape[1]), np.float32))  # float16 has nothing to learn, but FAISS asks for it
    for chunk in chunks(features):
        index.add(chunk)
        progress("links", len(chunk), len(features))
    arrays.write(work / "levels.npy", faiss.vector_to_array(index.hnsw.levels))
    arrays.write(work / "neighbours.npy", faiss.vector_to_array(index.hnsw.neighbors))
    return {"links": LINKS, "entry": int(index.hnsw.entry_point)}


def chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    """A mapped float16 array piece by piece, as float32."""
    for start in range(0, len(array), CHUNK):
        yield array[start : start + CHUNK].astype(np.float32)
