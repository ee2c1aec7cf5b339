"""What the scripts beside this one share: simple pictures with prompts, and commands that are shown as they run."""

from __future__ import annotations

import itertools
import random
import runpy
import shlex
import sys
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = ("red", "blue", "green", "gold", "purple")
SHAPES = ("circle", "square", "triangle", "ring")
GROUNDS = ("white", "black", "grey")
SIDE = 128


def draw_pairs(folder: Path, first: int, last: int) -> None:
    """Draw the prompts `first` to `last` of 60 in a fixed random order; a .txt beside every picture has its prompt."""
    prompts = list(itertools.product(COLOURS, SHAPES, GROUNDS))
    random.Random(0).shuffle(prompts)
    folder.mkdir(parents=True)
    for number, (colour, shape, ground) in enumerate(prompts[first:last], first):
        draw(colour, shape, ground, random.Random(number)).save(folder / f"{number:02}.png")
        text = f"a {colour} {shape} on a {ground} background, flat vector art\n"
        (folder / f"{number:02}.txt").write_text(text, encoding="utf-8")


def draw(colour: str, shape: str, ground: str, chance: random.Random) -> Image.Image:
    """One shape, somewhere, of some size."""
    picture = Image.new("RGB", (SIDE, SIDE), ground)
    pen = ImageDraw.Draw(picture)
    width = chance.randint(40, 90)
    x, y = chance.randint(0, SIDE - width), chance.randint(0, SIDE - width)
    box = (x, y, x + width, y + width)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "ring":
        pen.ellipse(box, outline=colour, width=width // 6)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon([(x, y + width), (x + width, y + width), (x + width // 2, y)], fill=colour)
    return picture


def run(program: str, *arguments: str | Path) -> None:
    """Show a command, `captioner VERB` or `python -m MODULE`, and run it. One that fails ends the script.

    A shell would start a process for each; here they share this one, so that torch is loaded once.
    """
    words = [*program.split(), *map(str, arguments)]
    print(f"\n$ {shlex.join(words)}", flush=True)
    module, *rest = words if words[0] == "captioner" else words[2:]
    sys.argv = [module, *rest]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
