"""`"bridge": false`: the gateway is the tap itself; guest, pod and others notice nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.functional.masquerade import test_traffic as with_bridge
from tests.functional.masquerade.masquerade_pod import (
    BRIDGE_MAC,
    SIDES,
    V4,
    V6,
    Lab,
    Side,
    a_lab,
    who_answers,
)
from tests.functional.masquerade.test_calls import snapshot
from tests.functional.masquerade.test_traffic import BOTH, LISTED, attached, both_listen


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with a_lab(tmp_path) as made:
        made.keys = {"bridge": False}
        yield made


@pytest.mark.parametrize("sides", [SIDES, (V4,), (V6,)], ids=["both", "IPv4", "IPv6"])
def test_the_tap_is_the_gateway_and_del_leaves_the_pod_as_it_was(lab: Lab, sides: tuple[Side, ...]) -> None:
    pod = lab.pod(sides=sides)
    before = snapshot(pod)
    pod.cni("ADD").ok()
    pod.cni("CHECK").ok()
    assert pod.link("k6t-eth0") is None
    tap = pod.link("tap0")
    assert tap is not None
    assert (tap["address"], tap.get("master")) == (BRIDGE_MAC, None)
    lab.plug(pod)
    for side in sides:
        assert who_answers(lab.node, side, side.pod, 80, **both_listen(lab, pod, side, 80)).by == "guest"
    pod.cni("CHECK").ok()
    lab.unplug()
    pod.cni("DEL").ok()
    assert snapshot(pod) == before
    pod.cni("DEL").ok()


def test_without_a_record_the_tap_tells_whose_it_is(lab: Lab) -> None:
    pod = lab.pod()
    pod.cni("ADD").ok()
    for path in (lab.node.rundir / "attachments").iterdir():
        path.unlink()
    pod.cni("DEL").ok()
    assert pod.link("tap0") is None
    assert "cnv_masquerade" not in pod.run("nft", "list", "ruleset").stdout


@BOTH
def test_ports_lead_to_the_guest_or_to_the_pod(lab: Lab, side: Side) -> None:
    with_bridge.test_with_a_list_the_others_lead_to_the_pod(lab, side)


@BOTH
def test_the_guest_goes_out_as_its_pod(lab: Lab, side: Side) -> None:
    with_bridge.test_the_guest_goes_out_as_its_pod(lab, side)


@BOTH
@pytest.mark.parametrize("keys", [{}, LISTED], ids=["all ports", "listed ports"])
def test_the_guest_reaches_itself_by_its_pods_address(lab: Lab, side: Side, keys: dict[str, Any]) -> None:
    with_bridge.test_the_guest_reaches_itself_by_its_pods_address(lab, side, keys)


@BOTH
def test_a_hairpin_brings_no_redirects(lab: Lab, side: Side) -> None:
    with_bridge.test_a_hairpin_brings_no_redirects(lab, side)


def test_the_loopback_of_the_pod_leads_to_the_guest(lab: Lab) -> None:
    with_bridge.test_the_loopback_of_the_pod_leads_to_the_guest(lab, LISTED)


@BOTH
def test_the_guest_does_not_reach_the_loopback_of_the_pod(lab: Lab, side: Side) -> None:
    with_bridge.test_the_guest_does_not_reach_the_loopback_of_the_pod(lab, side)


@BOTH
@pytest.mark.parametrize("target", ["outside", "pod"])
def test_the_guest_sends_with_its_own_address_only(lab: Lab, side: Side, target: str) -> None:
    with_bridge.test_the_guest_sends_with_its_own_address_only(lab, side, target)


@BOTH
def test_the_inner_address_is_no_way_round_the_list_of_ports(lab: Lab, side: Side) -> None:
    with_bridge.test_the_inner_address_is_no_way_round_the_list_of_ports(lab, side)


@BOTH
def test_dhcp_of_the_guest_gets_no_answer_from_the_kernel(lab: Lab, side: Side) -> None:
    with_bridge.test_dhcp_of_the_guest_gets_no_answer_from_the_kernel(lab, side)


def test_a_guest_keeps_its_connection_when_it_changes_its_mac(lab: Lab) -> None:
    pod = attached(lab)
    listener = lab.listener(lab.guest, V4, 80)
    with lab.unbound(lab.node, V4) as caller:
        caller.connect((V4.pod, 80))
        taken, _ = listener.accept()
        with taken:
            lab.guest.run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:33")
            taken.settimeout(20)
            for word in (b"before", b"after"):
                taken.sendall(word)
                assert caller.recv(20) == word
                caller.sendall(word)
                assert taken.recv(20) == word
    assert pod.link("tap0") is not None
