"""A pool of Ray actors that do numbered tasks: the shards of a plan, or those of an index.

Plain actors, not Ray Data: a worker reads its shard and writes its part itself, so that only a number goes in and a
few counts come out. Ray Data would move blocks of rows through an object store, keep track of them by a checkpoint of
its own (whose actor and ours held both of two processors, and waited for each other), and write files that are not
these parts, which every other worker knows.

Ray says when a worker is dead; its shard goes to another. What keeps rows right is not Ray but the parts: a driver may
be killed and started again, two may work at once, workers without Ray too.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from captioner.errors import BadInput, CaptionerError, MissingExtra
from captioner.shards import part
from captioner.shards.part import Failure, Job, Manifest
from captioner.shards.plan import Plan

Result = TypeVar("Result")

STORE = 100_000_000
"""Bytes of Ray's object store, in which next to nothing is put."""
AGAIN = 2.0
"""Seconds until a task is asked for again that somebody else is at."""
DEATHS = 3
"""Workers that one task may end, until it is blamed."""
LOOK = 1.0
"""Seconds between two looks at the cluster."""


@dataclass(frozen=True)
class Cluster:
    """Where workers run, and how many."""

    address: str | None = None
    """Of a Ray that runs already, or "auto"; None starts one on this machine."""
    workers: int | None = None
    """None: as many as fit, also when machines come or go."""
    gpus_per_worker: float = 0.0

    def __post_init__(self) -> None:
        if self.gpus_per_worker < 0 or (self.workers is not None and self.workers < 1):
            raise BadInput("There is at least one worker, and it has no less than no GPU.")


class Died(CaptionerError):
    """A task whose worker was ended again and again."""


@contextmanager
def connected(cluster: Cluster) -> Iterator[Any]:
    """Ray itself, while it is needed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers over the network
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingExtra('Ray is not installed: pip install "captioner[cluster]".') from error
    if ray.is_initialized():
        yield ray
        return
    own: dict[str, Any] = {} if cluster.address else {"include_dashboard": False, "object_store_memory": STORE}
    try:
        # "local": None would be the one that RAY_ADDRESS names.
        ray.init(cluster.address or "local", logging_level=logging.ERROR, log_to_driver=False, **own)
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        what = f"There is no Ray at {cluster.address}" if cluster.address else "Ray cannot be started on this machine"
        raise BadInput(f"{what} ({' '.join(str(error).split())[:200]}).") from error
    try:
        yield ray
    finally:
        ray.shutdown()


class _Worker:
    """Runs inside an actor; it is set up with its first task, whose error then reaches the driver as it is."""

    def __init__(self, make: Callable[[], Callable[[int], Any]]) -> None:
        from captioner.run import lastresort

        lastresort.prepare()  # before torch is imported
        self.make = make
        self.do: Callable[[int], Any] | None = None

    def ready(self) -> None:
        """Answers as soon as the actor runs."""

    def work(self, task: int) -> Any:
        self.do = self.do or self.make()
        return self.do(task)


def each(
    tasks: Iterable[int],
    make: Callable[[], Callable[[int], Result | None]],
    cluster: Cluster,
    is_done: Callable[[int], bool] = lambda task: False,
    look: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, Result | CaptionerError]]:
    """What `make()` gives is asked for each task, in many processes, in no order.

    `make` runs once in every worker. A task for which it gives None is in other hands, and is asked for again until
    `is_done`. A worker that dies leaves its task to the others. `look` is called about once a second.
    """
    with connected(cluster) as ray:
        pool = _Pool(ray, tasks, make, cluster, is_done)
        try:
            while pool.unfinished():
                pool.hire()
                pool.hand_out()
                yield from pool.take_in()
                look()
        finally:
            pool.dismiss()


class _Pool(Generic[Result]):
    """Who works on what."""

    def __init__(
        self,
        ray: Any,
        tasks: Iterable[int],
        make: Callable[[], Callable[[int], Result | None]],
        cluster: Cluster,
        is_done: Callable[[int], bool],
    ) -> None:
        self.ray, self.cluster, self.is_done = ray, cluster, is_done
        self.actor = ray.remote(num_cpus=1, num_gpus=cluster.gpus_per_worker, max_restarts=0)(_Worker)
        self.make = ray.put(make)
        self.waiting = deque(tasks)
        self.later: list[tuple[float, int]] = []
        """Tasks that others are at, and when to ask again."""
        self.starting: dict[Any, Any] = {}
        """Its answer to come → an actor. One that does not fit yet waits here, and keeps nobody from working."""
        self.busy: dict[Any, tuple[Any, int]] = {}
        self.idle: list[Any] = []
        self.deaths: Counter[int] = Counter()
        self.stillborn = 0

    def unfinished(self) -> bool:
        return bool(self.waiting or self.later or self.busy)

    def hire(self) -> None:
        """As many workers as are wanted: the dead are replaced, and new machines are used."""
        wanted = min(self.cluster.workers or self._that_fit(), len(self.waiting) + len(self.later) + len(self.busy))
        while len(self.starting) + len(self.busy) + len(self.idle) < wanted:
            actor = self.actor.remote(self.make)
            self.starting[actor.ready.remote()] = actor

    def _that_fit(self) -> int:
        resources = self.ray.cluster_resources()
        if self.cluster.gpus_per_worker:
            return max(1, int(resources.get("GPU", 0) / self.cluster.gpus_per_worker))
        return max(1, int(resources.get("CPU", 1)))

    def hand_out(self) -> None:
        now = time.monotonic()
        due = [task for moment, task in self.later if moment <= now]
        self.later = [(moment, task) for moment, task in self.later if moment > now]
        self.waiting.extend(task for task in due if not self.is_done(task))
        while self.idle and self.waiting:
            actor, task = self.idle.pop(), self.waiting.popleft()
            self.busy[actor.work.remote(task)] = actor, task

    def take_in(self) -> Iterator[tuple[int, Result | CaptionerError]]:
        """What has come about within a moment."""
        expected = [*self.starting, *self.busy]
        if not expected:
            time.sleep(LOOK / 4)
            return
        for answer in self.ray.wait(expected, num_returns=1, timeout=LOOK)[0]:
            if answer in self.starting:
                self._start(answer, self.starting.pop(answer))
            else:
                yield from self._finish(answer, *self.busy.pop(answer))

    def _start(self, answer: Any, actor: Any) -> None:
        try:
            self.ray.get(answer)
        except self.ray.exceptions.RayError as error:
            self.stillborn += 1
            if self.stillborn >= DEATHS:
                raise Died(f"No worker comes up ({' '.join(str(error).split())[:300]}).") from None
            return
        self.stillborn = 0
        self.idle.append(actor)

    def _finish(self, answer: Any, actor: Any, task: int) -> Iterator[tuple[int, Result | CaptionerError]]:
        try:
            result = self.ray.get(answer)
        except self.ray.exceptions.RayTaskError as error:
            raise _cause(error) from None
        except self.ray.exceptions.RayError:  # the actor is no more
            self.deaths[task] += 1
            if self.deaths[task] >= DEATHS:
                yield task, Died(f"{DEATHS} workers were ended while they were at it: is there enough memory?")
            else:
                self.waiting.append(task)
            return
        self.idle.append(actor)
        if result is not None:
            yield task, result
        elif not self.is_done(task):
            self.later.append((time.monotonic() + AGAIN, task))

    def dismiss(self) -> None:
        for actor in (*self.starting.values(), *self.idle, *(actor for actor, _ in self.busy.values())):
            self.ray.kill(actor)


def _cause(error: Any) -> BaseException:
    """What a worker raised."""
    return error.cause if isinstance(error.cause, BaseException) else error


# --- the shards of a plan --------------------------------------------------------------------------------------------


def work(
    plan: Plan,
    job: Job,
    cluster: Cluster,
    share: tuple[int, int] | None = None,
    look: Callable[[], None] = lambda: None,
) -> Iterator[Manifest | Failure]:
    """As `part.work`, by many workers; it ends when every shard of the share is made, by whomever."""
    plan = replace(plan, out=plan.out.absolute())
    part.begin(plan, job)
    shards = part.missing(plan, share)

    def make() -> Callable[[int], Manifest | Failure | None]:
        return lambda shard: part.make(plan, job, shard)

    def is_done(shard: int) -> bool:
        return part.path_of(plan, job.hash, shard).exists()

    results: Iterator[tuple[int, Manifest | Failure | CaptionerError]] = each(shards, make, cluster, is_done, look)
    for shard, result in results:
        yield Failure(shard, str(result)) if isinstance(result, CaptionerError) else result
