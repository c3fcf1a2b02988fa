"""The packet loop's process while it dies and is replaced."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cnvnet.agent.guests.packet_loop_process import PacketLoopProcess

PATIENCE = 30.0


@pytest.fixture
def loop() -> Iterator[PacketLoopProcess]:
    made = PacketLoopProcess(lambda: None)
    assert made.keep_alive()
    yield made
    made.stop()


def killed(loop: PacketLoopProcess) -> int:
    """Its process is dead, and the agent has not replaced it yet."""
    pid = loop.pid
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while loop.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return pid


def test_a_caller_that_waits_while_the_process_is_dead_gets_the_next_one(loop: PacketLoopProcess) -> None:
    dead = killed(loop)
    assert not loop.wait(0.0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(loop.wait, PATIENCE)
        with pytest.raises(TimeoutError):
            waiting.result(0.2)
        while not loop.keep_alive():
            time.sleep(0.01)
        assert waiting.result()
    assert loop.pid != dead
    assert loop.wait(0.0)


def test_a_loop_that_was_stopped_is_not_waited_for(loop: PacketLoopProcess) -> None:
    loop.stop()
    assert not loop.wait(0.0)
