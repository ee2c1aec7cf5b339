"""How far the parts of a plan have come, how fast, and what a million pictures cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from captioner.files import lease
from captioner.shards.part import Failure, Manifest, done, failures, manifest_of
from captioner.shards.plan import LEASES, Plan

LATEST = 100
"""Parts that the pace is taken from."""


@dataclass(frozen=True)
class Status:
    """Numbers of one moment."""

    shards: int
    shards_done: int
    pictures: int
    pictures_done: int
    """In parts that are whole, with those that failed."""
    pictures_failed: int
    running: int
    """Workers: shards that are being made."""
    under_way: int
    """Pictures done in these."""
    failed: list[Failure]
    pace: float | None
    """Pictures per second of one worker, in its last parts; None before there is one."""

    @property
    def rate(self) -> float | None:
        """Pictures per second of all workers together."""
        return None if self.pace is None or not self.running else self.pace * self.running

    @property
    def seconds_left(self) -> float | None:
        """For the workers that run now, or for one."""
        rate = self.rate or self.pace
        return None if rate is None else (self.pictures - self.pictures_done - self.under_way) / rate

    def cost_per_million(self, price_per_hour: float) -> float | None:
        """What a million pictures cost where an hour of one worker costs this."""
        return None if self.pace is None else price_per_hour * 1e6 / (3600 * self.pace)


def status(plan: Plan) -> Status:
    """Count what is there."""
    manifests = [manifest_of(part) for part in done(plan).values()]
    running = _running(plan)
    return Status(
        shards=plan.shards,
        shards_done=len(manifests),
        pictures=plan.pictures,
        pictures_done=sum(manifest.pictures for manifest in manifests),
        pictures_failed=sum(manifest.failed for manifest in manifests),
        running=len(running),
        under_way=sum(map(_pictures, running)),
        failed=failures(plan),
        pace=_pace(manifests),
    )


def under_way(plan: Plan) -> int:
    """Pictures done in shards that are being made, as their workers last told."""
    return sum(map(_pictures, _running(plan)))


def _running(plan: Plan) -> list[Path]:
    leases = (path for path in (plan.out / LEASES).glob("*.json") if not path.name.endswith(".failed.json"))
    return [path for path in leases if lease.is_held(path)]


def _pictures(path: Path) -> int:
    about = lease.read(path)
    return sum(count for name in ("done", "failed") if isinstance(count := about.get(name), int))


def _pace(manifests: Sequence[Manifest]) -> float | None:
    latest = sorted(manifests, key=lambda manifest: manifest.ended)[-LATEST:]
    seconds = sum(manifest.seconds for manifest in latest)
    return sum(manifest.pictures for manifest in latest) / seconds if seconds > 0 else None
