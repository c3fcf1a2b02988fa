"""Starting over after leases were lost, with pods attached by the real plugins."""

from __future__ import annotations

from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from cnvnet.attachment.files import read_all
from cnvnet.ipam.static_ip.recovery import Recovered, start_over
from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.kernel.stack import LinuxKernel
from tests.harness import Node, Sandbox

NETWORK: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": "vms",
    "type": "cnv-bridge",
    "bridge": "br0",
    "ipam": {"type": "static-ip", "ranges": [[{"subnet": "10.9.0.0/28"}], [{"subnet": "fd09::/64"}]]},
}


def add(node: Node, pod: Sandbox, number: int) -> dict[str, Any]:
    config = {**NETWORK, "isGateway": True}
    result: dict[str, Any] = node.cni(
        "cnv-bridge", "ADD", config, pod, container_id=f"c{number}", args=f"VM_NAME=vm{number}"
    ).ok()
    return result


def ips(result: dict[str, Any]) -> set[str]:
    return {str(ip_interface(each["address"]).ip) for each in result["ips"]}


def recovered(node: Node) -> Recovered:
    store = Sqlite(str(node.statedir))
    try:
        return start_over(
            store,
            read_all(str(node.rundir))[0],
            LinuxKernel(),
            statedir=str(node.statedir),
            node="",
            now=100,
        )
    finally:
        store.close()


def lose(folder: Path) -> None:
    for path in folder.glob("leases.db*"):
        path.unlink()


def test_what_is_attached_keeps_its_addresses_and_no_other_gets_them(node: Node) -> None:
    plain, taken_over, ended = node.pod(), node.pod(), node.pod()
    results = [add(node, pod, number) for number, pod in enumerate((plain, taken_over, ended))]
    chained = {"cniVersion": "1.0.0", "name": "vms", "type": "vm-bridge", "prevResult": results[1]}
    node.cni("vm-bridge", "ADD", chained, taken_over, container_id="c1").ok()
    node.cni("cnv-bridge", "DEL", NETWORK, ended, container_id="c2").ok()
    lose(node.statedir)
    refused = node.cni("cnv-bridge", "ADD", NETWORK, node.pod(), container_id="c9").error()
    assert refused["code"] == 5
    assert "leases.db is missing, but leases were kept here: restore it" in refused["msg"]
    done = recovered(node)
    assert (done.addresses, done.problems) == (4, ())
    assert {lease.key.vm: set(map(str, lease.ips)) for lease in done.leases} == {
        "vm0": ips(results[0]),
        "vm1": ips(results[1]),
    }
    attached = ips(results[0]) | ips(results[1])
    given: set[str] = set()
    for number in range(3, 13):
        # 13 addresses without network, gateway and broadcast; the ended VM's is free.
        given |= ips(add(node, node.pod(), number))
    assert not given & attached
    node.cni("vm-bridge", "DEL", chained, taken_over, container_id="c1").ok()
    node.cni("cnv-bridge", "DEL", NETWORK, taken_over, container_id="c1").ok()
    # The VM is known again: it comes back with what it had.
    assert ips(add(node, node.pod(), 1)) == ips(results[1])
