"""The bench's account of a call, from what perf prints."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.bench.shares import SHARES, Machine, Window, described, parse, shares

CALLER, AGENT = 10, 20
# Program, thread, processor, time and what happened, as perf script prints it.
TRACE = """\
        python    10 [000] 5.000010000: sched:sched_process_fork: comm=python pid=10 child_comm=python child_pid=30
        python    10 [000] 5.000020000: sched:sched_switch: prev_comm=python prev_pid=10 ==> next_comm=python next_pid=30
    cnv-bridge    30 [000] 5.000050000: sched:sched_waking: comm=python pid=20 prio=120 target_cpu=001
    cnv-bridge    30 [000] 5.000060000: sched:sched_switch: prev_comm=cnv-bridge prev_pid=30 ==> next_comm=x next_pid=0
       swapper     0 [001] 5.000065000: sched:sched_switch: prev_comm=swapper/1 prev_pid=0 ==> next_comm=python next_pid=20
        python    20 [001] 5.000070000: raw_syscalls:sys_exit: NR 232 = 1
        python    20 [001] 5.000100000: raw_syscalls:sys_enter: NR 44 (1, 2, 3, 4, 5, 6)
        python    20 [001] 5.000140000: raw_syscalls:sys_exit: NR 44 = 1
        python    20 [001] 5.000150000: sched:sched_waking: comm=python pid=10 prio=120 target_cpu=000
       swapper     0 [000] 5.000151000: sched:sched_switch: prev_comm=x prev_pid=0 ==> next_comm=python next_pid=10
        python    20 [001] 5.000160000: sched:sched_switch: prev_comm=python prev_pid=20 ==> next_comm=swapper/1 next_pid=0
        python    10 [000] 5.000180000: sched:sched_switch: prev_comm=python prev_pid=10 ==> next_comm=x next_pid=0
        python    10 [000] 5.000200000: sched:sched_waking: comm=other pid=99 prio=120 target_cpu=000
"""  # noqa: E501 -- as it is printed


def test_each_moment_of_a_call_belongs_to_what_gets_on_with_it() -> None:
    machine = Machine(CALLER, frozenset({AGENT}))
    window = Window("ADD", 5_000_015_000, 5_000_190_000)
    (found,) = shares(parse(TRACE.splitlines()), [window], machine)
    assert {share: spent // 1000 for share, spent in found.items()} == {
        "agent: Python": 55,
        "agent: kernel": 40,
        "launcher": 40,
        "caller": 25,
        "waking up": 5,
        "waiting": 10,
    }
    assert sum(found.values()) == window.ended - window.begun


def test_shares_are_of_the_quicker_half_and_add_up() -> None:
    calls = [Counter(dict.fromkeys(SHARES, milliseconds * 1_000_000)) for milliseconds in (9, 1, 3)]
    assert described(calls).startswith("12.00 = agent: Python 2.00, agent: kernel 2.00")


@pytest.mark.parametrize("line", ["", "# a comment", "python 10 [000] no time"])
def test_what_is_no_event_is_passed_over(line: str) -> None:
    assert list(parse([line])) == []
