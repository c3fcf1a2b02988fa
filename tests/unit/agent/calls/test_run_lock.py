"""Calls are serialised, and no call waits for one that waits itself."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from random import Random

import pytest

from cnvnet.agent.calls import run_lock
from cnvnet.agent.calls.remote_caller import AgentView, RemoteCaller
from cnvnet.agent.calls.run_lock import RunLock

SECONDS = 60.0


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that has to overtake comes too late for every test."""
    monkeypatch.setattr(run_lock, "_PATIENCE", 3 * SECONDS)


def in_thread(do: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    return thread


@pytest.mark.usefixtures("patient")
def test_one_is_in_it_at_a_time() -> None:
    lock, inside, most = RunLock(), 0, 0

    def call(_: int) -> None:
        nonlocal inside, most
        with lock.held():
            inside += 1
            most = max(most, inside)
            for _ in range(200):
                threading.Event().wait(0)
            inside -= 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(call, range(32)))
    assert most == 1


@pytest.mark.usefixtures("patient")
def test_a_call_that_leaves_before_its_end_releases_the_lock_once() -> None:
    lock = RunLock()
    entered, end = threading.Event(), threading.Event()

    def call() -> None:
        with lock.held():
            entered.set()
            assert end.wait(SECONDS)

    with lock.held() as held:
        held.release()
        other = in_thread(call)
        assert entered.wait(SECONDS)
        held.release()  # the lock is the other's now
        late = threading.Event()

        def third() -> None:
            with lock.held():
                late.set()

        waiting = in_thread(third)
        assert not late.wait(0.2)
    assert not late.wait(0.2)
    end.set()
    assert late.wait(SECONDS)
    other.join(SECONDS)
    waiting.join(SECONDS)


@pytest.mark.usefixtures("patient")
def test_an_error_leaves_it() -> None:
    lock = RunLock()
    with pytest.raises(ValueError, match="bad"), lock.held():
        raise ValueError("bad")
    with lock.held():
        pass


def test_one_that_stays_is_overtaken() -> None:
    lock = RunLock()
    done = threading.Event()

    def call() -> None:
        with lock.held():
            done.set()

    with lock.held():
        in_thread(call).join(SECONDS)
        assert done.is_set()
    with lock.held():
        pass


@pytest.mark.usefixtures("patient")
def test_while_a_call_waits_for_another_machine_others_have_the_lock() -> None:
    lock, order = RunLock(), list[str]()

    def call() -> None:
        with lock.held():
            order.append("other")

    with lock.held() as held:
        with held.paused():
            in_thread(call).join(SECONDS)
        order.append("back")
        late = in_thread(call)
        late.join(0.2)
        assert late.is_alive()
    late.join(SECONDS)
    assert order == ["other", "back", "other"]


@pytest.mark.usefixtures("patient")
def test_a_call_comes_back_after_the_one_that_has_the_lock_and_after_an_error_too() -> None:
    lock = RunLock()
    entered, end, back = threading.Event(), threading.Event(), threading.Event()

    def call() -> None:
        with lock.held():
            entered.set()
            assert end.wait(SECONDS)

    def waiting() -> None:
        with lock.held() as held:
            with pytest.raises(ValueError, match="no answer"), held.paused():
                unanswered()
            back.set()

    def unanswered() -> None:
        in_thread(call)
        assert entered.wait(SECONDS)
        raise ValueError("no answer")

    thread = in_thread(waiting)
    assert entered.wait(SECONDS)
    assert not back.wait(0.2)
    end.set()
    assert back.wait(SECONDS)
    thread.join(SECONDS)
    with lock.held():
        pass


@pytest.mark.usefixtures("patient")
def test_a_call_that_has_released_the_lock_for_good_does_not_come_back() -> None:
    lock = RunLock()
    with lock.held() as held:
        held.release()
        with held.paused(), lock.held():
            pass
        in_thread(lambda: take(lock)).join(SECONDS)
        with held.paused(), held.paused():
            take(lock)
    take(lock)


@pytest.mark.usefixtures("patient")
def test_a_pause_inside_a_pause_ends_with_the_outer_one() -> None:
    lock = RunLock()
    with lock.held() as held:
        with held.paused():
            with held.paused():
                take(lock)
            in_thread(lambda: take(lock)).join(SECONDS)
        late = in_thread(lambda: take(lock))
        late.join(0.2)
        assert late.is_alive()
    late.join(SECONDS)


def test_a_call_that_was_overtaken_pauses_and_comes_back_like_any_other() -> None:
    lock = RunLock()
    with lock.held() as held:
        in_thread(lambda: take(lock)).join(SECONDS)  # overtakes
        with held.paused():
            take(lock)
        # The lock that calls use now is this one's again: another call has to overtake it.
        late = in_thread(lambda: take(lock))
        late.join(SECONDS)
        assert not late.is_alive()
    take(lock)


def test_calls_that_pause_and_overtake_each_other_lose_no_lock() -> None:
    lock, random = RunLock(), Random(7)
    pauses = [[random.choice((0, 0.001, 0.12)) for _ in range(4)] for _ in range(24)]

    def call(lengths: list[float]) -> None:
        with lock.held() as held:
            for seconds in lengths:
                with held.paused():
                    threading.Event().wait(seconds)
                threading.Event().wait(seconds)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(call, pauses, timeout=SECONDS))
    begun = time.monotonic()
    take(lock)
    assert time.monotonic() - begun < 0.1


def take(lock: RunLock) -> None:
    with lock.held():
        pass


def test_a_caller_whose_program_is_started_says_so() -> None:
    notified: list[str] = []
    with ExitStack() as undo:
        descriptors: dict[str, int] = {}
        for name, path in (("self", "/proc/self/ns/net"), ("mnt", "/proc/self/ns/mnt"), ("root", "/")):
            descriptors[name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            undo.callback(os.close, descriptors[name])
        remote = RemoteCaller(AgentView(), "", descriptors)
        remote.stat("/")
        remote.on_exec = partial(notified.append, "leave")
        assert not notified
        remote.program("/bin/true")
    assert notified == ["leave"]
