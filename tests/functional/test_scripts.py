"""The scripts a newcomer runs: each is tried for real, on little."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.functional.agent.lab import children, eventually, is_there

pytestmark = pytest.mark.alone

CHECKOUT = Path(__file__).resolve().parents[2]


def run_script(name: str, *arguments: str) -> str:
    """What the script printed; it must have ended well."""
    done = subprocess.run(
        [CHECKOUT / "scripts" / name, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def traces() -> tuple[str, ...]:
    """What a demo could leave behind: namespaces, links and tables."""
    commands = (("ip", "netns", "list"), ("ip", "-o", "link"), ("nft", "list", "tables"))
    return tuple(
        subprocess.run(argv, capture_output=True, text=True, check=True).stdout for argv in commands
    )


def descendants(pid: int) -> list[int]:
    """Every process that a process has started, and those that they have."""
    return [each for child in children(pid) for each in (child, *descendants(child))]


def assert_the_whole_story(told: str) -> None:
    for part in (
        "lease of 10.0.2.2 obtained from 10.0.2.1",
        "nameserver 10.96.0.10",
        "vm-b pings vm-a",
        "2 of 2 answered",
        "hello 10.244.0.",
        "hello 10.10.0.",
        "refused, only port 80 is listed",
        "counted as spoofed_",
        "counted as spoofed_mac",
        "nobody",
        "same IP, same MAC",
        "which is stopped",
        "no link, no process, no rule is left",
    ):
        assert part in told, told
    # Without a terminal as well the lines are no longer than a wide one.
    assert max(len(line.rstrip()) for line in told.splitlines()) <= 100


def test_the_demo_without_virtual_machines_tells_its_story_and_leaves_nothing() -> None:
    before = traces()
    told = run_script("demo", "--no-vm")
    assert told.count("plays the guest") == 3
    assert_the_whole_story(told)
    assert traces() == before


def assert_nothing_is_left_when_killed(*options: str, until: str) -> None:
    """Killed when it has come to a line with this text."""
    before = traces()
    with subprocess.Popen(
        [CHECKOUT / "scripts/demo", *options], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stdout is not None
        while until not in (line := demo.stdout.readline()):
            assert line, "it ended early"
        started = descendants(demo.pid)
        # The story, the agent with its packet loop, and a guest at least.
        assert len(started) >= 4
        demo.kill()
    assert eventually(lambda: not any(is_there(pid) for pid in started))
    assert traces() == before


def test_a_demo_that_is_killed_leaves_nothing() -> None:
    assert_nothing_is_left_when_killed("--no-vm", until="the store")


def test_the_demo_says_what_it_knows() -> None:
    done = subprocess.run(
        [CHECKOUT / "scripts/demo", "--vm"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "demo: knows --no-vm, not --vm (scripts/demo --help)\n"


def test_the_bench_measures_all_systems_and_draws_its_chart(tmp_path: Path) -> None:
    before, chart = traces(), tmp_path / "chart.svg"
    cases = [f"--only={name}" for name in ("version", "ports", "burst", "leases")]
    rows = json.loads(run_script("bench", "--quick", "--json", "--chart", str(chart), *cases))
    measured = {row["operation"]: row["samples"] for row in rows}
    calls = {f"{kind} {command}" for kind in ("macspoofchk", "6 L2", "IPAM") for command in ("ADD", "DEL")}
    assert set(measured) == {"VERSION", "1,000 frames/s", *calls}
    for operation in ("VERSION", *calls):
        assert measured[operation].keys() >= {"reference", "agent", "python", "alone"}
    assert all(min(samples) > 0 for row in rows for samples in row["samples"].values())
    texts = {element.text for element in ElementTree.parse(chart).iter() if element.text}
    assert {"bridge v1.9.1", "static-ip, agent", "40", "200"} <= texts
    assert traces() == before
