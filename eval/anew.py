"""`python -m eval page R`: report.html and report.md of a finished report, drawn anew. No figure changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from captioner.errors import BadInput
from captioner.pairs.layouts import ReadOptions
from eval import store
from eval.gallery import OpenPicture
from eval.redraw import Redrawn
from eval.results import Results


def draw_page(
    report: Path,
    data: Sequence[str] = (),
    redrawn: Path | None = None,
    gallery: int = 12,
    reading: ReadOptions | None = None,
) -> Path:
    """The page of this folder, by its report.json and per_image.parquet.

    data: where the pictures are, if not where the report says; a report of figures only, or of texts, needs none.
    """
    about, results = store.load(report)
    folder = store.report_file(report).parent
    with_pictures = about.get("kind") == "report" and not about.get("figures_only", False)
    picture = _pictures(data or about["data"].get("specs", []), results, reading) if with_pictures else None
    again = Redrawn.find(redrawn, results).picture if redrawn is not None else None
    store.write_pages(folder, about, results, picture, gallery, again)
    return folder / "report.html"


def _pictures(data: Sequence[str], results: Results, reading: ReadOptions | None) -> OpenPicture:
    """Opens the picture of an item, found by its content."""
    from eval.data import read_pairs

    pairs = read_pairs(data, reading=reading)
    row_of = {item.image_hash: row for row, item in enumerate(pairs.items)}
    rows = [row_of.get(image_hash or "") for image_hash in results.image_hashes]
    if missing := sum(row is None for row in rows):
        raise BadInput(
            f"{missing:,} of the report's {len(rows):,} pictures are not in {', '.join(data)}. "
            "Name the data that it was made from with --data."
        )
    return lambda item: pairs.image(rows[item] or 0)
