"""The scripts a newcomer runs: each is tried for real, on little."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.functional.agent.own_agent import children, eventually, is_there
from tests.harness import KUBERNETES, peer

pytestmark = pytest.mark.alone

CHECKOUT = Path(__file__).resolve().parents[2]


# Runs the rest of the command line where /dev/net is what its first word, a shell's command, makes there.
OWN_DEV_NET = (
    *("unshare", "--mount", "sh", "-ec"),
    'mount -t tmpfs -o mode=755 net /dev/net; (cd /dev/net; eval "$0"); exec "$@"',
)


def run_script(name: str, *arguments: str, within: Sequence[str] = ()) -> str:
    """What the script printed; it must have ended well. `within` is a command that runs it."""
    done = subprocess.run(
        [*within, CHECKOUT / "scripts" / name, *arguments],
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


def assert_all_steps_shown(output: str) -> None:
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
        "no pod",
        "same IP, same MAC",
        "which is stopped",
        "no link, no process, no rule is left",
    ):
        assert part in output, output
    # Without a terminal as well no line is longer than a wide one, but for messages: they are as they were.
    messages = [line for line in output.splitlines() if "plugin type=" in line]
    assert all(line.endswith(" frees it)") for line in messages), messages
    assert max(len(line.rstrip()) for line in output.splitlines() if line not in messages) <= 100


def test_the_demo_without_virtual_machines_runs_all_steps_and_leaves_nothing() -> None:
    before = traces()
    output = run_script("demo", "--no-vm")
    assert output.count("plays the guest") == 3
    assert_all_steps_shown(output)
    assert traces() == before


def test_a_demo_without_the_tun_device_says_what_brings_it() -> None:
    demo = [*OWN_DEV_NET, "", str(CHECKOUT / "scripts/demo"), "--no-vm"]
    done = subprocess.run(demo, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout == "\ndemo: /dev/net/tun is missing (modprobe tun)\n"


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
        # The demo, the agent with its packet loop, and a guest at least.
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


def test_tests_without_the_programs_of_kubernetes_are_skipped_and_say_what_builds_them(
    tmp_path: Path,
) -> None:
    programs = Path(peer("cnitool")).parent
    for program in programs.iterdir():
        if program.name not in KUBERNETES:
            (tmp_path / program.name).symlink_to(program)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/e2e/test_testbed.py"],
        cwd=CHECKOUT,
        env={**os.environ, "CNV_PEERS": str(tmp_path), "CNV_REQUIRE_PEERS": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 skipped" in done.stdout
    assert "scripts/peers kube-apiserver builds it, or CNV_PEERS=FOLDER has it" in done.stdout


def test_the_peers_that_can_be_built_are_those_of_kubernetes() -> None:
    """And none is built when one of those that were asked for is unknown."""
    done = subprocess.run(
        [CHECKOUT / "scripts/peers", "kubectl", "docker"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    known, _, asked = done.stderr.removeprefix("peers: knows ").partition(", not ")
    assert set(known.split()) == KUBERNETES
    assert asked == "docker (scripts/peers --help)\n"


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


def test_the_bench_measures_the_data_path_beside_its_peers() -> None:
    before = traces()
    rows = json.loads(run_script("bench", "--quick", "--json", "--only=datapath"))
    beside = {
        row["table"]: {
            goal["peer"] for each in rows if each["table"] == row["table"] for goal in each["goals"]
        }
        for row in rows
    }
    assert beside["behind masquerade"] >= {"KubeVirt", "forwarding", "veth"}
    assert beside["behind vm-bridge"] >= {"KubeVirt", "bridge", "veth"}
    assert beside["from port to port"] == {"reference", "no table"}
    operations = {row["operation"] for row in rows if row["table"] == "behind masquerade"}
    assert {f"{each} to the guest" for each in ("udp", "tcp-stream", "connection")} <= operations
    assert {"udp from the guest, IPv6", "udp from the guest, real tap"} <= operations
    assert all(min(samples) > 0 for row in rows for samples in row["samples"].values())
    # A pod between two namespaces takes the processor longer than none does.
    assert all(goal["found"] > 1 for row in rows for goal in row["goals"] if goal["peer"] == "veth")
    assert traces() == before


def test_the_bench_measures_another_checkout_in_the_same_rounds() -> None:
    before = traces()
    cases = [f"--only={name}" for name in ("version", "l2", "leases")]
    rows = json.loads(
        run_script("bench", "--rounds=2", "--quick", "--json", f"--against={CHECKOUT}", *cases)
    )
    assert {row["operation"] for row in rows} == {"VERSION", "L2 ADD", "L2 DEL", "IPAM ADD", "IPAM DEL"}
    for row in rows:
        samples = row["samples"]
        assert (len(samples["agent"]), len(samples["other"])) == (2, 2)
        assert row["other"] == statistics.median(samples["agent"]) / statistics.median(samples["other"])
    assert traces() == before


def test_the_bench_measures_nothing_but_two_agents() -> None:
    cases = [f"--only={name}" for name in ("l2", "ports", "ipmasq")]
    rows = json.loads(
        run_script("bench", "--quick", "--json", f"--against={CHECKOUT}", "--agents-only", *cases)
    )
    assert {column for row in rows for column in row["samples"]} == {"agent", "other", "itself"}
    assert all(row["other"] > 0 for row in rows)
