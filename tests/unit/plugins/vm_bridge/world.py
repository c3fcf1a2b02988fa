"""A pod in memory with its interface, and the plugin on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

from cnvnet.attachments import AttachmentFiles
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result, render
from cnvnet.kernel.addresses import AddAddress
from cnvnet.kernel.fake import FakeKernel
from cnvnet.kernel.fake_namespace import FakeNamespace
from cnvnet.kernel.neighbours import Neighbour
from cnvnet.kernel.netns import LostNamespace
from cnvnet.kernel.nft_fake import FakeNft
from cnvnet.kernel.routes import AddRoute, Route
from cnvnet.plugins.vm_bridge.plugin import VMBridge

POD = "/run/netns/pod"
ADDRESSES = ("10.244.0.5/24", "fd99::5/64")


class MortalKernel(FakeKernel):
    """A kernel whose caller is killed instead of doing its `deadly`th change: nobody cleans up after it."""

    deadly = 0

    def step(self) -> None:
        super().step()
        if self.steps == self.deadly:
            raise LostNamespace("killed")


def a_request(config: Mapping[str, Any], **changes: Any) -> Request:
    """An ADD in the first of the three ways unless `changes` say otherwise."""
    request = Request(
        command="ADD",
        container_id="cid-1",
        netns=POD,
        ifname="net1",
        args="",
        path="",
        env={},
        config={"name": "wire", **config},
        raw=b"",
        cni_version="1.1.0",
        name="wire",
    )
    return request._replace(**changes)


class World:
    """One pod; `add`, `delete` and the others are calls of the plugin with the keys given."""

    def __init__(
        self,
        folder: Path,
        kernel: FakeKernel | None = None,
        addresses: tuple[str, ...] = ADDRESSES,
        **keys: Any,
    ) -> None:
        self.kernel = kernel or FakeKernel()
        self.pod = self.kernel.add_namespace(POD)
        self.keys = keys
        self.rundir = folder / "run"
        self.attachments = AttachmentFiles(str(self.rundir))
        self.plugin = VMBridge(self.kernel, self.attachments, {"CNVNET_RUNDIR": str(self.rundir)})
        link = self.pod.add_link("eth0", "veth")
        self.pod.set_up(link)
        for address in addresses:
            self.pod.add_address(AddAddress(link.ifindex, ip_interface(address)))
        if any(":" in address for address in addresses):
            default = Route(ip_network("::/0"), link.ifindex, ip_interface("fd99::1").ip)
            self.pod.add_route(AddRoute(default))
        if any("." in address for address in addresses):
            self.pod.add_route(
                AddRoute(Route(ip_network("0.0.0.0/0"), link.ifindex, ip_interface("10.244.0.1").ip))
            )
        router = Neighbour(link.ifindex, ip_interface("fd99::1").ip, "0a:00:00:00:00:01", permanent=False)
        self.pod.reachable.append(router)
        self.pod.neighbours.append(
            Neighbour(link.ifindex, ip_interface("10.244.0.9").ip, "0a:00:00:00:00:09")
        )
        self.pod.finish_detection()

    def request(self, **changes: Any) -> Request:
        return a_request({**self.keys, **changes.pop("config", {})}, **changes)

    def add(self, **changes: Any) -> Result:
        return self.plugin.add(self.request(**changes))

    def delete(self, **changes: Any) -> None:
        self.plugin.delete(self.request(**changes))

    def check(self, result: Result | None = None, **changes: Any) -> None:
        config = {"prevResult": render(result or Result(), "1.1.0")}
        self.plugin.check(self.request(config=config, **changes))

    def gc(self, *valid: tuple[str, str]) -> None:
        listed = [{"containerID": cid, "ifname": ifname} for cid, ifname in valid]
        self.plugin.gc(self.request(config={"cni.dev/valid-attachments": listed}))

    # what is there

    @property
    def nft(self) -> FakeNft:
        nft = self.kernel.nft_of(self.pod)
        assert isinstance(nft, FakeNft)
        return nft

    @property
    def links(self) -> list[str]:
        return [link.name for link in self.pod.links.values()]

    @property
    def records(self) -> list[Mapping[str, Any]]:
        folder = self.rundir / "attachments"
        paths = sorted(folder.iterdir()) if folder.exists() else []
        return [json.loads(path.read_text()) for path in paths]

    def snapshot(self) -> dict[str, Any]:
        """Everything of the pod that an ADD could have touched."""
        return snapshot(self.pod) | {"tables": sorted(self.nft.tables), "records": self.records}


def snapshot(pod: FakeNamespace) -> dict[str, Any]:
    return {
        "links": [link.shown() for link in pod.links.values()],
        "addresses": list(pod.addresses),
        "routes": sorted(pod.routes, key=str),
        "neighbours": [each for each in pod.neighbours if each.permanent],
        "sysctls": dict(pod.sysctls),
    }
