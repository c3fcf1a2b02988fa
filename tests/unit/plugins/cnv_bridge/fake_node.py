"""A node in memory with one pod, the plugin on it, and an address manager that does what the test says."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from cnvnet.attachment.files import AttachmentFiles
from cnvnet.attachment.record import Attachments
from cnvnet.cni.errors import CNIError
from cnvnet.cni.fields import Fields
from cnvnet.cni.request import Request
from cnvnet.cni.result import IP, Interface, Result, ResultRoute, render
from cnvnet.ipam.store.ref import StoreRef
from cnvnet.kernel.links import ChangeLink
from cnvnet.kernel.netns import LostNamespace
from cnvnet.plugins.cnv_bridge.ip_masq import IpMasq
from cnvnet.plugins.cnv_bridge.ipam import Grant, Ipam, Prospect
from cnvnet.plugins.cnv_bridge.plugin import CnvBridge
from cnvnet.plugins.cnv_bridge.state import Context
from cnvnet.vm.subjects import Lookup, no_api
from tests.fakes.kernel import FakeKernel
from tests.fakes.namespace import FakeNamespace
from tests.fakes.nft import FakeNft
from tests.unit.plugins.killing_kernel import KillingKernel

POD = "/run/netns/pod"
FULL: dict[str, Any] = {
    "isDefaultGateway": True,
    "macspoofchk": True,
    "ipspoofchk": True,
    "ipMasq": True,
    "hairpinMode": True,
    "portIsolation": True,
    "vlan": 100,
    "vlanTrunk": [{"minID": 200, "maxID": 210}],
    "mtu": 1400,
    "ipam": {"type": "fake"},
}


class FakeIpam:
    """Two addresses with a gateway and a route, and their holder."""

    def __init__(self) -> None:
        self.holders: set[tuple[str, str]] = set()
        self.calls: list[str] = []
        self.mac = ""
        self.missing = ""
        # Where its leases are now, and where each CHECK and GC has looked for them.
        self.store: StoreRef | None = None
        self.stores: list[StoreRef | None] = []
        self.releases: list[Any] = []
        self.refuses: dict[str, CNIError] = {}
        # Looks around, or does something, whenever it is asked.
        self.found: Callable[[], object] | None = None
        self.seen: list[object] = []
        self.result = Result(
            ips=(
                IP(ip_interface("10.0.0.2/24"), ip_address("10.0.0.1")),
                IP(ip_interface("fd00::2/64"), ip_address("fd00::1")),
            ),
            routes=(ResultRoute(ip_network("198.51.100.0/24")),),
        )

    def prepare(self, request: Request) -> Prospect:
        return Prospect(frozenset(ip.address.version for ip in self.result.ips), self.store)

    def add(self, request: Request) -> Grant:
        self._call("ADD")
        holder = (request.container_id, request.ifname)
        if holder in self.holders:
            raise CNIError(999, "duplicate allocation is not allowed")
        self.holders.add(holder)
        return Grant(self.result, self.mac, partial(self._give_back, holder))

    def delete(self, request: Request, recorded: StoreRef | None = None) -> None:
        self._call("DEL")
        self.releases.append(request.config.get("ipam"))
        self._give_back((request.container_id, request.ifname))

    def unavailable_reason(self, request: Request) -> str:
        return self.missing

    def check(self, request: Request, recorded: StoreRef | None = None) -> None:
        self.stores.append(recorded)
        self._call("CHECK")

    def gc(self, request: Request, recorded: StoreRef | None = None) -> None:
        self.stores.append(recorded)
        self._call("GC")

    def shared_folders(self, request: Request) -> tuple[str, ...]:
        return ("/as/configured",)

    def status(self, request: Request) -> None:
        self._call("STATUS")

    def _call(self, command: str) -> None:
        self.calls.append(command)
        if self.found is not None:
            self.seen.append(self.found())
        if command in self.refuses:
            raise self.refuses[command]

    def _give_back(self, holder: tuple[str, str]) -> None:
        self.holders.discard(holder)


class World:
    """One node; `add`, `delete` and the others are calls of the plugin with the keys given."""

    def __init__(self, folder: Path, kernel: FakeKernel | None = None, **keys: Any) -> None:
        self.kernel = kernel or FakeKernel()
        self.host = self.kernel.host
        self.pod = self.kernel.add_namespace(POD)
        self.ipam = FakeIpam()
        self.chosen: list[str] = []
        self.keys = keys
        self.rundir = folder / "run"
        self.attachments: Attachments = AttachmentFiles(str(self.rundir))
        self.use_api(no_api)

    def use_api(self, lookup: Lookup) -> None:
        """From now on the plugin knows the VMs of pods."""
        masquerade = IpMasq(self.attachments, str(self.rundir / "masquerade"))
        self.plugin = CnvBridge(Context(self.kernel, self.attachments, masquerade), self._choose, lookup)

    def _choose(self, plugin_type: str) -> Ipam:
        self.chosen.append(plugin_type)
        return self.ipam

    def request(self, **changes: Any) -> Request:
        config: dict[str, Any] = {"name": "net1", "bridge": "br0", **self.keys, **changes.pop("config", {})}
        request = Request(
            command="",
            container_id="cid-1",
            netns=POD,
            ifname="eth0",
            args="",
            path="",
            env={},
            fields=Fields(config),
            raw=json.dumps(config).encode(),
            cni_version="1.1.0",
            name="net1",
        )
        return request._replace(**changes)

    def add(self, **changes: Any) -> Result:
        return self.plugin.add(self.request(**changes))

    def delete(self, **changes: Any) -> None:
        self.plugin.delete(self.request(**changes))

    def check(self, result: Result, **changes: Any) -> None:
        self.plugin.check(self.request(config={"prevResult": render(result, "1.1.0")}, **changes))

    def gc(self, *valid: tuple[str, str]) -> None:
        listed = [{"containerID": cid, "ifname": ifname} for cid, ifname in valid]
        self.plugin.gc(self.request(config={"cni.dev/valid-attachments": listed}))

    # what is there

    @property
    def ports(self) -> list[str]:
        return [link.name for link in self.host.links.values() if link.name.startswith("veth")]

    @property
    def pod_links(self) -> list[str]:
        return links_of(self.pod)

    @property
    def records(self) -> list[Mapping[str, Any]]:
        folder = self.rundir / "attachments"
        paths = sorted(folder.iterdir()) if folder.exists() else []
        return [json.loads(path.read_text()) for path in paths]

    @property
    def elements(self) -> list[str]:
        """Every element of every set, as `table set key`."""
        nft = self.kernel.nft_of(self.host)
        assert isinstance(nft, FakeNft)
        return sorted(
            f"{table[1]} {name} {' . '.join(element.key)}"
            for table, content in nft.tables.items()
            for name, elements in content.sets.items()
            for element in elements.values()
        )

    @property
    def markers(self) -> list[str]:
        folder = self.rundir / "masquerade"
        return sorted(os.listdir(folder)) if folder.exists() else []

    def assert_nothing_of_an_attachment(self) -> None:
        """Shared things may be there: the bridge, a VLAN's gateway with its port, empty sets."""
        gateways = [link for link in self.host.links.values() if "." in link.name]
        assert len(self.ports) == len(gateways)
        assert self.pod_links == ["lo"]
        assert self.records == []
        assert self.elements == []
        assert self.markers == []
        assert self.ipam.holders == set()


def links_of(namespace: FakeNamespace) -> list[str]:
    return [link.name for link in namespace.links.values()]


def outer(result: Result) -> Interface:
    """The host end in a result."""
    return result.interfaces[1]


def set_up(world: World) -> None:
    """What the `dhcp` plugin does to the container's end."""
    with world.kernel.netns(POD) as netns, world.kernel.stack(netns) as pod:
        link = pod.link("eth0")
        assert link is not None
        pod.apply(ChangeLink(link.ifindex, up=True))


def killed_add(folder: Path, step: int) -> World:
    """The world after an ADD that was killed at this step."""
    kernel = KillingKernel()
    world = World(folder, kernel, **FULL)
    kernel.kill_at = step
    with pytest.raises(LostNamespace):
        world.add()
    return world
