"""Arrays written in order are numpy's files, and a full disk is told in the system's own words."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from captioner.errors import BadOutput
from captioner.files import arrays
from captioner.files.cache import cache_folder
from tests.disk import files_of_at_most
from training.vectors import Vectors


@pytest.mark.parametrize(
    "array", [np.arange(7), np.ones((5, 3), np.float16), np.zeros((0, 4), "<f4"), np.arange(24.0).reshape(4, 3, 2).T]
)
def test_a_file_is_what_numpy_writes(tmp_path: Path, array: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "PIECE", 16)  # more than one
    arrays.write(tmp_path / "ours.npy", array)
    np.save(tmp_path / "theirs.npy", np.ascontiguousarray(array))
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()


def test_pieces_of_other_types_and_too_few_rows(tmp_path: Path) -> None:
    arrays.write_pieces(tmp_path / "a.npy", (3, 2), np.float16, [np.ones((2, 2)), np.zeros((1, 2))])
    assert np.load(tmp_path / "a.npy").tolist() == [[1, 1], [1, 1], [0, 0]]
    with pytest.raises(ValueError, match="1 rows of 3"):
        arrays.write_pieces(tmp_path / "a.npy", (3, 2), np.float16, [np.ones((1, 2))])


def test_a_full_disk_has_the_systems_reason(tmp_path: Path) -> None:
    with files_of_at_most(1000), pytest.raises(OSError, match="File too large") as caught:
        arrays.write(tmp_path / "a.npy", np.zeros(100_000))
    assert caught.value.errno == errno.EFBIG


def test_targets_that_the_cache_has_no_room_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`training.direct` told of a bug."""
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path))
    monkeypatch.setattr("training.vectors.text_embedder", lambda _: lambda texts: np.zeros((len(texts), 384)))
    with files_of_at_most(1000), pytest.raises(BadOutput, match=r"File too large\). Make room, or set CAPTIONER_CACHE"):
        Vectors(["a cat"], "minilm")
    assert not [*cache_folder("targets").iterdir()]
