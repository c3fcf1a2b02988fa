"""A default route with an MTU of its own, as a network with tunnels (Cilium) gives its pods."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest

from tests.functional.vm_bridge.test_calls import records
from tests.functional.vm_bridge.vm_bridge_pod import Lab, difference, settle, snapshot


class Case(NamedTuple):
    """The metrics of the default routes; what tap and guest have: tap, IPv4, IPv6 (0: as the tap)."""

    ipv4: str
    ipv6: str
    tap: int
    family_mtus: tuple[int, int]


CASES = {
    "none": Case("", "", 1500, (0, 0)),
    "both alike": Case("mtu 1450", "mtu 1450", 1450, (0, 0)),
    "both": Case("mtu 1450", "mtu 1400", 1450, (0, 1400)),
    "locked": Case("mtu lock 1450", "mtu lock 1400", 1450, (0, 1400)),
    "IPv4 alone": Case("mtu 1450", "", 1500, (1450, 0)),
    "IPv6 alone": Case("", "mtu 1400", 1500, (0, 1400)),
    "more than the interface": Case("mtu 9000", "mtu 9000", 1500, (0, 0)),
    "less than a host takes": Case("mtu 300", "mtu 600", 1280, (576, 0)),
}


def replace_routes(lab: Lab, case: Case) -> None:
    lab.pod.run("ip", "route", "replace", "default", "via", "10.1.0.1", *case.ipv4.split())
    lab.pod.run("ip", "-6", "route", "replace", "default", "via", "fd99::1", *case.ipv6.split())


def settings(lab: Lab) -> dict[str, Any]:
    """The guest's settings as recorded."""
    (path,) = records(lab.node)
    recorded: dict[str, Any] = json.loads(path.read_text())["guest"]["settings"]
    return recorded


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_the_smaller_of_interface_and_route_is_given_and_del_restores_both(lab: Lab, case: Case) -> None:
    lab.network()
    replace_routes(lab, case)
    settle(lab)
    before = snapshot(lab.pod)
    lab.pod.cni("ADD").ok()
    for name in ("tap0", "k6t-eth0"):
        assert (lab.pod.link(name) or {})["mtu"] == case.tap, name
    # What is the pod's stays as it was.
    for name in ("eth0", "eth0-nic"):
        assert (lab.pod.link(name) or {})["mtu"] == 1500, name
    recorded = settings(lab)
    assert (recorded["mtu"], recorded["v4"]["mtu"], recorded["v6"]["mtu"]) == (case.tap, *case.family_mtus)
    lab.pod.cni("CHECK").ok()
    lab.pod.cni("DEL").ok()
    assert difference(lab.pod, before) == ""
    for family, metric in (("-4", case.ipv4), ("-6", case.ipv6)):
        assert metric in lab.pod.run("ip", family, "route", "show", "default").stdout


def test_an_attachment_of_an_older_program_has_the_interfaces_mtu(lab: Lab) -> None:
    lab.network()
    replace_routes(lab, CASES["both"])
    settle(lab)
    lab.pod.cni("ADD").ok()
    (path,) = records(lab.node)
    record = json.loads(path.read_text())
    del record["undo"]["mtu"]
    for family in ("v4", "v6"):
        del record["guest"]["settings"][family]["mtu"]
    record["guest"]["settings"]["mtu"] = 1500
    path.write_text(json.dumps(record))
    for name in ("tap0", "k6t-eth0"):
        lab.pod.run("ip", "link", "set", name, "mtu", "1500")
    lab.pod.cni("CHECK").ok()
    lab.pod.run("ip", "link", "set", "tap0", "mtu", "1450")
    assert "mtu of tap0 is 1450, not 1500" in lab.pod.cni("CHECK").error()["msg"]
    lab.pod.cni("DEL").ok()
