"""A default route with an MTU of its own, as a network with tunnels (Cilium) gives its pods."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.functional.masquerade.masquerade_pod import V4, V6, Lab, Pod, a_lab
from tests.functional.masquerade.test_calls import snapshot
from tests.functional.vm_bridge.test_mtu import CASES, Case


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with a_lab(tmp_path) as made:
        yield made


def routed(lab: Lab, case: Case) -> Pod:
    pod = lab.pod()
    for side, metric in ((V4, case.ipv4), (V6, case.ipv6)):
        via = ("via", side.outside, "dev", "eth0")
        pod.run("ip", "-4" if side is V4 else "-6", "route", "replace", "default", *via, *metric.split())
    return pod


def record(lab: Lab) -> Path:
    (path,) = (lab.node.rundir / "attachments").glob("*.json")
    return path


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_the_smaller_of_interface_and_route_is_given(lab: Lab, case: Case) -> None:
    pod = routed(lab, case)
    before = snapshot(pod)
    pod.cni("ADD").ok()
    for name in ("tap0", "k6t-eth0"):
        assert (pod.link(name) or {})["mtu"] == case.tap, name
    settings: dict[str, Any] = json.loads(record(lab).read_text())["guest"]["settings"]
    assert (settings["mtu"], settings["v4"]["mtu"], settings["v6"]["mtu"]) == (case.tap, *case.family_mtus)
    pod.cni("CHECK").ok()
    # A route that is another by now does not make another attachment of it.
    pod.run("ip", "route", "replace", "default", "via", V4.outside, "dev", "eth0", "mtu", "1200")
    pod.cni("CHECK").ok()
    pod.run("ip", "route", "replace", "default", "via", V4.outside, "dev", "eth0", *case.ipv4.split())
    pod.cni("DEL").ok()
    assert snapshot(pod) == before


def test_an_mtu_that_is_asked_for_is_an_upper_bound(lab: Lab) -> None:
    for mtu, tap in ((1400, 1400), (1480, 1450)):
        pod = routed(lab, CASES["both alike"])
        pod.cni("ADD", mtu=mtu).ok()
        assert (pod.link("tap0") or {})["mtu"] == tap
        pod.cni("CHECK", mtu=mtu).ok()
        pod.cni("DEL", mtu=mtu).ok()
        pod.run("ip", "link", "delete", "eth0")


def test_an_attachment_of_an_older_program_has_the_interfaces_mtu(lab: Lab) -> None:
    pod = routed(lab, CASES["both"])
    pod.cni("ADD").ok()
    kept = json.loads(record(lab).read_text())
    del kept["undo"]["mtu"]
    record(lab).write_text(json.dumps(kept))
    assert "mtu of tap0 is 1450, not 1500" in pod.cni("CHECK").error()["msg"]
    pod.run("ip", "link", "set", "tap0", "mtu", "1500")
    pod.run("ip", "link", "set", "k6t-eth0", "mtu", "1500")
    pod.cni("CHECK").ok()
    pod.cni("DEL").ok()
