"""One picture of many: every image of a folder with the prompt that captioner reads from it.

python examples/contact_sheet.py examples/pictures --out build/demo.png
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

import captioner
from captioner.images import open_image


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--model", help="a name of `captioner models`; left out: the default")
    arguments.add_argument("--out", type=Path, default=Path("build/demo.png"))
    given = arguments.parse_args()

    paths = sorted(path for path in given.folder.iterdir() if path.suffix.lower() in {".jpg", ".png", ".webp"})
    model = captioner.load(given.model)
    prompts = model.generate(paths)

    figure, axes = plt.subplots(1, len(paths), figsize=(3.2 * len(paths), 4.2), squeeze=False)
    for axis, path, prompt in zip(axes[0], paths, prompts, strict=True):
        axis.imshow(open_image(path))
        axis.set_title(textwrap.fill(prompt.text, 34), fontsize=10, loc="left", wrap=True, y=-0.05, va="top")
        axis.axis("off")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(given.out, dpi=110, bbox_inches="tight", facecolor="white")
    print(f"{len(paths)} prompts by {model.name} drawn to {given.out}")


if __name__ == "__main__":
    main()
