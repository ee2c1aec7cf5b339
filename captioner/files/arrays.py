"""Arrays as .npy files, written in order by plain writes.

numpy's own way says of a full disk only how many numbers it did not take, without the system's reason; and where a file
is mapped to be written to, a full disk ends the process (SIGBUS).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

PIECE = 1 << 24
"""Bytes written at a time."""


def write_pieces(path: Path, shape: tuple[int, ...], dtype: DTypeLike, pieces: Iterable[np.ndarray]) -> None:
    """An array of this shape, of which each piece is the next rows."""
    kind = np.dtype(dtype)
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    with open(path, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        rows = 0
        for piece in pieces:
            rows += len(piece)
            stream.write(np.ascontiguousarray(piece, dtype=kind).tobytes())
    if rows != shape[0]:
        raise ValueError(f"{rows:,} rows of {shape[0]:,}")


def write(path: Path, array: np.ndarray) -> None:
    """A whole array, which may be a mapped one."""
    step = max(1, PIECE // max(1, array.nbytes // max(1, len(array))))
    write_pieces(path, array.shape, array.dtype, (array[row : row + step] for row in range(0, len(array), step)))
