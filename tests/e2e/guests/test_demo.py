"""The demo with its virtual machines; tests/functional/test_scripts.py has the one without."""

from __future__ import annotations

from tests.functional.test_scripts import (
    assert_nothing_is_left_when_killed,
    assert_the_whole_story,
    run_script,
    traces,
)


def test_the_demo_boots_two_virtual_machines_and_leaves_nothing() -> None:
    before = traces()
    told = run_script("demo")
    assert told.count("QEMU, Linux and busybox") == 3
    assert_the_whole_story(told)
    assert traces() == before


def test_a_demo_that_is_killed_takes_its_virtual_machines_along() -> None:
    assert_nothing_is_left_when_killed(until="vm-a# ip route")
