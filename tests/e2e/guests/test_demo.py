"""The demo with its virtual machines; tests/functional/test_scripts.py has the one without."""

from __future__ import annotations

from tests.functional.test_scripts import assert_the_whole_story, run_script, traces


def test_the_demo_boots_two_virtual_machines_and_leaves_nothing() -> None:
    before = traces()
    told = run_script("demo")
    assert told.count("QEMU, Linux and busybox") == 3
    assert_the_whole_story(told)
    assert traces() == before
