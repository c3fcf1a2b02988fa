"""What a VM's author asks for in annotations, through real executables: given, refused, moved, and said."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.e2e.api import ApiError
from tests.e2e.audit import counts
from tests.e2e.control_plane import ControlPlane
from tests.e2e.controller_process import end_pod
from tests.e2e.kubevirt_objects import KubeVirt, Running
from tests.e2e.machine import eventually
from tests.e2e.static_ip import ACCOUNT, LAN, StaticIpNode, leases, reserved

# One control plane for all of them.
pytestmark = pytest.mark.xdist_group("control_plane")

Document = dict[str, Any]
Nodes = tuple[StaticIpNode, StaticIpNode]

IP = "cnvnet.io/ip_address.lan"
MAC = "cnvnet.io/mac_address.lan"
OWN_MAC = "02:00:00:00:01:01"
OTHERS_MAC = "02:00:00:00:02:02"
IPAM: Document = {"exclude": ["10.1.0.128/25"], "gateway": "10.1.0.1"}
BOTH: Document = {"ipam": {"ipRanges": [{"range": "10.3.0.0/24"}, {"range": "fd00::/112"}], "subnet": None}}


def started(
    kubevirt: KubeVirt,
    namespace: str,
    name: str,
    annotations: dict[str, str] | None = None,
    *,
    mac: str = OWN_MAC,
    node: str = "node-1",
) -> Running:
    """A VM whose author has written these annotations, and whose spec has this MAC."""
    machine = kubevirt.create_machine(namespace, name, mac=mac, annotations=annotations)
    return kubevirt.start(machine, node)


def end(kubevirt: KubeVirt, *machines: Running) -> None:
    for each in machines:
        kubevirt.stop(each)
        kubevirt.delete(each.machine)


def events(control_plane: ControlPlane, involved: Document) -> list[Document]:
    """The events about an object, as `kubectl describe` finds them."""
    metadata = involved["metadata"]
    path = f"/api/v1/namespaces/{metadata['namespace']}/events"
    listed: list[Document] = control_plane.api.get(
        f"{path}?fieldSelector=involvedObject.uid={metadata['uid']}"
    )["items"]
    return [each for each in listed if each["reason"].startswith(("Address", "Released"))]


def said(control_plane: ControlPlane, running: Running, reason: str) -> list[str]:
    """The messages with this reason, once VM and pod have one."""

    def both() -> list[str] | None:
        found = [
            [each["message"] for each in events(control_plane, involved) if each["reason"] == reason]
            for involved in (running.machine, running.pod)
        ]
        return found[0] if all(found) and found[0] == found[1] else None

    return eventually(both, f"{reason} is said of the VM and its pod")


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({IP: "10.1.0.300"}, f'annotation {IP}: "10.1.0.300" is not an IP address'),
        ({IP: "10.9.0.5"}, f"annotation {IP}: 10.9.0.5 is in no range of network "),
        ({IP: "10.1.0.1"}, f"annotation {IP}: 10.1.0.1 is the gateway of network "),
        ({IP: "10.1.0.0"}, f"annotation {IP}: 10.1.0.0 is the network address of network "),
        ({IP: "10.1.0.200"}, f"annotation {IP}: 10.1.0.200 is excluded in network "),
        (
            {IP: "10.1.0.7, 10.1.0.8"},
            "10.1.0.7 and 10.1.0.8 are both IPv4, and an interface has one of each",
        ),
        (
            {f"{IP}x": "10.1.0.7"},
            f"annotation {IP}x: VM {{namespace}}/web has no network and no interface of this name, "
            f"only default (eth0), lan ({LAN})",
        ),
        ({MAC: "01:00:5e:00:00:01"}, f'annotation {MAC}: "01:00:5e:00:00:01" is a multicast MAC address'),
        (
            {MAC: "02:00:00:00:07:07"},
            f"annotation {MAC}: 02:00:00:00:07:07 contradicts {OWN_MAC} (VirtualMachineInstance "
            "{namespace}/web: macAddress of interface lan)",
        ),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_by_name_and_said(
    control_plane: ControlPlane,
    kubevirt: KubeVirt,
    tenant: str,
    nodes: Nodes,
    asked: dict[str, str],
    text: str,
) -> None:
    running = started(kubevirt, tenant, "web", asked)
    code, words = nodes[0].refused(running.pod, ipam=IPAM)
    assert (code, text.format(namespace=tenant) in words) == (7, True), words
    assert leases(control_plane, tenant) == []
    assert reserved(control_plane, tenant) == set()
    # The kubelet tries again: one event, which counts.
    assert nodes[0].refused(running.pod, ipam=IPAM) == (code, words)
    assert said(control_plane, running, "AddressRefused") == [f"no address in network {tenant}: {words}"]
    for involved in (running.machine, running.pod):
        (event,) = events(control_plane, involved)
        assert (event["type"], event["reportingComponent"]) == ("Warning", "cnvnet-agent")
    end(kubevirt, running)


def test_what_another_vm_has_is_refused_naming_it(
    control_plane: ControlPlane, kubevirt: KubeVirt, tenant: str, nodes: Nodes
) -> None:
    one, two = nodes
    first = started(kubevirt, tenant, "db", {IP: "10.1.0.50"}, mac=OTHERS_MAC, node="node-2")
    assert two.add(first.pod) == ["10.1.0.50/24"]
    holder = f"held by VM {tenant}/db ({LAN}) in pod {tenant}/{first.pod['metadata']['name']}"
    second = started(kubevirt, tenant, "web", {IP: "10.1.0.50"})
    assert one.refused(second.pod) == (7, f"annotation {IP}: 10.1.0.50 is {holder}")
    third = started(kubevirt, tenant, "twin", mac=OTHERS_MAC)
    where = f"VirtualMachineInstance {tenant}/twin: macAddress of interface lan"
    assert one.refused(third.pod) == (7, f"{where}: {OTHERS_MAC} is {holder}")
    two.delete(first.pod)
    # A VM that is stopped keeps them.
    code, words = one.refused(second.pod)
    assert (code, f"10.1.0.50 is held by VM {tenant}/db ({LAN}), which is stopped" in words) == (7, True), (
        words
    )
    assert len(leases(control_plane, tenant)) == 1
    end(kubevirt, first, second, third)


def test_the_server_itself_refuses_a_key_that_is_too_long(kubevirt: KubeVirt, tenant: str) -> None:
    """Of a VM's template it looks at no key; KubeVirt cannot make the instance."""
    network = "n" * 60
    machine = kubevirt.create_machine(
        tenant, "web", annotations={f"cnvnet.io/ip_address.{network}": "10.1.0.7"}
    )
    with pytest.raises(ApiError, match="name part must be no more than 63") as caught:
        kubevirt.start(machine, "node-1")
    assert caught.value.code == 422
    kubevirt.delete(machine)


def test_a_changed_request_moves_the_vm_at_its_next_start_and_frees_what_it_had(
    control_plane: ControlPlane, kubevirt: KubeVirt, tenant: str, nodes: Nodes
) -> None:
    one, _ = nodes
    running = started(kubevirt, tenant, "web", {IP: "10.1.0.50"})
    assert one.add(running.pod) == ["10.1.0.50/24"]
    given = f"10.1.0.50, {OWN_MAC} in network {tenant} for {LAN} (annotation {IP})"
    assert said(control_plane, running, "AddressAllocated") == [given]
    # While it runs a change has no effect; a move of the VM brings what it has.
    running.machine["spec"]["template"]["metadata"]["annotations"][IP] = "10.1.0.60"
    target = kubevirt.migrate(running, "node-2").target
    moved = nodes[1].call("ADD", target)
    assert [each["address"] for each in moved.ok()["ips"]] == ["10.1.0.50/24"]
    assert f"10.1.0.60 ignored: VM {tenant}/web ({LAN}) is migrating and keeps its addresses" in moved.stderr
    nodes[1].delete(target)
    one.delete(running.pod)
    kubevirt.stop(running)
    again = kubevirt.start(running.machine, "node-1")
    assert one.add(again.pod) == ["10.1.0.60/24"]
    (lease,) = leases(control_plane, tenant)
    assert (lease["spec"]["ips"], lease["spec"]["mac"]) == (["10.1.0.60"], OWN_MAC)
    assert reserved(control_plane, tenant) == {"10.1.0.60"}
    has = f"10.1.0.60, {OWN_MAC} in network {tenant} for {LAN} (annotation {IP}), no longer 10.1.0.50"
    assert said(control_plane, again, "AddressMoved") == [has]
    # What is kept is no event.
    one.delete(again.pod)
    assert one.add(again.pod) == ["10.1.0.60/24"]
    other = started(kubevirt, tenant, "db", {IP: "10.1.0.50"}, mac=OTHERS_MAC)
    assert one.add(other.pod) == ["10.1.0.50/24"]
    said(control_plane, other, "AddressAllocated")
    assert [each["reason"] for each in events(control_plane, again.pod)] == ["AddressMoved"]
    for each in (again, other):
        one.delete(each.pod)
    end(kubevirt, again, other)


@pytest.mark.usefixtures("controller")
def test_what_is_released_is_said_of_the_vm(
    control_plane: ControlPlane, kubevirt: KubeVirt, tenant: str, nodes: Nodes
) -> None:
    one, _ = nodes
    running = started(kubevirt, tenant, "web")
    with_pod: Document = {"ipam": {"release": "pod"}}
    (ip,) = one.add(running.pod, **with_pod)
    one.delete(running.pod, **with_pod)
    text = f"{ip.partition('/')[0]}, {OWN_MAC} in network {tenant} of {LAN}"
    assert said(control_plane, running, "AddressReleased") == [text]
    # By the controller, with the VM.
    one.add(running.pod)
    one.delete(running.pod)
    end(kubevirt, running)
    released = partial(_released, control_plane, running.machine)
    (message,) = eventually(released, "the VM's address is released")
    assert message.startswith("addresses released (network ")
    assert reserved(control_plane, tenant) == set()


def _released(control_plane: ControlPlane, machine: Document) -> list[str] | None:
    found = [each["message"] for each in events(control_plane, machine) if each["reason"] == "Released"]
    return found or None


def test_calls_ask_the_api_no_more_than_they_need(
    control_plane: ControlPlane, kubevirt: KubeVirt, tenant: str, nodes: Nodes
) -> None:
    """With both families; without the network's own object, at which an agent looks once in 30 seconds."""
    one, two = nodes
    first = started(kubevirt, tenant, "first", mac=OTHERS_MAC)
    for node in nodes:
        node.add(first.pod, **BOTH)
    node_of_nobody = control_plane.create_pod(tenant, "plain", "node-1")
    machine = kubevirt.create_machine(tenant, "web", mac=OWN_MAC)
    running = kubevirt.start(machine, "node-1")
    subject = {"get pods": 1, "get virtualmachineinstances": 1, "get vmleases": 1}

    def asked(call: Callable[[], object]) -> Document:
        with control_plane.audit.calls(ACCOUNT) as calls:
            call()
        return {each: number for each, number in counts(calls).items() if each != "get ipnetworks"}

    made = {"create vmleases": 1, "create ipreservations": 3}
    assert asked(lambda: one.add(running.pod, **BOTH)) == {**subject, **made}
    assert asked(lambda: one.delete(running.pod)) == {"patch vmleases": 1}
    kubevirt.stop(running)
    # The first restart makes sure of what the first ADD has reserved.
    confirmed = kubevirt.start(machine, "node-1")
    one.add(confirmed.pod, **BOTH)
    one.delete(confirmed.pod)
    kubevirt.stop(confirmed)
    again = kubevirt.start(machine, "node-1")
    assert asked(lambda: one.add(again.pod, **BOTH)) == {**subject, "patch vmleases": 1}
    # The same instance in another sandbox, as after a reboot of the node.
    assert asked(lambda: one.add(again.pod, sandbox="2", **BOTH)) == {**subject, "patch vmleases": 1}
    one.delete(again.pod, sandbox="2")
    target = kubevirt.migrate(again, "node-2").target
    assert asked(lambda: two.add(target, **BOTH)) == {**subject, "patch vmleases": 1}
    plain = asked(lambda: one.add(node_of_nobody, **BOTH))
    assert plain == {"get pods": 1, "create ipreservations": 2}
    assert asked(lambda: one.delete(node_of_nobody)) == {"delete ipreservations": 2}
    two.delete(target)
    one.delete(again.pod)
    for node in nodes:
        node.delete(first.pod)
    end_pod(control_plane, node_of_nobody)
    kubevirt.stop(again)
    kubevirt.delete(machine)
    end(kubevirt, first)
