"""The features of a frozen encoder, computed once a picture and kept: `cached_features(rows, encode, key, folder)`.

The cache is addressed by content: FOLDER/KEY/*.safetensors holds one tensor a picture, named by the SHA-256 of the
picture's file, so a picture with five captions is encoded once, and a changed picture or encoder is encoded anew.
Shards appear whole or not at all: a run that was killed goes on with what is missing.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL.Image import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from captioner.errors import BadImage, BadInput, BadOutput
from captioner.files.atomic import replacing
from captioner.images import open_image
from training.data.progress import track
from training.data.readable import bytes_of, refuse_too_many, report

SHARD_BYTES = 64_000_000
log = logging.getLogger(__name__)


class CachedFeatures:
    """`features[i]` is the float32 tensor of `rows[i]`. `rows` are those given, less the ones that cannot be read."""

    def __init__(self, rows: datasets.Dataset, names: Sequence[str], shard_of: dict[str, Path]) -> None:
        self.rows = rows
        self.names = names
        self.shard_of = shard_of

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        name = self.names[index]
        return _open_shard(self.shard_of[name]).get_tensor(name).float()


@cache
def _open_shard(file: Path) -> safe_open:
    """Shards stay open: to read the table of contents of a shard of small vectors takes longer than a step."""
    return safe_open(file, framework="pt")


def cached_features(
    rows: datasets.Dataset,
    encode: Callable[[list[Image]], Tensor],
    key: str,
    folder: str | Path,
    *,
    batch_size: int = 16,
    dtype: torch.dtype = torch.float16,
) -> CachedFeatures:
    """Features of all rows, from the cache where they are there.

    Args:
        encode: RGB pictures → features, first dimension the pictures: `lambda p: model.encode(preprocess(p))`.
        key: names encoder and preprocessing; see `fingerprint`.
        dtype: float16 halves the disk; float32 loses nothing: training then gives the losses it gives without a cache.
    """
    shards = Path(folder) / f"{key}-{str(dtype).removeprefix('torch.')}"
    with _explained(shards):  # before the work
        shards.mkdir(parents=True, exist_ok=True)
    undecoded = rows.cast_column("image", datasets.Image(decode=False))
    names = [_content(row) for row in track(undecoded, "reading pictures", len(rows))]
    shard_of = _present(shards)
    missing = {name: index for index, name in enumerate(names) if name and name not in shard_of}
    unreadable: set[str] = set()
    for tensors in _encoded(undecoded, missing, encode, batch_size, dtype, unreadable):
        shard_of |= _save(tensors, shards)
    name_of = {index: name for index, name in enumerate(names) if name and name not in unreadable}
    refuse_too_many(len(rows) - len(name_of), len(rows))
    readable = rows if len(name_of) == len(rows) else rows.select(list(name_of))
    return CachedFeatures(readable, list(name_of.values()), shard_of)


def fingerprint(encoder: nn.Module, *preprocessing: object) -> str:
    """Names an encoder by its weights, and by whatever else decides its output (picture size, mean, …)."""
    digest = hashlib.sha256(repr(preprocessing).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _content(row: dict[str, Any]) -> str | None:
    """The name of the picture's features: the SHA-256 of its file; None where that cannot be read."""
    try:
        return hashlib.sha256(bytes_of(row["image"])).hexdigest()
    except BadImage as error:
        report(row, error)
        return None


def _present(shards: Path) -> dict[str, Path]:
    """Picture → the shard that holds it. What a damaged shard held is made again."""
    shard_of: dict[str, Path] = {}
    for file in sorted(shards.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as shard:
                shard_of |= dict.fromkeys(shard.keys(), file)
        except SafetensorError as error:
            log.warning("%s is damaged and left out: %s", file, error)
    return shard_of


def _encoded(
    rows: datasets.Dataset,
    missing: dict[str, int],
    encode: Callable[[list[Image]], Tensor],
    batch_size: int,
    dtype: torch.dtype,
    unreadable: set[str],
) -> Iterator[dict[str, Tensor]]:
    """The missing pictures' features, a shard's worth at a time."""
    tensors: dict[str, Tensor] = {}
    queue: list[tuple[str, Image]] = []
    for name, index in track(missing.items(), "encoding", len(missing)):
        row = rows[index]
        try:
            queue.append((name, open_image(bytes_of(row["image"]))))
        except BadImage as error:
            report(row, error)
            unreadable.add(name)
        if len(queue) == batch_size:
            tensors |= _batch(queue, encode, dtype)
            queue = []
            if sum(tensor.nbytes for tensor in tensors.values()) >= SHARD_BYTES:
                yield tensors
                tensors = {}
    if queue:
        tensors |= _batch(queue, encode, dtype)
    if tensors:
        yield tensors


def _batch(
    queue: list[tuple[str, Image]], encode: Callable[[list[Image]], Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    with torch.no_grad():
        features = encode([picture for _, picture in queue]).to("cpu", dtype)
    if not torch.isfinite(features).all():
        raise BadInput(f"Some features do not fit into {dtype}: leave out --cache-features.")
    return {name: features[row].clone() for row, (name, _) in enumerate(queue)}


def _save(tensors: dict[str, Tensor], shards: Path) -> dict[str, Path]:
    """Write one shard, named by what it holds."""
    name = hashlib.sha256("".join(sorted(tensors)).encode()).hexdigest()[:16]
    file = shards / f"{name}.safetensors"
    with _explained(shards), replacing(file) as unfinished:
        save_file(tensors, unfinished)
    return dict.fromkeys(tensors, file)


@contextmanager
def _explained(shards: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise BadOutput(
            f"Features cannot be kept in {shards} ({error}). Free some space or name another folder."
        ) from error
