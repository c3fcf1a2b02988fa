"""A pod in memory with its interface, for the unit tests of the plugins that bind a VM to one."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any, ClassVar

from cnvnet.attachment.files import AttachmentFiles
from cnvnet.cni.errors import CNIError
from cnvnet.cni.fields import Fields
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result, render
from cnvnet.kernel.addresses import AddAddress
from cnvnet.kernel.netns import LostNamespace
from cnvnet.kernel.routes import AddRoute, Route
from cnvnet.plugins.commands import BindingCommands
from tests.fakes.kernel import FakeKernel
from tests.fakes.namespace import FakeNamespace
from tests.fakes.nft import FakeNft
from tests.unit.plugins.killing_kernel import KillingKernel

POD = "/run/netns/pod"
ADDRESSES = ("10.244.0.5/24", "fd99::5/64")


def request_in(network: str, config: Mapping[str, Any], **changes: Any) -> Request:
    """An ADD in the first of the three ways unless `changes` say otherwise."""
    request = Request(
        command="ADD",
        container_id="cid-1",
        netns=POD,
        ifname="net1",
        args="",
        path="",
        env={},
        fields=Fields({"name": network, **config}),
        raw=b"",
        cni_version="1.1.0",
        name=network,
    )
    return request._replace(**changes)


class BindingWorld(ABC):
    """One pod; `add`, `delete` and the others are calls of the plugin with the keys given."""

    network: ClassVar[str]

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
        self.plugin = self.load({"CNVNET_RUNDIR": str(self.rundir)})
        link = self.pod.add_link("eth0", "veth")
        self.pod.set_up(link)
        for address in addresses:
            self.pod.add_address(AddAddress(link.ifindex, ip_interface(address)))
        if any(":" in address for address in addresses):
            default = Route(ip_network("::/0"), link.ifindex, ip_interface("fd99::1").ip)
            self.pod.add_route(AddRoute(default))
        self.furnish(link.ifindex, addresses)
        self.pod.finish_detection()

    @abstractmethod
    def load(self, env: Mapping[str, str]) -> BindingCommands[Any]:
        """The plugin in this kernel."""

    def furnish(self, ifindex: int, addresses: tuple[str, ...]) -> None:  # noqa: B027 -- most pods need no more
        """Puts more into the pod before the plugin looks at it."""

    def request(self, **changes: Any) -> Request:
        return request_in(self.network, {**self.keys, **changes.pop("config", {})}, **changes)

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


# A world is made for each step in turn; how many steps there were is returned.
MakeWorld = Callable[[int], BindingWorld]


def refuse_adds(make: MakeWorld) -> int:
    """The kernel refuses one change of an ADD, each in turn: nothing is left of it."""
    steps = 0
    while True:
        world = make(steps)
        before = world.snapshot()
        world.kernel.fail_at(steps + 1)
        try:
            world.add()
        except (CNIError, OSError):
            assert world.snapshot() == before, f"step {steps + 1}"
        else:
            # What is not required may be refused; then the ADD goes on.
            if world.kernel.steps <= steps:
                return steps
            world.delete()
            assert world.snapshot() == before, f"step {steps + 1}"
        steps += 1


def kill_adds(make: MakeWorld, then: str) -> int:
    """An ADD is killed before each of its changes in turn; the calls that `then` names repair it."""
    steps = 0
    while True:
        world = make(steps)
        before = world.snapshot()
        killing_kernel(world).kill_at = world.kernel.steps + steps + 1
        try:
            world.add()
        except LostNamespace:
            if then == "add":
                world.add()
                world.check()
            if then == "gc":
                world.gc()
            else:
                world.delete()
            assert world.snapshot() == before, f"step {steps + 1}"
        else:
            return steps
        steps += 1


def kill_deletes(make: MakeWorld) -> int:
    """A DEL is killed before each of its changes in turn; the next one finishes it."""
    steps = 0
    while True:
        world = make(steps)
        before = world.snapshot()
        world.add()
        killing_kernel(world).kill_at = world.kernel.steps + steps + 1
        try:
            world.delete()
        except LostNamespace:
            world.delete()
            assert world.snapshot() == before, f"step {steps + 1}"
        else:
            return steps
        steps += 1


def killing_kernel(world: BindingWorld) -> KillingKernel:
    assert isinstance(world.kernel, KillingKernel)
    return world.kernel
