"""Which calls may run, which wait, and which is next."""

from __future__ import annotations

import random

import pytest

from cnvnet.agent.calls import scheduler
from cnvnet.agent.calls.scheduler import (
    MAX_DELETES,
    MAX_OF_NETWORK,
    MAX_RUNNING,
    MAX_SHARED,
    CallKey,
    CallScheduler,
    QueueFull,
)


def of(attachment: str, network: str = "net", size: int = 10) -> CallKey:
    return CallKey(network, (attachment, "eth0"), size)


def test_one_attachment_runs_one_after_the_other_in_order() -> None:
    made: CallScheduler[int] = CallScheduler()
    assert made.try_start(of("a"), 1)
    assert not made.try_start(of("a"), 2)
    assert not made.try_start(of("a"), 3)
    assert made.try_start(of("b"), 4)
    assert made.finish(of("b")) is None
    assert made.finish(of("a")) == (of("a"), 2)
    assert made.finish(of("a")) == (of("a"), 3)
    assert made.finish(of("a")) is None
    assert (made.running(), made.waiting()) == (0, 0)


def test_the_slot_of_a_lost_thread_goes_to_a_waiting_call() -> None:
    made: CallScheduler[int] = CallScheduler()
    assert made.try_start(of("a"), 1)
    assert not made.try_start(of("a"), 2)
    assert made.next() is None
    made.abandon(of("a"))
    assert made.next() == (of("a"), 2)
    assert made.next() is None
    assert (made.running(), made.waiting()) == (1, 0)


def test_a_network_leaves_places_to_others() -> None:
    made: CallScheduler[int] = CallScheduler()
    for number in range(MAX_SHARED):
        assert made.try_start(of(str(number)), number)
    assert not made.try_start(of("more"), 98)
    assert not made.try_start(of("more"), 99)
    for network in "abcdef":
        for number in range(MAX_OF_NETWORK):
            assert made.try_start(of(str(number), network), 100 + number)
        assert not made.try_start(of("more", network), 200)
    for number in range(4):
        assert made.try_start(of(str(number), "last"), 300 + number)
    assert not made.try_start(of("4", "last"), 304)
    assert made.running() == MAX_RUNNING
    # One that has its six waits until few run; one that has not comes first.
    assert made.finish(of("0")) == (of("4", "last"), 304)
    assert made.finish(of("0", "a")) == (of("more", "a"), 200)
    assert made.finish(of("1")) is None


def delete_of(attachment: str, network: str = "net") -> CallKey:
    return of(attachment, network)._replace(is_delete=True)


def test_a_few_deletes_of_a_network_whose_other_calls_hang_run_at_once() -> None:
    made: CallScheduler[int] = CallScheduler()
    for number in range(MAX_SHARED):
        assert made.try_start(of(str(number)), number)
    assert not made.try_start(of("more"), 100)
    for number in range(MAX_DELETES):
        assert made.try_start(delete_of(f"d{number}"), 200 + number)
    assert not made.try_start(delete_of("d8"), 208)
    assert made.running() == MAX_SHARED + MAX_DELETES
    # Their slots are for nothing else, and they come first.
    assert made.finish(delete_of("d0")) == (delete_of("d8"), 208)
    assert made.finish(delete_of("d1")) is None
    assert made.try_start(delete_of("d9"), 209)
    assert not made.try_start(delete_of("d10"), 210)
    assert made.finish(of("0")) == (delete_of("d10"), 210)
    assert made.finish(delete_of("d10")) == (of("more"), 100)


def test_a_delete_that_has_waited_for_its_add_runs_when_that_has_ended() -> None:
    made: CallScheduler[int] = CallScheduler()
    for number in range(MAX_SHARED):
        assert made.try_start(of(str(number)), number)
    assert not made.try_start(of("more"), 100)
    assert not made.try_start(delete_of("0"), 200)
    assert made.finish(of("0")) == (delete_of("0"), 200)
    assert made.finish(delete_of("0")) == (of("more"), 100)


def test_the_second_of_an_attachment_does_not_overtake_the_first() -> None:
    made: CallScheduler[int] = CallScheduler()
    for number in range(MAX_SHARED):
        assert made.try_start(of(str(number)), number)
    assert not made.try_start(of("more"), 98)
    assert not made.try_start(of("more"), 99)
    assert made.finish(of("0")) == (of("more"), 98)
    assert made.finish(of("more")) == (of("more"), 99)


def test_large_configurations_run_a_few_at_a_time() -> None:
    made: CallScheduler[int] = CallScheduler()
    megabyte = 1024 * 1024
    assert made.try_start(of("a", size=16 * megabyte), 1)
    assert not made.try_start(of("b", size=3 * megabyte), 2)
    assert not made.try_start(of("c", size=3 * megabyte), 3)
    assert not made.try_start(of("d", size=3 * megabyte), 4)
    assert made.try_start(of("e", size=1000), 5)
    assert made.finish(of("a", size=16 * megabyte)) == (of("b", size=3 * megabyte), 2)
    assert made.finish(of("e", size=1000)) == (of("c", size=3 * megabyte), 3)
    assert made.try_start(of("f", size=1000), 6)
    assert made.finish(of("f", size=1000)) is None
    assert made.finish(of("b", size=3 * megabyte)) == (of("d", size=3 * megabyte), 4)


def test_calls_about_no_attachment_do_not_wait_for_each_other() -> None:
    made: CallScheduler[int] = CallScheduler()
    nothing = CallKey("net", None, 1)
    assert made.try_start(nothing, 1)
    assert made.try_start(nothing, 2)


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "_CALLS", 3)
    monkeypatch.setattr(scheduler, "_BYTES", 100)
    made: CallScheduler[int] = CallScheduler()
    assert made.try_start(of("a"), 0)
    assert not made.try_start(of("a", size=90), 1)
    with pytest.raises(QueueFull):
        made.try_start(of("a", size=11), 2)
    assert not made.try_start(of("a"), 3)
    assert made.finish(of("a")) == (of("a", size=90), 1)
    assert not made.try_start(of("a"), 4)
    assert not made.try_start(of("a"), 5)
    with pytest.raises(QueueFull):
        made.try_start(of("a"), 6)
    assert made.drain() == [3, 4, 5]
    assert made.finish(of("a")) is None


@pytest.mark.parametrize("seed", range(20))
def test_no_call_is_forgotten_where_some_are_deletes(seed: int) -> None:
    chance = random.Random(seed)
    made: CallScheduler[int] = CallScheduler()
    running: dict[int, CallKey] = {}
    order: dict[CallKey, list[int]] = {}
    for number in range(1000):
        key = of(str(chance.randrange(30)), f"net{chance.randrange(30)}")
        key = key._replace(is_delete=chance.random() < 0.5)
        if made.try_start(key, number):
            running[number] = key
            order.setdefault(key, []).append(number)
        assert len(running) == made.running() <= MAX_RUNNING + MAX_DELETES
        while running and chance.random() < 0.45:
            end_one(made, running, order, chance)
    while running:
        end_one(made, running, order, chance)
    assert (made.running(), made.waiting()) == (0, 0)
    assert sorted(number for numbers in order.values() for number in numbers) == list(range(1000))


@pytest.mark.parametrize("seed", range(20))
def test_no_call_is_forgotten_and_all_that_may_run_do(seed: int) -> None:
    chance = random.Random(seed)
    made: CallScheduler[int] = CallScheduler()
    keys = [of(str(chance.randrange(30)), f"net{chance.randrange(30)}") for _ in range(1000)]
    running: dict[int, CallKey] = {}
    most = 0
    order: dict[CallKey, list[int]] = {}
    for number, key in enumerate(keys):
        if made.try_start(key, number):
            running[number] = key
            order.setdefault(key, []).append(number)
        most = max(most, len(running))
        while running and chance.random() < 0.45:
            end_one(made, running, order, chance)
        hold(made, running)
    while running:
        end_one(made, running, order, chance)
        hold(made, running)
    assert most == MAX_RUNNING
    assert (made.running(), made.waiting()) == (0, 0)
    assert sorted(number for numbers in order.values() for number in numbers) == list(range(1000))
    assert all(numbers == sorted(numbers) for numbers in order.values())


def end_one(
    made: CallScheduler[int],
    running: dict[int, CallKey],
    order: dict[CallKey, list[int]],
    chance: random.Random,
) -> None:
    ended = chance.choice(list(running))
    following = made.finish(running.pop(ended))
    if following is not None:
        key, number = following
        running[number] = key
        order.setdefault(key, []).append(number)


def hold(made: CallScheduler[int], running: dict[int, CallKey]) -> None:
    assert len(running) <= MAX_RUNNING
    assert len({(key.network, key.attachment) for key in running.values()}) == len(running)
    # No other call may run.
    assert made.next() is None
