"""What waits: bounded, in order, joined where it is alike, dropped where nobody waits any more."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import CancelledError

import pytest

from captioner.errors import BadImage, BadInput
from captioner.serving.scheduler import Busy, Closed, Late, Opened, Scheduler, Unit


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    scheduler = Scheduler(limit=4, readers=2, held_bytes=100)
    yield scheduler
    scheduler.abandon()


def unit(kind: Hashable = "a", size: int = 0, seconds: float = 60, value: object = None) -> Unit:
    def open_it(admit: Callable[[int], object]) -> Opened:
        admit(size)
        return Opened(value, size)

    return Unit(value, kind, open_it, time.monotonic() + seconds)


def eight(kind: Hashable) -> int:
    return 8


def wait_opened(*units: Unit) -> None:
    """Until the readers are through with these."""
    until = time.monotonic() + 60
    while not all(one.opened is not None or one.future.done() for one in units):
        assert time.monotonic() < until
        time.sleep(0.001)


def test_alike_questions_are_joined_oldest_first(scheduler: Scheduler) -> None:
    units = [unit("a"), unit("b"), unit("a"), unit("b")]
    scheduler.put(units)
    wait_opened(*units)
    assert scheduler.take(eight) == [units[0], units[2]]
    assert scheduler.take(eight) == [units[1], units[3]]


def test_what_would_never_find_room_is_not_told_to_come_again(scheduler: Scheduler) -> None:
    with pytest.raises(BadInput, match="5 are more than the 4 that may wait"):
        scheduler.put([unit() for _ in range(5)])


def test_a_picture_that_takes_long_to_open_holds_up_no_other(scheduler: Scheduler) -> None:
    taken = threading.Event()

    def opens_later(admit: Callable[[int], object]) -> Opened:
        admit(1)
        return Opened(taken.wait(60))

    slow, quick = Unit(None, "a", opens_later, time.monotonic() + 60), unit("b")
    scheduler.put([slow, quick])
    wait_opened(quick)
    assert scheduler.take(eight) == [quick]
    taken.set()
    assert scheduler.take(eight) == [slow]


def test_a_batch_is_no_larger_than_the_model_takes(scheduler: Scheduler) -> None:
    units = [unit() for _ in range(3)]
    scheduler.put(units)
    wait_opened(*units)
    assert scheduler.take(lambda kind: 2) == units[:2]
    assert scheduler.take(lambda kind: 2) == units[2:]


def test_what_is_too_much_is_refused_whole(scheduler: Scheduler) -> None:
    scheduler.put([unit() for _ in range(3)])
    for seconds, wait in ((0, 1), (4.0, 6)):
        for _ in range(50):
            scheduler.done([unit(), unit()], seconds)
        with pytest.raises(Busy) as busy:
            scheduler.put([unit(), unit()])
        assert busy.value.wait == pytest.approx(wait, rel=0.01)
    scheduler.put([unit()])  # there was room for one, and nothing of the other two was kept
    assert len(scheduler.waiting) == 4


def test_who_left_makes_room_and_costs_no_batch(scheduler: Scheduler) -> None:
    units = [unit() for _ in range(4)]
    scheduler.put(units)
    assert units[0].future.cancel()
    wait_opened(*units[1:])
    assert len(scheduler.waiting) == 3
    assert scheduler.take(eight) == units[1:]


def test_who_waited_too_long_is_told_and_costs_no_batch(scheduler: Scheduler) -> None:
    late, good = unit(seconds=-1), unit()
    scheduler.put([late, good])
    wait_opened(good)
    assert scheduler.take(eight) == [good]
    with pytest.raises(Late):
        late.future.result(60)


def test_a_bad_picture_fails_alone(scheduler: Scheduler) -> None:
    def fails(admit: object) -> Opened:
        raise BadImage("It is damaged.")

    bad, good = Unit(None, "a", fails, time.monotonic() + 60), unit()
    scheduler.put([bad, good])
    wait_opened(bad, good)
    assert scheduler.take(eight) == [good]
    with pytest.raises(BadImage, match="damaged"):
        bad.future.result(0)


def test_opened_pictures_take_no_more_bytes_than_allowed(scheduler: Scheduler) -> None:
    first, second = unit(size=80), unit(size=80)
    scheduler.put([first])
    wait_opened(first)
    scheduler.put([second])
    assert scheduler.take(eight) == [first]  # the other one cannot be opened yet
    assert second.opened is None
    first.succeed("done")
    wait_opened(second)
    assert scheduler.take(eight) == [second]


def test_one_that_left_gives_its_bytes_back(scheduler: Scheduler) -> None:
    first, second = unit(size=80), unit(size=80)
    scheduler.put([first])
    wait_opened(first)
    first.future.cancel()
    scheduler.put([second])
    wait_opened(second)
    second.succeed(None)
    assert scheduler.budget.held == 0


def test_closing_finishes_what_waits_and_refuses_the_rest(scheduler: Scheduler) -> None:
    waiting = unit()
    scheduler.put([waiting])
    scheduler.close()
    with pytest.raises(Closed):
        scheduler.put([unit()])
    assert scheduler.take(eight) == [waiting]
    assert scheduler.take(eight) == []


def test_abandoning_wakes_everybody(scheduler: Scheduler) -> None:
    large = [unit(size=80), unit(size=80)]
    scheduler.put(large)  # the second one waits for room
    scheduler.abandon()
    for one in large:
        with pytest.raises((Closed, CancelledError)):
            one.future.result(60)


def test_a_worker_that_waits_is_woken(scheduler: Scheduler) -> None:
    taken: list[list[Unit]] = []
    worker = threading.Thread(target=lambda: taken.append(scheduler.take(eight)))
    worker.start()
    one = unit()
    scheduler.put([one])
    worker.join(60)
    assert taken == [[one]]


def test_only_so_many_are_opened_ahead(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioner.serving.scheduler.AHEAD", 2)
    units = [unit() for _ in range(4)]
    scheduler.put(units)
    wait_opened(*units[:2])
    assert [one.ticket is not None for one in units] == [True, True, False, False]
    units[1].future.cancel()  # the next one takes its place
    wait_opened(units[2])
    assert scheduler.take(eight) == [units[0], units[2]]
    wait_opened(units[3])
    assert scheduler.take(eight) == [units[3]]
    assert (scheduler.ahead, len(scheduler.waiting)) == (0, 0)


def test_a_picture_is_let_go_of_with_its_answer(scheduler: Scheduler) -> None:
    class Large:
        pass

    picture = Large()
    gone = weakref.ref(picture)
    one = unit(value=picture)
    scheduler.put([one])
    wait_opened(one)
    assert scheduler.take(eight) == [one]
    del picture
    gc.disable()  # without looking for circles
    try:
        one.succeed("answer")
        deadline = time.monotonic() + 60
        while gone() is not None and time.monotonic() < deadline:
            time.sleep(0.001)  # the reader's thread may still be on its last line
        assert gone() is None
    finally:
        gc.enable()
