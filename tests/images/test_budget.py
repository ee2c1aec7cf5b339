"""A budget of bytes: order, one too large for it, those who give up, and those who wait when it closes."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest

from captioner.images.budget import Budget


def test_what_does_not_fit_waits_until_something_is_settled() -> None:
    budget = Budget(100)
    first, second = budget.ticket(), budget.ticket()
    first.admit(60)
    with ThreadPoolExecutor() as pool:
        waits = pool.submit(second.admit, 60)
        assert not waits.done()
        first.settle(50)
        assert not waits.done()
        first.settle(40)
        waits.result(60)
    assert budget.held == 100


def test_one_that_is_larger_than_all_goes_in_alone() -> None:
    budget = Budget(10)
    first, second = budget.ticket(), budget.ticket()
    first.admit(1)
    with ThreadPoolExecutor() as pool:
        waits = pool.submit(second.admit, 1000)
        assert not waits.done()
        first.settle(0)
        waits.result(60)
    assert budget.held == 1000


def test_admission_keeps_the_order_and_those_without_a_picture_are_passed_over() -> None:
    budget = Budget(100)
    tickets = [budget.ticket() for _ in range(4)]
    admitted = []

    def admit(number: int) -> None:
        tickets[number].admit(1)
        admitted.append(number)

    with ThreadPoolExecutor() as pool:
        late = pool.submit(admit, 3)
        tickets[1].settle(0)  # could not be read
        assert not late.done()
        admit(0)
        assert not late.done()
        admit(2)
        late.result(60)
    assert admitted == [0, 2, 3]


def test_a_picture_that_is_in_may_ask_for_more_and_never_waits_for_itself() -> None:
    budget = Budget(10)
    ticket = budget.ticket()
    ticket.admit(10)
    ticket.admit(5)
    assert budget.held == 15
    ticket.settle(0)
    assert budget.held == 0


def test_one_that_others_give_up_is_not_kept_waiting() -> None:
    budget = Budget(10)
    budget.ticket().admit(10)
    second, third = budget.ticket(), budget.ticket()
    with ThreadPoolExecutor() as pool:
        waits = pool.submit(second.admit, 10)
        while not budget.waiting:
            time.sleep(0.001)
        second.settle(0)
        waits.result(60)
    second.settle(0)
    assert (budget.held, budget.next, budget.waiting) == (10, 2, {})
    third.settle(0)
    assert budget.next == 3


def test_closing_sends_the_waiting_away() -> None:
    budget = Budget(10)
    budget.ticket().admit(10)
    second = budget.ticket()
    with ThreadPoolExecutor() as pool:
        waits = pool.submit(second.admit, 10)
        budget.close()
        with pytest.raises(CancelledError):
            waits.result(60)


def test_those_who_were_sent_away_do_not_come_in_when_others_leave() -> None:
    budget = Budget(10)
    first = budget.ticket()
    first.admit(10)
    tickets = [budget.ticket() for _ in range(16)]
    with ThreadPoolExecutor(len(tickets)) as pool:
        waits = [pool.submit(ticket.admit, 4) for ticket in tickets]
        while len(budget.waiting) < len(tickets):
            time.sleep(0.001)
        budget.close()
        for ticket in (*tickets, first):
            ticket.settle(0)
        assert [type(one.exception(10)) for one in waits] == [CancelledError] * len(tickets)
    assert budget.held == 0
    with pytest.raises(CancelledError):
        budget.ticket().admit(1)


def test_what_is_thrown_away_while_others_change_may_settle_its_ticket() -> None:
    budget = Budget(10)
    first, second = budget.ticket(), budget.ticket()
    first.admit(10)
    with budget.changing:  # where Python may look for what is thrown away
        first.settle(0)
    second.admit(10)
    assert budget.held == 10


def test_many_threads_never_hold_more_than_the_limit() -> None:
    budget = Budget(100)
    sizes = np.random.default_rng(0).integers(1, 60, 300).tolist()
    tickets = [budget.ticket() for _ in sizes]
    most, lock = [], threading.Lock()

    def work(number: int) -> None:
        if sizes[number] % 7:
            tickets[number].admit(sizes[number])
            with lock:
                most.append(budget.held)
        tickets[number].settle(sizes[number] // 4)
        tickets[number].settle(0)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(len(sizes))))
    assert max(most) <= 100
    assert budget.held == 0
    assert budget.next == len(sizes)
    assert not budget.passed
