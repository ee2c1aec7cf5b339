"""`python -m training.data synthesize`: prompts → pictures by a Stable Diffusion pipeline, as an image folder.

What is drawn follows from the settings alone: prompt N has seed + N, whatever the batch, so a run that was stopped goes
on to the same pictures (`drawing.py`).
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from captioner.errors import BadInput
from captioner.files.names import path_of
from training.data.cleaning import terms
from training.data.drawing import Drawing, Job, draw_missing, drawn_lines
from training.data.options import Synthesis
from training.data.prepare import read_prompts

PLAN = "synthesis.json"
BY_NATURE = ("prompts", "recombine", "model", "steps", "size", "save_size", "guidance", "seed")
"""Settings that decide what is drawn: a folder is gone on with only if they are the same."""


def synthesize(options: Synthesis) -> None:
    """Draw what is not there yet."""
    out = Path(options.out)
    prompts = planned(read_prompts(path_of(options.prompts)), options)
    chosen = asdict(options)
    jobs = [
        Job(f"{number:06}.png", prompt, options.seed + number, {"model": options.model})
        for number, prompt in enumerate(prompts)
    ]
    drawing = Drawing(**{field.name: chosen[field.name] for field in fields(Drawing)})
    flagged = draw_missing(out, PLAN, {name: chosen[name] for name in BY_NATURE}, jobs, drawing)
    if flagged:
        print(f"{flagged} pictures were blacked out by the pipeline's safety checker: left out.", file=sys.stderr)
    print(f"{out}: {len(drawn_lines(out)):,} pictures; train on them with --data {out}")


# --- prompts ---------------------------------------------------------------------------------------------------------


def planned(prompts: Sequence[str], options: Synthesis) -> list[str]:
    """Which prompts are drawn, in order. More of them begins with the same ones."""
    if options.recombine:
        return recombined(prompts, options.count, options.seed)
    different = list(dict.fromkeys(prompts))
    if options.count > len(different):
        raise BadInput(
            f"{options.prompts} has {len(different):,} different prompts, fewer than --count {options.count:,}. "
            f"Ask for fewer, or make new ones with --recombine."
        )
    random.Random(options.seed).shuffle(different)
    return different[: options.count]


def recombined(prompts: Sequence[str], count: int, seed: int) -> list[str]:
    """New prompts: the first term of one, and as many terms as another has, drawn by how often they occur."""
    split = [of_prompt for prompt in prompts if (of_prompt := terms(prompt))]
    if not split:
        raise BadInput("The prompts hold nothing to recombine.")
    frequency = Counter(term for of_prompt in split for term in of_prompt[1:])
    vocabulary, weights = list(frequency), list(frequency.values())
    generator = random.Random(seed)
    recombinations = []
    for _ in range(count):
        subject, model = generator.choice(split)[0], generator.choice(split)
        added = generator.choices(vocabulary, weights, k=len(model) - 1) if vocabulary else []
        recombinations.append(", ".join(dict.fromkeys([subject, *added])))
    return recombinations
