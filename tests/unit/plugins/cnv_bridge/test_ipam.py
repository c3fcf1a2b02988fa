"""The address manager within cnv-bridge's own process, with a VM that has an IPAMClaim."""

from __future__ import annotations

from pathlib import Path

from cnvnet.call_context import captured
from cnvnet.cni import unknown_keys
from cnvnet.plugins.cnv_bridge.ipam import BuiltinIpam
from cnvnet.vm.directory import Directory
from tests.fakes.api_server import ApiServer
from tests.fakes.launchers import Launchers
from tests.unit.ipam.static_ip.test_claims import Claims, element, networks
from tests.unit.ipam.static_ip.test_cluster import ClusterNode, leases


def test_a_port_that_cannot_be_made_gives_back_addresses_and_what_the_claim_says(
    tmp_path: Path, directory: Directory, launchers: Launchers, server: ApiServer
) -> None:
    made = Claims(server)
    made.create()
    node = ClusterNode(tmp_path, directory)
    request = node.request(launchers.start("vm-a", networks(element())), allowPersistentIPs=True)
    manager = BuiltinIpam(node.plugin, lambda: directory)
    with captured() as lines:
        manager.prepare(request)
        unknown_keys.report_ipam(request.fields)
    assert lines == []
    assert "allowPersistentIPs" not in request.fields.unread()
    grant = manager.add(request)
    (ip,) = grant.result.ips
    assert made.status()["ips"] == [str(ip.address)]
    grant.undo()
    assert (made.status()["ips"], made.condition()[:2]) == ([], ("False", "InternalError"))
    assert leases(server) == []
