"""The scripts a newcomer runs: each is tried for real, on little."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

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


def namespaces() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


def test_the_demo_tells_its_story_and_leaves_nothing() -> None:
    before = namespaces()
    told = run_script("demo")
    for part in (
        "2 of 2 pings answered",
        "a foreign MAC",
        "counted as spoofed_mac",
        "counted as spoofed_ipv4",
        "same IP, same MAC",
        "refused",
    ):
        assert part in told
    assert namespaces() == before


def test_the_bench_measures_every_operation_on_both_systems() -> None:
    rows = json.loads(run_script("bench", "--quick", "--json"))
    measured = {row["operation"] for row in rows}
    assert measured >= {
        f"{kind} {command}" for kind in ("L2", "L3", "macspoofchk", "IPAM") for command in ("ADD", "DEL")
    }
    assert measured >= {"bridge VERSION", "IPAM VERSION"}
    assert all(min(row["reference"] + row["ours"]) > 0 for row in rows)
