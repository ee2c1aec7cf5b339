"""Threads that compute side by side: each alone, in order, and without a trace in the threads that do not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from captioner import compute


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def openmp_threads(_: object = None) -> int:
    """How many threads the next product here is shared by; torch's own figure is asked for first, as it sets that."""
    torch.get_num_threads()
    counts = [line for line in torch.__config__.parallel_info().splitlines() if "omp_get_max_threads" in line]
    return int(counts[0].rsplit(maxsplit=1)[-1])


def test_each_computes_alone_and_others_as_before(two_threads: None) -> None:
    assert list(compute.side_by_side().map(openmp_threads, range(4))) == [1] * 4
    assert openmp_threads() == torch.get_num_threads() == 2


@pytest.mark.parametrize("items", [1, 2, 5])
@torch.inference_mode()
def test_each_item_is_computed_once_and_in_order(two_threads: None, items: int) -> None:
    shared = []

    def doubled(item: Tensor) -> Tensor:
        shared.append(torch.get_num_threads())
        return 2 * item

    batch = torch.arange(3 * items).view(items, 3)
    assert torch.equal(torch.stack(compute.each_alone(doubled, batch)), 2 * batch)
    assert sorted(shared) == [1] * (items // 2 * 2) + [2] * (items % 2)  # what is left over is shared by both


def test_gradients_are_kept(two_threads: None) -> None:
    batch = torch.ones(4, 2, requires_grad=True)
    torch.stack(compute.each_alone(lambda item: 3 * item, batch)).sum().backward()
    assert batch.grad is not None
    assert batch.grad.eq(3).all()


FORK = """
import multiprocessing, torch
from captioner import compute
def compute_by_all():
    return torch.ones(1_000_000).sin().sum().item()
torch.set_num_threads(2)
expected = compute_by_all()
with torch.inference_mode():
    compute.each_alone(torch.sin, [torch.ones(9)] * 2)
with multiprocessing.get_context("fork").Pool(1) as fork:
    assert abs(fork.apply_async(compute_by_all).get(60) / expected - 1) < 1e-4
    assert fork.apply(torch.get_num_threads) == 1
assert torch.get_num_threads() == 2
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are spawned there")
def test_a_fork_of_a_process_that_has_computed_does_not_wait_for_its_threads() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
