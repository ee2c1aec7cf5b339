"""`python -m training.data prepare`: pairs, or prompts alone, → cleaned, de-duplicated, split, written with a summary.

Texts decide first (they are cheap), pictures are opened next, and only what is left is embedded and compared.
Nothing is in --out before everything is done: the files are written beside it and moved.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from captioner.compute import has_bf16
from captioner.errors import BadInput, BadOutput
from captioner.files.atomic import replacing_folder
from captioner.files.names import nearest_existing, path_of
from captioner.pairs.fingerprint import DIGITS, picture_fingerprint
from captioner.pairs.layouts import LeftOut, ReadOptions, summaries
from captioner.pairs.sources import check_options, parse_all
from captioner.sinks import check_place
from captioner.text.embedding import text_embedder
from training.data import dedupe
from training.data.cleaning import clean, is_english, terms
from training.data.options import Preparation
from training.data.progress import track

OURS = ("train-*.parquet", "validation-*.parquet", "train.txt", "validation.txt", "summary.json", "summary.png")
EMBED_AT_ONCE = 4096
ROW_GROUP = 100  # pictures: what a reader must hold in memory at least


def prepare(options: Preparation) -> None:
    """Run the whole preparation."""
    import matplotlib.figure  # noqa: F401 - for `draw`: where it is missing, that is said before the work, not after it

    out = Path(options.out)
    _refuse_to_overwrite(out, options)
    prompts_only = all(source.endswith((".txt", ".txt.gz")) for source in options.data)
    stages: dict[str, int] = {}
    left_out: list[LeftOut] = []
    raw, rows = (_prompts(options), None) if prompts_only else _pairs(options, stages, left_out)
    stages["read"] = len(raw)
    texts, remaining, foreign = _clean_and_filter(raw, options, stages)
    skipped: list[str] = []
    pictures: list[str] = []
    if rows is not None:
        usable = _usable_pictures(rows.select(remaining), options.min_side, stages, skipped)
        remaining, pictures = remaining[list(usable)], list(usable.values())
    remaining, training, validation = _without_duplicates(texts, remaining, pictures, options, stages)
    if not len(training):
        raise BadInput(f"Nothing is left to train on: {', '.join(f'{n} {stage}' for stage, n in stages.items())}.")
    summary = {
        "settings": asdict(options),
        "rows": stages,
        "left_out": dict(Counter(item.reason for item in left_out)),
        "not_english": foreign,
        "unreadable": skipped,
        "fingerprint": fingerprint([texts[row] for row in remaining]),
        "words": {"before": _lengths(raw), "after": _lengths(texts[row] for row in remaining)},
        "terms": Counter(term.lower() for row in remaining for term in terms(texts[row])).most_common(50),
    }
    with _written(out) as folder:
        for name, part in (("train", training), ("validation", validation)):
            if rows is None:
                (folder / f"{name}.txt").write_text("".join(f"{texts[row]}\n" for row in part), encoding="utf-8")
            else:
                _write_shards(folder, name, rows, part, texts, options.shard_mb * 1_000_000)
        (folder / "summary.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False), encoding="utf-8")
        draw(summary, folder / "summary.png")
    print(f"{out}: {len(training):,} to train on, {len(validation):,} to validate on, of {len(raw):,} read")
    for line in [*summaries(left_out), *_losses(stages)]:
        print(line, file=sys.stderr)
    if len(validation) < 0.5 * round(options.validation * len(remaining)):
        print(
            "Few prompts stand far enough from the others to validate on: a higher --apart finds more.", file=sys.stderr
        )


# --- reading ---------------------------------------------------------------------------------------------------------


def _prompts(options: Preparation) -> list[str]:
    return [prompt for source in options.data for prompt in read_prompts(path_of(source))]


def read_prompts(file: Path) -> list[str]:
    """One prompt a line, .txt or .txt.gz; empty lines are no prompts."""
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8", errors="replace") as lines:
            prompts = [line.strip() for line in lines if line.strip()]
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{file} cannot be read ({error}).") from error
    if not prompts:
        raise BadInput(f"{file} holds no prompts: one a line is expected.")
    return prompts


def _pairs(options: Preparation, stages: dict[str, int], left_out: list[LeftOut]) -> tuple[list[str], Any]:
    from training.data.sources import load_pairs

    sources = parse_all(options.data)
    check_options(sources, ReadOptions(options.text_column, options.image_column))
    if Path(options.out).resolve() in [Path(source.location).resolve() for source in sources if source.kind != "hub"]:
        raise BadOutput(f"{options.out} is the data itself. Name another --out.")
    load = partial(
        load_pairs,
        options.data,
        text_column=options.text_column or None,
        image_column=options.image_column or None,
        seed=options.seed,
    )
    rows = load(max_nsfw=options.max_nsfw, left_out=left_out)
    if any(source.kind == "diffusiondb" for source in sources):
        unfiltered = load(max_nsfw=float("inf"), left_out=[])
        stages["listed, whatever their nsfw score"] = len(unfiltered)
    return list(rows["text"]), rows


# --- what stays ------------------------------------------------------------------------------------------------------


def _clean_and_filter(
    raw: list[str], options: Preparation, stages: dict[str, int]
) -> tuple[list[str], np.ndarray, int]:
    """Cleaned texts, the rows that stay, and how many prompts are not English."""
    texts = [clean(text, drop_trending=options.drop_trending) for text in track(raw, "cleaning")]
    english = np.array([is_english(text) for text in texts])
    words = np.array([len(text.split()) for text in texts])
    stays = words > 0
    stages["that say something"] = int(stays.sum())
    if options.english_only:
        stays &= english
        stages["in English"] = int(stays.sum())
    stays &= (words >= options.min_words) & (words <= options.max_words)
    stages["of the right length"] = int(stays.sum())
    return texts, np.flatnonzero(stays), int((~english).sum())


def _usable_pictures(rows: Any, min_side: int, stages: dict[str, int], skipped: list[str]) -> dict[int, str]:
    """The rows whose pictures open and are large enough, by their index, and what tells each picture from others."""
    from training.data.readable import readable

    opened, usable = 0, {}
    for row in track(readable(rows, skipped), "opening pictures", len(rows)):
        opened += 1
        if min(row["image"].size) >= min_side:
            usable[row["index"]] = picture_fingerprint(row["image"])[:DIGITS]
    stages["with a readable picture"], stages["of the right size"] = opened, len(usable)
    return usable


def _without_duplicates(
    texts: list[str], rows: np.ndarray, pictures: list[str], options: Preparation, stages: dict[str, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows that stay, and of them training and validation. pictures: one a row, if there are any."""
    first = {texts[row].casefold(): number for number, row in reversed(list(enumerate(rows.tolist())))}
    places = sorted(first.values())
    rows, pictures = rows[places], [pictures[place] for place in places] if pictures else []
    stages["different prompts"] = len(rows)
    vectors = _embed([texts[row] for row in rows], options.precision)
    exact = len(rows) <= dedupe.EXACT_UP_TO
    near = dedupe.neighbours(
        vectors, min(options.threshold, options.apart), exact, lambda blocks: track(blocks, "comparing")
    )
    chosen = dedupe.representatives(near.above(options.threshold))
    stages["without near-duplicates"] = len(chosen)
    of_chosen = [pictures[row] for row in chosen] if pictures else []
    groups = dedupe.groups(near.above(options.apart).among(chosen), of_chosen)
    training, validation = dedupe.split(groups, options.validation, options.seed)
    rows, vectors = rows[chosen], vectors[chosen]
    if not exact:  # the fast index may have missed a pair across the split
        validation = validation[dedupe.clear_of(vectors[validation], vectors[training], options.apart)]
    generator = np.random.default_rng(options.seed)  # shards that are mixed can be streamed in order
    training, validation = rows[generator.permutation(training)], rows[generator.permutation(validation)]
    stages["training"], stages["validation"] = len(training), len(validation)
    return rows, training, validation


def _embed(texts: list[str], precision: str) -> np.ndarray:
    # In bf16 it was three times as fast on a CPU that computes in it, six times as slow on one that does not.
    embed = text_embedder(precision=precision if precision != "auto" else "bf16" if has_bf16() else "fp32")
    vectors = np.empty((len(texts), 384), dtype=np.float32)
    by_length = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # little padding
    for start in track(range(0, len(texts), EMBED_AT_ONCE), "embedding"):
        rows = by_length[start : start + EMBED_AT_ONCE]
        vectors[rows] = embed([texts[row] for row in rows])
    return vectors


# --- writing ---------------------------------------------------------------------------------------------------------


def _refuse_to_overwrite(out: Path, options: Preparation) -> None:
    if out.exists() and not out.is_dir():
        raise BadOutput(f"{out} is a file. Name a folder with --out.")
    if out.is_dir() and any(out.iterdir()) and not options.overwrite:
        raise BadOutput(f"{out} is not empty. Name another --out, or replace an earlier result with --overwrite.")
    check_place(nearest_existing(out))


@contextmanager
def _written(out: Path) -> Iterator[Path]:
    """A folder that takes the place of `out` when all is written; of what lay there, only our own files go."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if not out.is_dir() or not any(out.iterdir()):
            with replacing_folder(out) as folder:
                yield folder
            return
        new = out / ".captioner-new"  # always the same name: what a kill leaves goes with the next run
        shutil.rmtree(new, ignore_errors=True)
        with replacing_folder(new) as folder:
            yield folder
        for old in [file for pattern in OURS for file in out.glob(pattern)]:
            old.unlink()
        for file in new.iterdir():
            os.replace(file, out / file.name)
        new.rmdir()
    except OSError as error:
        raise BadOutput(f"{out} cannot be written ({error.strerror or error}); nothing was changed there.") from error


def _write_shards(folder: Path, name: str, rows: Any, part: np.ndarray, texts: list[str], shard_bytes: int) -> None:
    """name-00000.parquet …, each of about so many bytes, pictures inside as they were."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    from training.data.sources import ROW

    schema = ROW.arrow_schema  # it says to `datasets` that the struct is a picture
    writer, written, shards = None, 0, 0
    for group in _row_groups(rows, part, texts, name):
        if writer is None:
            writer = parquet.ParquetWriter(folder / f"{name}-{shards:05}.parquet", schema)
            written, shards = 0, shards + 1
        writer.write_table(pa.Table.from_pylist(group, schema=schema))
        written += sum(len(row["image"]["bytes"]) for row in group)
        if written >= shard_bytes:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()


def _row_groups(rows: Any, part: np.ndarray, texts: list[str], name: str) -> Iterator[list[dict[str, Any]]]:
    from datasets import Image

    from training.data.readable import bytes_of

    undecoded = rows.cast_column("image", Image(decode=False))
    group: list[dict[str, Any]] = []
    for number in track(part.tolist(), f"writing {name}"):
        row = undecoded[number]
        picture = {"bytes": bytes_of(row["image"]), "path": Path(row["image"]["path"] or "").name or None}
        group.append({**row, "image": picture, "text": texts[number]})
        if len(group) == ROW_GROUP:
            yield group
            group = []
    if group:
        yield group


def _losses(stages: dict[str, int]) -> list[str]:
    """What each stage took away: "38 of the right length (12 fewer)"."""
    of_all = list(stages.items())[:-2]  # the last two are the parts, training and validation
    return [
        f"{after:,} {stage} ({before - after:,} fewer)"
        for (_, before), (stage, after) in pairwise(of_all)
        if after < before
    ]


# --- the summary -----------------------------------------------------------------------------------------------------


def fingerprint(texts: Iterable[str]) -> str:
    """One value for a set of prompts, whatever their order."""
    return hashlib.sha256("\n".join(sorted(texts)).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _lengths(texts: Iterable[str]) -> dict[int, int]:
    """Words in a prompt → how many prompts have so many."""
    return dict(sorted(Counter(len(text.split()) for text in texts).items()))


def draw(summary: dict[str, Any], file: Path) -> None:
    """The counts, the lengths and the most frequent terms as one picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.5), layout="constrained")
    stages, lengths, frequent = figure.subplots(1, 3)
    _bars(stages, summary["rows"].items())
    stages.set_title("rows left after each stage")
    for name, counts in summary["words"].items():
        lengths.hist(list(counts), weights=list(counts.values()), bins=range(0, 101, 2), histtype="step", label=name)
    lengths.set_title("words in a prompt")
    lengths.legend()
    _bars(frequent, summary["terms"][:20])
    frequent.set_title("most frequent terms")
    figure.savefig(file, dpi=110)


def _bars(axes: Any, counts: Iterable[tuple[str, int]]) -> None:
    names, values = zip(*counts, strict=True)
    bars = axes.barh(range(len(names)), values)
    axes.set_yticks(range(len(names)), [name[:32].replace("$", r"\$") for name in names], fontsize=8)
    axes.bar_label(bars, [f"{value:,}" for value in values], fontsize=7, padding=2)
    axes.margins(x=0.15)
    axes.invert_yaxis()
