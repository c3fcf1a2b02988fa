"""A bridge that another program deletes during an ADD: the error tells the runtime to try again."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from cnvnet.cni.errors import CNIError
from cnvnet.cni.request import Request, parse
from cnvnet.kernel.links import DeleteLink, Link
from cnvnet.kernel.netns import Netns
from cnvnet.kernel.operations import Operation
from cnvnet.kernel.stack import LinuxKernel, NetlinkStack
from cnvnet.plugins.cnv_bridge import plugin as cnv_bridge
from tests.harness import namespace

# More than an ADD of either configuration has operations.
LAST = 24
L2: dict[str, Any] = {"macspoofchk": True}
L3: dict[str, Any] = {
    "isDefaultGateway": True,
    "ipMasq": True,
    "ipspoofchk": True,
    "ipam": {"type": "static-ip", "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]]},
}


class Stack(NetlinkStack):
    """The network stack of the node, where `br0` is deleted before the given operation."""

    def __init__(self, stack: NetlinkStack, node: Node) -> None:
        super().__init__(stack._socket, stack._netns)
        self._node = node

    def apply(self, *operations: Operation) -> list[Link]:
        created: list[Link] = []
        for operation in operations:
            self._node.operations += 1
            if self._node.operations == self._node.fail_at:
                self._node.delete_bridge()
            created += super().apply(operation)
        return created


class Node(LinuxKernel):
    """The kernel, whose calls see `host` as the node's namespace."""

    def __init__(self, host: Netns, fail_at: int) -> None:
        super().__init__()
        self.host = host
        self.fail_at = fail_at
        self.operations = 0

    @contextmanager
    def stack(self, netns: Netns | None = None) -> Generator[Any]:
        with super().stack(netns or self.host) as stack:
            assert isinstance(stack, NetlinkStack)
            yield Stack(stack, self)

    def nft(self, netns: Netns | None = None) -> Any:
        return super().nft(netns or self.host)

    def delete_bridge(self) -> None:
        with super().stack(self.host) as stack:
            bridge = stack.link("br0")
            if bridge is not None:
                stack.apply(DeleteLink(bridge.ifindex))


@pytest.mark.parametrize("fail_at", range(1, LAST + 1))
@pytest.mark.parametrize("keys", [L2, L3], ids=["L2", "L3"])
def test_the_runtime_tries_again(keys: dict[str, Any], fail_at: int, tmp_path: Path) -> None:
    with ExitStack() as opened:
        host, pod = (
            opened.enter_context(LinuxKernel().netns(opened.enter_context(namespace()))) for _ in "hp"
        )
        kernel = Node(host, fail_at)
        env = {"CNVNET_RUNDIR": str(tmp_path / "run"), "CNVNET_STATEDIR": str(tmp_path / "state")}
        plugin = cnv_bridge.load(env, kernel=kernel)
        error = None
        try:
            plugin.add(request(env, "ADD", pod, keys))
        except CNIError as e:
            error = e
        if error is not None:
            assert (error.code, error.msg) == (11, "bridge br0 has been deleted meanwhile")
            assert kernel.operations >= fail_at
            assert list((tmp_path / "run/attachments").glob("*.json")) == []
            assert [link.name for link in links(pod)] == ["lo"]
        else:
            # Either it was there to the end, or another was made in its place before a port was on it.
            assert [link.name for link in links(pod)] == ["lo", "eth0"]
            plugin.delete(request(env, "DEL", pod, keys))
        # A VLAN's gateway and the bridge are shared: they stay.
        assert {link.name for link in links(host)} <= {"lo", "br0"}


def links(netns: Netns) -> list[Link]:
    with LinuxKernel().stack(netns) as stack:
        return stack.links()


def request(env: dict[str, str], command: str, pod: Netns, keys: dict[str, Any]) -> Request:
    config = {"cniVersion": "1.1.0", "name": "net", "type": "cnv-bridge", "bridge": "br0", **keys}
    variables = {
        "CNI_CONTAINERID": "c",
        "CNI_NETNS": pod.path,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/opt/cni/bin",
    }
    return parse({**env, **variables, "CNI_COMMAND": command}, json.dumps(config).encode())
