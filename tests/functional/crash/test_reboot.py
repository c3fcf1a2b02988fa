"""A node that lost its power: RUNDIR and all namespaces are gone, the leases are not."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import closing

import pytest

from tests.functional.crash.call_service import Service, addresses, serving
from tests.functional.crash.node_state import attachment_state, leases
from tests.functional.crash.test_bridge_killed import ROUTED, VM
from tests.functional.crash.test_static_ip_killed import CONFIG as THREE_ADDRESSES
from tests.functional.crash.test_static_ip_killed import NEIGHBOUR
from tests.harness import Node, a_node

pytestmark = pytest.mark.alone

FORMER = "11111111-2222-3333-4444-555555555555"


def of_another_boot(node: Node) -> None:
    """What is stored was stored before the node was started again; /proc/N belongs to others now."""
    with closing(sqlite3.connect(node.statedir / "leases.db")) as database:
        database.execute("UPDATE holders SET boot_id=?, inode=1", (FORMER,))
        database.commit()


def test_a_vm_has_its_address_after_the_node_was_started_again(node: Node) -> None:
    with serving(node, "cnv-bridge", ROUTED) as service:
        before = service.process("ADD", "c1", node.pod(), VM).ok()
        service.process("ADD", "c2", node.pod(), "VM_NAME=vm-b").ok()
    of_another_boot(node)
    with a_node(node.folder / "again") as again, serving(again, "cnv-bridge", ROUTED) as service:
        again.statedir = node.statedir
        pod = again.pod()
        after = service.process("ADD", "c3", pod, VM).ok()
        assert [ip["address"] for ip in after["ips"]] == [ip["address"] for ip in before["ips"]]
        assert after["interfaces"][2]["mac"] == before["interfaces"][2]["mac"]
        (lease,) = [lease for lease in leases(again) if "/vm-a/" in lease.key]
        assert lease.holders == (("c3", "active"),)
        # The runtime clears up what it knows from before.
        service.process("DEL", "c1", "/run/netns/gone").ok()
        service.process("DEL", "c2", "/run/netns/gone").ok()
        service.process("CHECK", "c3", pod, VM, more={"prevResult": after}).ok()
        service.process("DEL", "c3", pod, VM).ok()
        assert attachment_state(again, pod)[:4] == ((), (), (), ())


def test_records_of_another_boot_hold_no_call_up(node: Node) -> None:
    """Where RUNDIR is on a disk."""
    with serving(node, "cnv-bridge", ROUTED) as service:
        pod = node.pod()
        before = addresses(service.process("ADD", "c1", pod, VM))
        service.process("ADD", "c2", node.pod()).ok()
    of_another_boot(node)
    for path in node.rundir.glob("attachments/*.json"):
        path.write_text(path.read_text().replace(boot_id(), FORMER))
    with a_node(node.folder / "again") as again, serving(again, "cnv-bridge", ROUTED) as service:
        again.statedir, again.rundir = node.statedir, node.rundir
        pod = again.pod()
        # A container of that name, once more.
        assert addresses(service.process("ADD", "c1", pod, VM)) == before
        valid = [{"containerID": "c1", "ifname": "eth0"}]
        service.call("GC", pod="", more={"cni.dev/valid-attachments": valid}).ok()
        assert len(attachment_state(again, pod).links) == 1
        assert [lease.holders for lease in leases(again)] == [(("c1", "active"),)]
        service.process("DEL", "c1", pod, VM).ok()
        assert attachment_state(again, pod)[:4] == ((), (), (), ())


@pytest.fixture
def full(node: Node) -> Generator[Service]:
    """A pool without a free address: a VM has one, two pods have the others."""
    with serving(node, "static-ip", THREE_ADDRESSES) as service:
        for container, args in (("c1", NEIGHBOUR), ("c2", ""), ("c3", "")):
            service.process("ADD", container, args=args).ok()
        assert service.process("ADD", "c4").error()["code"] == 11
        yield service


def test_pods_that_died_with_the_node_do_not_keep_a_pool_full(node: Node, full: Service) -> None:
    (neighbours,) = [lease.ips for lease in leases(node) if "/neighbour/" in lease.key]
    of_another_boot(node)
    full.call("STATUS", pod="").ok()
    given = [addresses(full.process("ADD", container)) for container in ("d1", "d2")]
    assert len({*neighbours, *given[0], *given[1]}) == 3
    assert full.process("ADD", "d3").error()["code"] == 11
    assert addresses(full.process("ADD", "d4", args=NEIGHBOUR)) == list(neighbours)


def test_a_pod_of_this_boot_is_not_dead_because_its_path_is_gone(node: Node, full: Service) -> None:
    """A process may keep the namespace, and its addresses, alive."""
    assert full.process("ADD", "d1", "/run/netns/of-the-new-pod").error()["code"] == 11


def test_a_holder_of_another_boot_whose_namespace_is_still_there_is_alive(node: Node) -> None:
    """A clock or a container's /proc may lie about the boot: the namespace does not."""
    with serving(node, "static-ip", THREE_ADDRESSES) as service:
        pod = node.pod()
        service.process("ADD", "c1", pod, VM).ok()
        with closing(sqlite3.connect(node.statedir / "leases.db")) as database:
            database.execute("UPDATE holders SET boot_id=?", (FORMER,))
            database.commit()
        error = service.process("ADD", "c2", args=VM.replace("UID=1", "UID=2")).error()
        assert (error["code"], "container c1" in error["msg"]) == (11, True)
        of_another_boot(node)
        service.process("ADD", "c2", args=VM.replace("UID=1", "UID=2")).ok()


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
