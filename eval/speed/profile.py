"""Where the time of a caption goes: phases beside their floors, and a flame picture of every operation.

The phases are what happens to a picture, in order; the floor of a phase is what this machine's fastest matrix product,
or its memory, would need for the same work.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.profiler import record_function

from captioner import compute
from captioner.compute import PackedLinear
from captioner.contracts import LoadOptions
from captioner.errors import BadInput
from captioner.files import atomic
from captioner.images import open_image
from captioner.models.blip import Blip
from captioner.models.parts.speaker import SearchedDecoder
from captioner.search.search import search
from captioner.text.finish import Finish
from eval.speed.clock import check_file, flops, machine, timed, write_figures
from eval.speed.model import DECODING, NEW_TOKENS, load, measured, peak_flops, picture

PHASES = (
    "open picture",
    "pixels",
    "encode",
    "project",
    "text: products",
    "text: attention",
    "text: head",
    "text: other",
    "search",
    "post-process",
)
"""What happens to a picture, in order. project: the image's keys and values; search: beams, their scores and places."""
ATTENTION = ("aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::_scaled_dot_product")
PRODUCTS = ("mkldnn::_linear_pointwise", "aten::addmm", "aten::mm", "quantized::linear", "onednn::qlinear")


@dataclass(frozen=True)
class Phase:
    """Seconds of one phase for a whole batch, and of its floor where it has one."""

    name: str
    seconds: float
    floor: float | None


@dataclass(frozen=True)
class Profile:
    """One caption of a batch, phase by phase."""

    precision: str
    batch: int
    phases: list[Phase]
    stacks: dict[tuple[str, ...], float]
    """Seconds of each operation by itself, by what it was called from, outermost first."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        rows = [{"phase": phase.name, "seconds": phase.seconds, "floor": phase.floor} for phase in self.phases]
        return {"precision": self.precision, "batch": self.batch, "phases": rows}


@contextmanager
def _seen(model: Any) -> Iterator[None]:
    """Each step of a decoder, and of BLIP's what gives its logits, is seen by the profiler under its name."""
    step, hooks, scopes = model.step, [], []

    def seen_step(*given: Any) -> Any:
        with record_function("step"):
            return step(*given)

    def enter(*_called: object) -> None:
        scopes.append(record_function("head"))
        scopes[-1].__enter__()

    def leave(*_called: object) -> None:
        scopes.pop().__exit__(None, None, None)

    if isinstance(model, Blip):
        head = model.text_decoder.cls
        hooks = [head.register_forward_pre_hook(enter), head.register_forward_hook(leave)]
    model.step = seen_step
    try:
        yield
    finally:
        del model.step  # the class has its own
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def profile(speaker: SearchedDecoder, options: LoadOptions, batch: int) -> Profile:
    """Caption the same batch twice, and look at the second time."""
    jpegs = [_jpeg(seed) for seed in range(batch)]
    finish = Finish()

    def caption() -> None:
        with record_function("open picture"):
            images = [open_image(jpeg) for jpeg in jpegs]
        with record_function("pixels"):
            pixels = speaker.processor.preprocess(images).to(speaker.model.device, speaker.model.dtype)
        with record_function("encode"):
            features = speaker.model.encode(pixels)
        with record_function("project"):
            memory = speaker.model.remember(features)
        with record_function("search"):
            candidates = search(speaker.model, memory, speaker.processor, DECODING)
        with record_function("post-process"):
            for hypotheses in candidates:
                for candidate in speaker.reading(hypotheses).candidates:
                    finish.body(candidate.text, candidate.finished)

    caption()
    with _seen(speaker.model), torch.profiler.profile() as watched:
        caption()
    stacks: dict[tuple[str, ...], float] = defaultdict(float)
    for event in watched.events() or []:
        stacks[_path(event)] += event.self_cpu_time_total / 1e6
    seconds: dict[str, float] = defaultdict(float)
    for path, taken in stacks.items():
        if (phase := _phase(path)) is not None:
            seconds[phase] += taken
    floors = _floors(speaker, options, batch)
    phases = [Phase(name, seconds[name], floors.get(name)) for name in PHASES]
    return Profile(compute.precision(options.precision, speaker.model.device), batch, phases, dict(stacks))


def _jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, "JPEG")
    return file.getvalue()


def _path(event: Any) -> tuple[str, ...]:
    """The event's name, after those of all that it happened in."""
    names = []
    while event is not None:
        names.append(str(event.name))
        event = event.cpu_parent
    return tuple(reversed(names))


def _phase(path: tuple[str, ...]) -> str | None:
    """Which phase an operation belongs to."""
    if path[0] not in PHASES:
        return None
    if "step" not in path:
        return path[0]
    if "head" in path:
        return "text: head"
    if any(name.startswith(ATTENTION) for name in path):
        return "text: attention"
    return "text: products" if any(name.startswith(PRODUCTS) for name in path) else "text: other"


def show(
    model: str, batch_sizes: Sequence[int], precisions: Sequence[str], flame: Path, out: Path | None, device: str
) -> None:
    """Profile every precision and batch size: a table each, one flame picture of all, and JSON where it is wanted."""
    for file in (flame, out):
        check_file(file)
    profiles = []
    with measured(model) as (_, folder):
        for precision in precisions:
            options = LoadOptions(device=device, precision=precision)
            speaker = load(str(folder or model), options).speaker
            if not isinstance(speaker, SearchedDecoder):
                raise BadInput(f"{model} has no phases to tell apart: profile a captioner that our search drives.")
            profiles += [profile(speaker, options, batch) for batch in batch_sizes]
    write_flame(profiles, flame)
    write_figures(out, {"model": model, "machine": machine(), "profiles": [one.to_dict() for one in profiles]})
    for one in profiles:
        print_table(one)
    print(f"written: {flame}")


# --- floors ----------------------------------------------------------------------------------------------------------


def _floors(speaker: SearchedDecoder, options: LoadOptions, batch: int) -> dict[str, float]:
    """Seconds that the machine's ceilings leave for the phases whose work can be counted."""
    if compute.precision(options.precision, speaker.model.device) == "int8":
        return {}  # its products are not seen by the counter of operations
    fastest, bandwidth = peak_flops(options), memory_bandwidth()
    pixels = speaker.processor.preprocess([picture(seed) for seed in range(batch)])
    pixels = pixels.to(speaker.model.device, speaker.model.dtype)
    features = speaker.model.encode(pixels)
    floors = {
        "encode": batch * flops(lambda: speaker.model.encode(pixels[:1])) / fastest,
        "project": flops(lambda: speaker.model.remember(features)) / fastest,
    }
    if isinstance(speaker.model, Blip):
        bert, head = speaker.model.text_decoder.bert, speaker.model.text_decoder.cls
        rows = batch * DECODING.num_beams
        skipped = [layer.crossattention.self for layer in speaker.model.text_layers()]  # read once, in "project"
        projected = sum(_weights(part) for attention in skipped for part in (attention.key, attention.value))
        for name, weights in (("text: products", _weights(bert) - projected), ("text: head", _weights(head))):
            width = speaker.model.dtype.itemsize
            floors[name] = NEW_TOKENS * max(weights * width / bandwidth, 2 * weights * rows / fastest)
        memory = speaker.model.remember(features).layers
        held = sum(tensor.numel() * tensor.element_size() for layer in memory for tensor in layer)
        floors["text: attention"] = NEW_TOKENS * held / bandwidth
    return floors


def _weights(module: nn.Module) -> int:
    """Weights of its linear layers, packed or not."""
    layers = (layer for layer in module.modules() if isinstance(layer, nn.Linear | PackedLinear))
    return sum(layer.in_features * layer.out_features for layer in layers)


def memory_bandwidth() -> float:
    """Bytes a second that all threads together read from memory, of a stretch that no cache holds."""
    numbers = torch.ones(128_000_000)
    return 4 * numbers.numel() / min(timed(numbers.sum, 3))


# --- how it is shown -------------------------------------------------------------------------------------------------


def print_table(profiled: Profile) -> None:
    """Milliseconds a picture of every phase, its share, and how near it is to its floor."""
    whole = sum(phase.seconds for phase in profiled.phases)
    title = f"{profiled.precision}, batch {profiled.batch}: {1000 * whole / profiled.batch:.0f} ms a picture"
    table = Table(title=title, box=None, padding=(0, 2, 0, 0))
    for heading in ("phase", "ms", "share", "floor ms", "of floor"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    for phase in profiled.phases:
        cells = [phase.name, f"{1000 * phase.seconds / profiled.batch:.1f}", f"{phase.seconds / whole:.0%}"]
        if phase.floor is not None and phase.seconds:
            cells += [f"{1000 * phase.floor / profiled.batch:.1f}", f"{phase.floor / phase.seconds:.0%}"]
        table.add_row(*cells)
    Console().print(table)


WIDTH, HEIGHT = 1200, 18
THIN = 0.5
"""Narrower rectangles are left out."""


def write_flame(profiled: Sequence[Profile], out: Path) -> None:
    """An SVG with a flame for each profile: as wide as its seconds, callers above what they called."""
    parts, top = [], 0
    for one in profiled:
        depth = max(map(len, one.stacks), default=0)
        parts.append(f'<text x="4" y="{top + 16}" class="title">{escape(one.precision)}, batch {one.batch}</text>')
        stacks = {path: seconds for path, seconds in one.stacks.items() if path[0] in PHASES}
        scale = WIDTH / (sum(stacks.values()) or 1)
        parts += _rectangles(stacks, 0, 0.0, top + 24, scale, sum(stacks.values()))
        top += 36 + HEIGHT * depth
    style = "text{font:12px sans-serif}.title{font-weight:bold}rect{stroke:#fff;stroke-width:.5}"
    atomic.write_text(
        out,
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}">'
        f'<style>{style}</style><rect width="{WIDTH}" height="{top}" fill="#fff"/>{"".join(parts)}</svg>\n',
    )


def _rectangles(
    stacks: dict[tuple[str, ...], float], level: int, left: float, top: float, scale: float, whole: float
) -> Iterator[str]:
    children: dict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
    for path, seconds in stacks.items():
        if len(path) > level:
            children[path[level]][path] = seconds
    for name, below in sorted(children.items(), key=lambda child: -sum(child[1].values())):
        seconds = sum(below.values())
        width = seconds * scale
        if width < THIN:
            continue
        label = escape(f"{name}: {1000 * seconds:.1f} ms, {seconds / whole:.1%}")
        shown = escape(name.removeprefix("aten::")[: int(width / 7)]) if width > 30 else ""
        yield (
            f'<g><title>{label}</title><rect x="{left:.1f}" y="{top:.0f}" width="{width:.1f}" height="{HEIGHT}" '
            f'fill="hsl({_hue(name)},70%,75%)"/><text x="{left + 3:.1f}" y="{top + 13:.0f}">{shown}</text></g>'
        )
        yield from _rectangles(below, level + 1, left, top + HEIGHT, scale, whole)
        left += width


def _hue(name: str) -> int:
    """Products warm, the rest by name."""
    return 10 if name.startswith(PRODUCTS) else 40 + sum(name.encode()) % 180
