"""Stage `pairs`: mini's pictures and cleaned prompts as ordinary parquet, for every other trainer, index and ensemble.

OUT/train/*.parquet and OUT/validation.parquet hold {image, text, source}. Near copies of held-out prompts are left out,
as in stage `texts`; the prompts of stage `split` are in the validation file and nowhere else.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow
from pyarrow import parquet

from captioner.errors import BadOutput
from captioner.files.atomic import replacing_folder
from training.mini import sources
from training.mini.split import REBUILT

THINNED = 0.1
"""The share of photographs, clip art and style studies that is kept: mini's head lets them count for little as well."""


def pairs(data: Path, work: Path, out: Path, seed: int) -> None:
    """Stage `pairs`. Generated pictures with their literal prompts alone validate."""
    if out.exists():
        raise BadOutput(f"{out} is already there. Name a new folder, or remove the old one.")
    texts = json.loads((work / "pair-texts.json").read_text())["text"]
    held_back = dict(zip(texts, np.load(work / "validation.npy").tolist(), strict=True))
    generator = np.random.default_rng(seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(out) as folder:
        validation = []
        (folder / "train").mkdir()
        for file in sources.pair_files(data):
            table = cleaned(file)
            validates = np.array([held_back.get(text, -1) for text in table["text"].to_pylist()])  # -1: not a text
            described = np.array(table["kind"].to_pylist()) != "sd-prompt"
            aside = described | np.isin(table["source"].to_pylist(), list(REBUILT))
            drawn = ~aside | (generator.random(len(table)) < THINNED)
            validation.append(chosen(table, (validates == 1) & ~aside))
            parquet.write_table(chosen(table, (validates == 0) & drawn), folder / "train" / file.name)
        parquet.write_table(pyarrow.concat_tables(validation), folder / "validation.parquet")
    rows = sum(parquet.read_metadata(file).num_rows for file in (out / "train").glob("*.parquet"))
    print(f"{out}: {rows:,} pictures to train on, {sum(map(len, validation)):,} to validate on")


def cleaned(file: Path) -> pyarrow.Table:
    """The pairs of one file, their texts cleaned."""
    table = parquet.read_table(file, columns=["image", "text", "source", "kind"])
    texts = pyarrow.array([sources.clean(text) for text in table["text"].to_pylist()])
    return table.set_column(1, "text", texts)


def chosen(table: pyarrow.Table, which: np.ndarray) -> pyarrow.Table:
    """These rows, without what only stage `pairs` needs."""
    return table.filter(pyarrow.array(which)).select(["image", "text", "source"])
