"""One sheet of many pictures, each with the prompt that captioner reads from it.

python examples/contact_sheet.py examples/pictures --out build/demo.png

It needs the extra `eval`: the letters are matplotlib's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont, ImageOps

import captioner
from captioner.errors import BadImage
from captioner.images import find_images

WIDTH, MARGIN, LINE = 300, 24, 22
INK, GREY, PAPER, MAT = "#1a1a1a", "#6b6b6b", "#ffffff", "#f1f1ef"
FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
TEXT, NAME = ImageFont.truetype(FONT, 16), ImageFont.truetype(FONT, 13)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("pictures", nargs="+", help="folders or files")
    arguments.add_argument("--recursive", action="store_true", help="look into subfolders too")
    arguments.add_argument("--model", help="a name of `captioner models`; left out: the default")
    arguments.add_argument("--columns", type=int, default=5, help="pictures in a row (default: 5)")
    arguments.add_argument("--title", help="a line above the pictures")
    arguments.add_argument("--out", type=Path, default=Path("build/demo.png"))
    given = arguments.parse_args()
    if given.columns < 1:
        arguments.error("--columns is at least 1.")
    try:
        cells = captioned(given.pictures, given.recursive, given.model)
    except captioner.CaptionerError as error:
        sys.exit(f"{arguments.prog}: {error}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    sheet(cells, given.columns, given.title).save(given.out)
    print(f"{len(cells)} pictures drawn to {given.out}")


def captioned(pictures: Sequence[str], recursive: bool, name: str | None) -> list[Image.Image]:
    """A cell for each picture; one that is broken is reported and left out."""
    cells, model = [], None
    for source in find_images(pictures, recursive=recursive):
        try:
            picture = source.open()
        except BadImage as error:
            print(error, file=sys.stderr)
            continue
        model = model or captioner.load(name)
        [prompt] = model.generate([picture])
        cells.append(cell(ImageOps.contain(picture, (WIDTH, WIDTH)), Path(source.name).name, prompt.text))
    if not cells:
        raise BadImage("There is no picture to draw.")
    return cells


def cell(picture: Image.Image, name: str, caption: str) -> Image.Image:
    """A picture on a square mat, its file name, and the whole caption in as many lines as it needs."""
    lines = wrapped(caption, WIDTH)
    image = Image.new("RGB", (WIDTH, WIDTH + 2 * LINE + LINE * len(lines)), PAPER)
    image.paste(MAT, (0, 0, WIDTH, WIDTH))
    image.paste(picture, ((WIDTH - picture.width) // 2, (WIDTH - picture.height) // 2))
    pen = ImageDraw.Draw(image)
    pen.text((0, WIDTH + 8), wrapped(name, WIDTH, NAME)[0], GREY, NAME)
    for row, line in enumerate(lines):
        pen.text((0, WIDTH + 8 + LINE * (row + 1)), line, INK, TEXT)
    return image


def wrapped(text: str, width: int, font: ImageFont.FreeTypeFont = TEXT) -> list[str]:
    """The text in lines no wider than so many pixels; a word that is wider is broken."""
    lines, line = [], ""
    for word in text.split():
        if line and font.getlength(f"{line} {word}") <= width:
            line = f"{line} {word}"
            continue
        lines.append(line)
        line = word
        while font.getlength(line) > width:
            end = next(n for n in range(len(line), 0, -1) if n == 1 or font.getlength(line[:n]) <= width)
            lines.append(line[:end])
            line = line[end:]
    return [*lines[1:], line]


def sheet(cells: Sequence[Image.Image], columns: int, title: str | None) -> Image.Image:
    """The cells in rows, the tops of a row in line."""
    columns = min(columns, len(cells))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(image.height for image in row) + MARGIN for row in rows]
    top = MARGIN + (2 * LINE if title else 0)
    image = Image.new("RGB", (MARGIN + columns * (WIDTH + MARGIN), top + sum(heights)), PAPER)
    if title:
        ImageDraw.Draw(image).text((MARGIN, MARGIN), title, INK, TEXT.font_variant(size=20))
    for row, height in zip(rows, heights, strict=True):
        for column, content in enumerate(row):
            image.paste(content, (MARGIN + column * (WIDTH + MARGIN), top))
        top += height
    return image


if __name__ == "__main__":
    main()
