"""What a stage leaves for the next ones: a file is whole or not there, since a stage that finds it goes on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from captioner.files import arrays, atomic


def save_array(path: Path, array: np.ndarray) -> None:
    """One array as .npy."""
    with atomic.replacing(path) as new:
        arrays.write(new, array)


def save_arrays(path: Path, **named: Any) -> None:
    """Arrays by name as .npz (any name but numpy's own, allow_pickle)."""
    with atomic.replacing(path) as new, open(new, "wb") as stream:  # to a path, numpy adds an ending
        np.savez(stream, **named)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Tensors by name as .pt."""
    with atomic.replacing(path) as new:
        torch.save(state, new)
