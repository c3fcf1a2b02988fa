"""Who may run, who waits, and who is next."""

from __future__ import annotations

import random

import pytest

from cnvnet.agent import turns
from cnvnet.agent.turns import PLACES, PLACES_FOR_ANY, PLACES_OF_NETWORK, Full, Subject, Turns


def of(attachment: str, network: str = "net", size: int = 10) -> Subject:
    return Subject(network, (attachment, "eth0"), size)


def test_one_attachment_runs_one_after_the_other_in_order() -> None:
    made: Turns[int] = Turns()
    assert made.begin(of("a"), 1)
    assert not made.begin(of("a"), 2)
    assert not made.begin(of("a"), 3)
    assert made.begin(of("b"), 4)
    assert made.done(of("b")) is None
    assert made.done(of("a")) == (of("a"), 2)
    assert made.done(of("a")) == (of("a"), 3)
    assert made.done(of("a")) is None
    assert (made.running(), made.waiting()) == (0, 0)


def test_the_place_of_a_lost_thread_is_for_whoever_waits() -> None:
    made: Turns[int] = Turns()
    assert made.begin(of("a"), 1)
    assert not made.begin(of("a"), 2)
    assert made.next() is None
    made.leave(of("a"))
    assert made.next() == (of("a"), 2)
    assert made.next() is None
    assert (made.running(), made.waiting()) == (1, 0)


def test_a_network_leaves_places_to_others() -> None:
    made: Turns[int] = Turns()
    for number in range(PLACES_FOR_ANY):
        assert made.begin(of(str(number)), number)
    assert not made.begin(of("more"), 98)
    assert not made.begin(of("more"), 99)
    for network in "abcdef":
        for number in range(PLACES_OF_NETWORK):
            assert made.begin(of(str(number), network), 100 + number)
        assert not made.begin(of("more", network), 200)
    for number in range(4):
        assert made.begin(of(str(number), "last"), 300 + number)
    assert not made.begin(of("4", "last"), 304)
    assert made.running() == PLACES
    # One that has its six waits until few run; one that has not comes first.
    assert made.done(of("0")) == (of("4", "last"), 304)
    assert made.done(of("0", "a")) == (of("more", "a"), 200)
    assert made.done(of("1")) is None


def test_the_second_of_an_attachment_does_not_overtake_the_first() -> None:
    made: Turns[int] = Turns()
    for number in range(PLACES_FOR_ANY):
        assert made.begin(of(str(number)), number)
    assert not made.begin(of("more"), 98)
    assert not made.begin(of("more"), 99)
    assert made.done(of("0")) == (of("more"), 98)
    assert made.done(of("more")) == (of("more"), 99)


def test_large_configurations_run_a_few_at_a_time() -> None:
    made: Turns[int] = Turns()
    megabyte = 1024 * 1024
    assert made.begin(of("a", size=16 * megabyte), 1)
    assert not made.begin(of("b", size=3 * megabyte), 2)
    assert not made.begin(of("c", size=3 * megabyte), 3)
    assert not made.begin(of("d", size=3 * megabyte), 4)
    assert made.begin(of("e", size=1000), 5)
    assert made.done(of("a", size=16 * megabyte)) == (of("b", size=3 * megabyte), 2)
    assert made.done(of("e", size=1000)) == (of("c", size=3 * megabyte), 3)
    assert made.begin(of("f", size=1000), 6)
    assert made.done(of("f", size=1000)) is None
    assert made.done(of("b", size=3 * megabyte)) == (of("d", size=3 * megabyte), 4)


def test_calls_about_no_attachment_do_not_wait_for_each_other() -> None:
    made: Turns[int] = Turns()
    nothing = Subject("net", None, 1)
    assert made.begin(nothing, 1)
    assert made.begin(nothing, 2)


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_CALLS", 3)
    monkeypatch.setattr(turns, "_BYTES", 100)
    made: Turns[int] = Turns()
    assert made.begin(of("a"), 0)
    assert not made.begin(of("a", size=90), 1)
    with pytest.raises(Full):
        made.begin(of("a", size=11), 2)
    assert not made.begin(of("a"), 3)
    assert made.done(of("a")) == (of("a", size=90), 1)
    assert not made.begin(of("a"), 4)
    assert not made.begin(of("a"), 5)
    with pytest.raises(Full):
        made.begin(of("a"), 6)
    assert made.clear() == [3, 4, 5]
    assert made.done(of("a")) is None


@pytest.mark.parametrize("seed", range(20))
def test_nobody_is_forgotten_and_all_that_may_run_does(seed: int) -> None:
    chance = random.Random(seed)
    made: Turns[int] = Turns()
    subjects = [of(str(chance.randrange(30)), f"net{chance.randrange(30)}") for _ in range(1000)]
    running: dict[int, Subject] = {}
    most = 0
    order: dict[Subject, list[int]] = {}
    for number, subject in enumerate(subjects):
        if made.begin(subject, number):
            running[number] = subject
            order.setdefault(subject, []).append(number)
        most = max(most, len(running))
        while running and chance.random() < 0.45:
            end_one(made, running, order, chance)
        hold(made, running)
    while running:
        end_one(made, running, order, chance)
        hold(made, running)
    assert most == PLACES
    assert (made.running(), made.waiting()) == (0, 0)
    assert sorted(number for numbers in order.values() for number in numbers) == list(range(1000))
    assert all(numbers == sorted(numbers) for numbers in order.values())


def end_one(
    made: Turns[int], running: dict[int, Subject], order: dict[Subject, list[int]], chance: random.Random
) -> None:
    ended = chance.choice(list(running))
    following = made.done(running.pop(ended))
    if following is not None:
        subject, number = following
        running[number] = subject
        order.setdefault(subject, []).append(number)


def hold(made: Turns[int], running: dict[int, Subject]) -> None:
    assert len(running) <= PLACES
    assert len({(subject.network, subject.attachment) for subject in running.values()}) == len(running)
    # Nobody else may run.
    assert made.next() is None
