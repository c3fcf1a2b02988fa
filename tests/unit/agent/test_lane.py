"""Calls work one behind the other, and nobody waits for one that waits."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import pytest

from cnvnet.agent import lane
from cnvnet.agent.lane import Lane
from cnvnet.agent.remote import Home, Remote

SECONDS = 60.0


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has to overtake comes too late for every test."""
    monkeypatch.setattr(lane, "_PATIENCE", 3 * SECONDS)


def in_thread(do: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    return thread


@pytest.mark.usefixtures("patient")
def test_one_is_in_it_at_a_time() -> None:
    path, inside, most = Lane(), 0, 0

    def call(_: int) -> None:
        nonlocal inside, most
        with path.passage():
            inside += 1
            most = max(most, inside)
            for _ in range(200):
                threading.Event().wait(0)
            inside -= 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(call, range(32)))
    assert most == 1


@pytest.mark.usefixtures("patient")
def test_who_leaves_before_the_end_makes_room_once() -> None:
    path = Lane()
    entered, end = threading.Event(), threading.Event()

    def call() -> None:
        with path.passage():
            entered.set()
            assert end.wait(SECONDS)

    with path.passage() as leave:
        leave()
        other = in_thread(call)
        assert entered.wait(SECONDS)
        leave()  # the lane is the other's now
        late = threading.Event()

        def third() -> None:
            with path.passage():
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
    path = Lane()
    with pytest.raises(ValueError, match="bad"), path.passage():
        raise ValueError("bad")
    with path.passage():
        pass


def test_one_that_stays_is_overtaken() -> None:
    path = Lane()
    done = threading.Event()

    def call() -> None:
        with path.passage():
            done.set()

    with path.passage():
        in_thread(call).join(SECONDS)
        assert done.is_set()
    with path.passage():
        pass


def test_a_caller_whose_program_is_started_says_so() -> None:
    told: list[str] = []
    with ExitStack() as undo:
        descriptors: dict[str, int] = {}
        for name, path in (("self", "/proc/self/ns/net"), ("mnt", "/proc/self/ns/mnt"), ("root", "/")):
            descriptors[name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            undo.callback(os.close, descriptors[name])
        remote = Remote(Home(), "", descriptors)
        remote.stat("/")
        remote.before_program = partial(told.append, "leave")
        assert not told
        remote.program("/bin/true")
    assert told == ["leave"]
