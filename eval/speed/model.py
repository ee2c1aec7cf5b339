"""How fast a model is on this machine, and, for BLIP, how much faster than transformers' own `generate`.

Ours and theirs caption the same pictures with the same weights in turn (A B A B …), so that what else the machine does
meets both; the figures of interest are ratios. Every text has exactly NEW_TOKENS tokens, so the work is the same too.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import BertTokenizer, BlipConfig
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from captioner import compute, pipeline, zoo
from captioner.contracts import LoadOptions, Speaker
from captioner.decoding import Decoding
from captioner.errors import BadInput, printable
from captioner.models.blip import Blip
from captioner.models.parts import checkpoint
from captioner.models.parts.speaker import SearchedDecoder
from captioner.quiet import without_bars
from captioner.search.search import Hypothesis, search
from eval.speed.clock import by_turns, check_file, flops, machine, peak, spread, timed, wait, write_figures
from eval.speed.suite import Row

COLUMNS = (
    "encode, decode, total: reading the picture, writing its text, both. theirs: the same work by transformers' own "
    "generate in fp32 (on a GPU in bf16); times faster: theirs / total (lowest–highest); alike: the same "
    "with transformers in this precision. MB: the most memory that the work took beyond the loaded model. ceiling: the "
    "share of this machine's fastest matrix product that encoding reaches."
)
"""What the table's headings mean."""

NEW_TOKENS = 24
DECODING = Decoding(num_beams=4, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)

RANDOM = {
    "blip-tiny-random": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "blip-base-random": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12},
    "blip-large-random": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
}
"""Vision towers of random models of these sizes; the text decoder is BLIP base's in all but the tiny one."""

REPEATS, ON_GPU = 2, 5
"""Turns of the suite; a GPU takes seconds for one."""
LEAST: dict[str, dict[tuple[str, int], float]] = {
    "a CPU with AVX-512": {("fp32", 1): 4, ("fp32", 8): 6, ("bf16", 1): 6, ("bf16", 8): 10},
    "another CPU": {("fp32", 1): 2.2, ("fp32", 8): 3.5},
    "a GPU": {("bf16", 64): 3},
}
"""How many times faster than transformers in its usual precision, for a precision and a batch; the others are shown."""
LEAST_ALIKE = 3
"""And than transformers in bf16, where that is not the usual one."""


def measure(say: Callable[[str], object]) -> list[Row]:
    """BLIP with random weights beside transformers: of the base size a picture and eight, in bf16 too where it pays;
    on a GPU of both sizes a picture and 64, in bf16."""
    if torch.cuda.is_available():
        results = [speed(name, [1, 64], ["bf16"], ON_GPU, caption=False) for name in list(RANDOM)[1:]]
    else:
        precisions = ["fp32", *(["bf16"] if compute.has_bf16() else [])]
        results = [speed("blip-base-random", [1, 8], precisions, REPEATS, caption=False)]
    return [row for result in results for found in result["rows"] for row in ratios(found, result)]


def ratios(row: dict[str, Any], result: dict[str, Any]) -> list[Row]:
    """What a row of a result of `speed` says, beside what it should."""
    precision, batch, usual = row["precision"], row["batch"], result["their_precision"]
    size = result["model"].split("-")[1]
    subject = f"BLIP {size}, {precision}, {batch} at a time"
    least = LEAST[_kind_of_machine()].get((precision, batch))
    rows = [Row(subject, f"times faster than transformers in {usual}", row["ratio"]["turns"], least, details=row)]
    if precision != usual:
        rows.append(
            Row(subject, f"times faster than transformers in {precision}", row["ratio_alike"]["turns"], LEAST_ALIKE)
        )
    memory = row["peak_bytes"] / max(1, row["their_peak_bytes"])
    return [
        *rows,
        Row(subject, "share of the fastest product in encoding", [row["share_of_ceiling"]], least and 0.65),
        Row(subject, "of transformers' memory beyond the model", [memory], most=least and 1),
    ]


def _kind_of_machine() -> str:
    if torch.cuda.is_available():
        return "a GPU"
    return "a CPU with AVX-512" if compute.has_avx512() else "another CPU"


def speed(
    model: str,
    batch_sizes: list[int],
    precisions: list[str],
    repeats: int = 5,
    out: Path | None = None,
    device: str = "auto",
    caption: bool = True,
) -> dict:
    """Measure a model (zoo name, folder, Hub id, or one of `RANDOM`) at every precision and batch size.

    Returns (and writes as JSON to `out`) the machine, the settings and one row per precision and batch size; with
    caption, also how long one picture takes from end to end.
    """
    if not (batch_sizes and precisions and repeats > 0 and min(batch_sizes) > 0):
        raise BadInput("speed needs at least one batch size, one precision and one repeat, each above 0.")
    check_file(out)
    where = compute.device(device)
    for precision in precisions:
        compute.precision(precision, where)
    with measured(model) as (module, folder):
        usual = compute.precision("auto", where)  # fp32 on a CPU
        theirs = _theirs(module, folder, device, usual)
        rows, seconds = [], None
        for precision in precisions:
            options = LoadOptions(device=device, precision=precision)
            start = time.perf_counter()
            captioner = load(str(folder or model), options)
            loading = time.perf_counter() - start
            alike = (
                theirs if compute.precision(precision, where) == usual else _theirs(module, folder, device, precision)
            )
            for size in batch_sizes:
                row = {"precision": precision, "batch": size, "load_seconds": loading}
                rows.append(row | _measure(captioner.speaker, theirs, alike, options, size, repeats))
            if caption and seconds is None:  # of the first precision
                seconds = _caption(captioner, repeats)
    result = {"model": model, "machine": machine(), "repeats": repeats, "beams": DECODING.num_beams,
              "new_tokens": NEW_TOKENS, "their_precision": usual, "rows": rows, "caption": seconds}  # fmt: skip
    write_figures(out, result)
    return result


@contextmanager
def measured(model: str) -> Iterator[tuple[str, Path | None]]:
    """The architecture and the folder of a captioner; a random one's lasts as long as it is measured."""
    if model in RANDOM:
        with tempfile.TemporaryDirectory() as scratch:
            yield "blip", random_blip(Path(scratch), model)
        return
    resolved = zoo.resolve(model)
    if not resolved.speaks:
        raise BadInput(f"{model} writes no text: speed measures captioners.")
    yield resolved.module, resolved.folder


def load(model: str, options: LoadOptions) -> pipeline.Captioner:
    """A model that writes text."""
    captioner = pipeline.load(model, options)
    if not isinstance(captioner, pipeline.Captioner):
        raise BadInput(f"{model} writes no text: speed measures captioners.")
    return captioner


def _caption(captioner: pipeline.Captioner, repeats: int) -> dict:
    """Seconds from one opened picture to its prompt, searched and chosen as the model's own settings say."""
    first, *others = ([picture(seed)] for seed in range(repeats + 1))
    captioner.generate(first)
    return spread([timed(partial(captioner.generate, picture))[0] for picture in others])


def picture(seed: int) -> Image.Image:
    """Noise of a usual size: what a picture shows does not change the work."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (512, 512, 3), dtype=np.uint8))


@without_bars()
def random_blip(folder: Path, name: str) -> Path:
    """A checkpoint of the real size in the real files, its weights drawn at random."""
    vision = RANDOM[name] | {"initializer_range": 0.02}
    tiny = name == "blip-tiny-random"
    side = 64 if tiny else 384
    config = BlipConfig(
        vision_config=vision | {"image_size": side},
        text_config=vision if tiny else {"num_attention_heads": 12},
    )
    torch.manual_seed(0)
    Blip(config).save_pretrained(folder)
    words = [f"word{i}" for i in range(30522)]
    words[0], words[100:104] = "[PAD]", ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # where BERT has them
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    BlipImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
    return folder


def _theirs(module: str, folder: Path | None, device: str, precision: str) -> Blip | None:
    """The same weights for transformers' own `generate` in this precision; None where transformers has none."""
    if module != "blip" or folder is None or precision == "int8":
        return None
    where = compute.device(device)
    dtype = compute.DTYPES[compute.precision(precision, where)]
    return checkpoint.read_model(Blip, folder, dtype).eval().to(where)


@torch.inference_mode()
def _measure(
    ours: Speaker, theirs: Blip | None, alike: Blip | None, options: LoadOptions, batch: int, repeats: int
) -> dict[str, Any]:
    """One row: seconds per picture, ratios, peak memory, and the share of the machine's ceiling.

    theirs: transformers' model in its usual precision; alike: in the same as ours.
    """
    pictures = [picture(seed) for seed in range(batch)]
    if not isinstance(ours, SearchedDecoder):  # no phases to tell apart
        total = timed(lambda: ours.read_images(pictures, DECODING), repeats)
        most = peak(lambda: ours.read_images(pictures, DECODING), compute.device(options.device))
        return {"total": spread(total, batch), "peak_bytes": most}

    pixels = ours.processor.preprocess(pictures).to(ours.model.device)
    own_pixels = pixels.to(ours.model.dtype)
    memory = ours.model.read(own_pixels)  # also the warm-up

    def encode() -> None:
        nonlocal memory
        memory = ours.model.read(own_pixels)
        wait(pixels.device)

    def decode() -> list[list[Hypothesis]]:
        candidates = search(ours.model, memory, ours.processor, DECODING)
        wait(pixels.device)
        return candidates

    def both() -> list[list[Hypothesis]]:
        encode()
        return decode()

    row: dict[str, Any] = {"peak_bytes": peak(both, pixels.device)}
    generate = None if theirs is None else _generating(theirs, pixels)
    generate_alike = None if alike is None or alike is theirs else _generating(alike, pixels)
    if generate is not None:
        row["their_peak_bytes"] = peak(generate, pixels.device)
        start = len(ours.processor.start_ids)
        of_same = generate_alike or generate
        same = [a[0].ids == b[start:].tolist() for a, b in zip(both(), of_same(), strict=True)]
        row["same_ids"] = sum(same) / batch  # as transformers in the same precision
    seconds: dict[str, list[float]] = {"encode": [], "decode": [], "total": [], "theirs": [], "alike": []}
    for _ in range(repeats):  # in turns: what else the machine does meets both alike
        if generate is not None:
            seconds["theirs"] += timed(generate)
        if generate_alike is not None:
            seconds["alike"] += timed(generate_alike)
        seconds["encode"] += timed(encode)
        seconds["decode"] += timed(decode)
        seconds["total"].append(seconds["encode"][-1] + seconds["decode"][-1])
    row |= {phase: spread(taken, batch) for phase, taken in seconds.items() if taken}
    for phase, name in (("theirs", "ratio"), ("alike", "ratio_alike")):
        if seconds[phase]:
            row[name] = spread([a / b for a, b in zip(seconds[phase], seconds["total"], strict=True)])
    if alike is theirs and "ratio" in row:
        row["ratio_alike"] = row["ratio"]
    operations = batch * flops(lambda: ours.model.read(own_pixels[:1]))
    return row | _ceiling(options, operations, min(seconds["encode"]))


def _generating(theirs: Blip, pixels: torch.Tensor) -> Callable[[], torch.Tensor]:
    """transformers' own beam search over the same pixels."""
    return partial(
        theirs.generate,
        pixels.to(theirs.dtype),
        num_beams=DECODING.num_beams,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
    )


def _ceiling(options: LoadOptions, operations: int, seconds: float) -> dict:
    """The machine's fastest product of a vision layer's size in this precision, and how near encoding comes to it.

    8-bit products are not seen by the counter of operations, so int8 has a ceiling and no share.
    """
    fastest = peak_flops(options)
    counted = compute.precision(options.precision, compute.device(options.device)) != "int8"
    return {
        "ceiling_gflops": fastest / 1e9,
        "encode_gflops": operations / seconds / 1e9 if counted else None,
        "share_of_ceiling": operations / seconds / fastest if counted else None,
    }


@torch.inference_mode()
def peak_flops(options: LoadOptions) -> float:
    """Operations a second of the fastest product of a vision layer's size: packed or plain, whichever is faster.

    Of two pictures on a CPU, of 64 on a GPU, which needs so many to be busy.
    """
    where = compute.device(options.device)
    dtype = compute.DTYPES.get(compute.precision(options.precision, where), torch.float32)
    x = torch.randn(577 * (2 if where.type == "cpu" else 64), 768).to(where, dtype)

    def product(layer: torch.nn.Module) -> None:
        layer(x)
        wait(x.device)

    plain = torch.nn.Sequential(torch.nn.Linear(768, 3072)).to(where, dtype)
    packed = compute.prepare(torch.nn.Sequential(torch.nn.Linear(768, 3072)), options)
    taken = by_turns(partial(product, plain), partial(product, packed), repeats=8)
    return 2 * x.numel() * 3072 / min(map(min, taken))


def print_table(result: dict) -> None:
    """The rows for a reader, within 80 columns: medians, and ratios to transformers."""
    name = printable(result["model"])
    title = f"{name}: {result['beams']} beams, {result['new_tokens']} tokens, milliseconds per picture"
    table = Table(title=Text(title), box=None, padding=(0, 1, 0, 0))
    for heading in (
        "precision", "batch", "encode", "decode", "total", "theirs", "times faster", "alike", "MB", "ceiling"
    ):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result["rows"]:
        share = row.get("share_of_ceiling")
        phases = [row.get(phase) for phase in ("encode", "decode", "total", "theirs")]
        table.add_row(
            row["precision"],
            str(row["batch"]),
            *(f"{1000 * phase['median']:.0f}" if phase else "–" for phase in phases),
            "{median:.2f} ({min:.2f}–{max:.2f})".format(**row["ratio"]) if "ratio" in row else "–",
            f"{row['ratio_alike']['median']:.2f}" if "ratio_alike" in row else "–",
            f"{row['peak_bytes'] / 1e6:.0f}",
            f"{share:.0%}" if share is not None else "–",
        )
    console = Console()
    console.print(table)
    console.print(Text(COLUMNS, "dim"))
    if (caption := result["caption"]) is not None:
        milliseconds = [f"{1000 * caption[name]:.0f}" for name in ("median", "min", "max")]
        print("a caption, picture to prompt by the model's own settings: {} ms ({} to {})".format(*milliseconds))
