"""What every decoder must hold, whatever is inside. Each family's tests call these on its tiny checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from captioner.contracts import PLAIN_REQUEST, Decoder, Processor, Request
from captioner.decoding import Decoding
from captioner.models.parts.speaker import SearchedDecoder
from captioner.search.search import search

BY_HEART = [
    f"a {look} {what}"
    for look in ("red", "blue", "tiny", "old")
    for what in ("fox", "ship, 4k", "king at dawn", "city (rain)!")
]
"""Sixteen short prompts that share beginnings and endings."""


ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    """Pictures that differ at a glance: blocks of strong colour, of several shapes."""
    random = np.random.default_rng(seed)
    blocks = [random.integers(0, 256, (3, 4, 3), dtype=np.uint8) for _ in range(count)]
    return [
        Image.fromarray(block).resize((60 + 10 * (n % 4), 80), Image.Resampling.NEAREST)
        for n, block in enumerate(blocks)
    ]


@torch.no_grad()
def norms_that_have_seen(tower: torch.nn.Module, pixels: torch.Tensor) -> None:
    """Let the batch norms of a random tower take their statistics from these pixels: without that, its features are
    much the same for all pictures."""
    for norm in (module for module in tower.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.train().momentum = None  # the plain mean over what it sees
    tower(pixels)
    tower.eval()


def texts(
    speaker: SearchedDecoder, images: Sequence[Image.Image], request: Request = PLAIN_REQUEST, **settings
) -> list[tuple[str, float]]:
    """The best candidate of every picture."""
    readings = speaker.read_images(images, Decoding(max_new_tokens=8, **settings), request)
    return [(reading.candidates[0].text, round(reading.candidates[0].score, 5)) for reading in readings]


def assert_batch_equals_singles(speaker: SearchedDecoder) -> None:
    """Five pictures at once and one by one, greedy and with beams; and they do not all say the same."""
    images = pictures(5)
    for beams in (1, 4):
        at_once = texts(speaker, images, num_beams=beams)
        assert at_once == [texts(speaker, [image], num_beams=beams)[0] for image in images]
        assert len(set(at_once)) > 1
    assert at_once == texts(speaker, images, num_beams=beams)


@torch.no_grad()
def assert_steps_equal_full_pass(model: Decoder, pixels: torch.Tensor, ids: torch.Tensor, atol: float) -> None:
    """Token by token, for two beams an image that swap places at every step, the logits of one full pass.

    ids [images, 2, t]: what the two beams of each image read.
    """
    images, _, length = ids.shape
    full = torch.stack([model(pixels, input_ids=ids[:, beam]).logits for beam in range(2)], 1)  # [images, 2, t, V]
    memory, past = model.read(pixels), None
    order = torch.arange(2)
    swap = torch.arange(images * 2).view(images, 2).flip(1).flatten()
    for t in range(length):
        logits, past = model.step(ids[:, order, t].reshape(-1, 1), memory, past)
        torch.testing.assert_close(logits.view(images, 2, -1), full[:, order, t], atol=atol, rtol=0)
        order, past = order.flip(0), past.select(swap)
    at_once, _ = model.step(ids[:, 0], memory, None)
    torch.testing.assert_close(at_once, full[:, 0, -1], atol=atol, rtol=0)
    last = torch.tensor([images - 1])
    alone, _ = model.step(ids[-1:, 0], memory.select(last), None)
    torch.testing.assert_close(alone, full[-1:, 0, -1], atol=atol, rtol=0)


def overfit(model: torch.nn.Module, processor: Processor, prompts: Sequence[str], steps: int, lr: float) -> list[str]:
    """Train on one picture per prompt, then say what the model generates for them. A wrong shift, mask or start of
    the text cannot give the prompts back."""
    pixels = processor.preprocess(pictures(len(prompts)))
    rows = [[*processor.start_ids, *processor.encode(prompt), processor.eos_ids[0]] for prompt in prompts]
    length = max(map(len, rows))
    ids = torch.tensor([row + [processor.pad_id] * (length - len(row)) for row in rows])  # [B, T]
    seen = torch.arange(length) < torch.tensor([[len(row)] for row in rows])
    labels = ids.masked_fill(~seen, -100)
    labels[:, : len(processor.start_ids)] = -100
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr, weight_decay=0.0)
    with torch.no_grad():
        features = model.eval().encode(pixels)
    model.train()
    for _ in range(steps):
        loss = model(features=features, input_ids=ids, attention_mask=seen.long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        found = search(model, model.remember(features), processor, Decoding(num_beams=2, max_new_tokens=length))
    return [processor.decode(best[0].ids) for best in found]
