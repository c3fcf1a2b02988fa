"""cnvnet-bridge is cnv-bridge under a name that no other program has: one plugin, one set of records."""

from __future__ import annotations

import pytest

from tests.functional.bridge.bridge_network import OURS, Network, host_local, leases, ports, ruleset
from tests.functional.bridge.test_cnitool import Cnitool, bridge
from tests.functional.bridge.test_gc_status import gc, status, valid
from tests.harness import Node, Sandbox

pytestmark = pytest.mark.every_way

SECOND = "cnvnet-bridge"


def test_a_life_of_an_attachment(node: Node, pod: Sandbox) -> None:
    tool = Cnitool(node, "net", bridge(node, SECOND, macspoofchk=True, ipMasq=True))
    assert tool.run("add", pod).ok()["ips"][0]["address"] == "10.1.2.2/24"
    assert tool.run("check", pod).code == 0
    (record,) = node.rundir.glob("attachments/*.json")
    assert record.name.startswith(f"{OURS}-")
    assert tool.run("status", pod).code == 0
    assert tool.run("del", pod).code == 0
    assert (pod.link("eth0"), ports(node), leases(node, "net")) == (None, [], [])
    assert "10.1.2.2" not in ruleset(node)
    assert list(node.rundir.glob("attachments/*.json")) == []


@pytest.mark.parametrize(("first", "then"), [(OURS, SECOND), (SECOND, OURS)])
def test_what_was_attached_under_one_name_is_known_under_the_other(
    node: Node, pod: Sandbox, first: str, then: str
) -> None:
    network = Network(node, first, macspoofchk=True, ipam=host_local(node, "10.1.2.0/24"))
    result = network.add(pod).ok()
    network.add(node.pod(), container_id="dead").ok()
    renamed = network.with_program(then)
    status(renamed).ok()
    renamed.check(pod, result).ok()
    gc(renamed, valid(("dummy-0", "eth0"))).ok()
    assert leases(node) == ["10.1.2.2"]
    renamed.check(pod, result).ok()
    renamed.delete(pod, result).ok()
    assert (ports(node), leases(node)) == ([], [])


def test_an_error_is_that_of_the_plugin(node: Node, pod: Sandbox) -> None:
    first, second = (Network(node, name, bridge="x" * 20).add(pod).error()["msg"] for name in (OURS, SECOND))
    assert first == second
