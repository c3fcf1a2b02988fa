"""How many transactions of nftables a call is: each costs time for every chain there is, whose ever."""

from __future__ import annotations

from typing import Any

import pytest

from cnvnet.kernel import netns
from cnvnet.kernel.nft.wire import Subscription
from tests.functional.bridge.bridge_network import OURS, Network, host_local
from tests.harness import Node, peer

# include/uapi/linux/netfilter/nf_tables.h: sent at the end of each transaction that changed something.
NEWGEN = (10 << 8 | 15).to_bytes(2, "little")


def transactions(subscription: Subscription) -> int:
    """How many there were since the last call."""
    number = 0
    while True:
        try:
            number += subscription.receive()[4:6] == NEWGEN
        except BlockingIOError:
            return number


def managed(node: Node, ipam: str) -> dict[str, Any]:
    if ipam == "static-ip":
        ranges = [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00::/64"}]]
        return {"type": ipam, "ranges": ranges, "dataDir": str(node.folder / "leases")}
    peer("host-local")
    return host_local(node, "10.1.2.0/24", "fd00::/64")


@pytest.mark.parametrize(
    ("ipam", "keys", "added", "deleted"),
    [
        ("static-ip", {}, 0, 0),
        ("static-ip", {"macspoofchk": True, "ipspoofchk": True}, 1, 1),
        # A VM's two addresses are given up one by one.
        ("static-ip", {"ipMasq": True}, 1, 2),
        ("host-local", {}, 0, 0),
        # What the port may say while its addresses are asked for, then what it may say with them; and back.
        ("host-local", {"macspoofchk": True, "ipspoofchk": True}, 2, 2),
        ("host-local", {"ipMasq": True}, 1, 2),
    ],
)
def test_guards_are_one_transaction_and_so_is_masquerading(
    node: Node, ipam: str, keys: dict[str, Any], added: int, deleted: int
) -> None:
    network = Network(node, OURS, isGateway=True, ipam=managed(node, ipam), **keys)
    network.add(node.pod(), container_id="first").ok()  # which loads the rules
    pod = node.pod()
    with netns.opened(node.netns) as inside, netns.entered(inside):
        subscription = Subscription(1 << 20)
    with subscription:
        network.add(pod).ok()
        assert transactions(subscription) == added
        network.delete(pod).ok()
        assert transactions(subscription) == deleted
