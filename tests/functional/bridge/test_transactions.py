"""How many transactions of nftables a call is: each costs time for every chain there is, whose ever."""

from __future__ import annotations

from typing import Any

import pytest

from cnvnet.kernel import netns
from cnvnet.kernel.nfnetlink import Subscription
from tests.functional.bridge.network import OURS, Network, host_local
from tests.harness import Node, peer

# include/uapi/linux/netfilter/nf_tables.h: told at the end of each transaction that changed something.
NEWGEN = (10 << 8 | 15).to_bytes(2, "little")


def transactions(heard: Subscription) -> int:
    """How many there were since the last call."""
    number = 0
    while True:
        try:
            number += heard.receive()[4:6] == NEWGEN
        except BlockingIOError:
            return number


@pytest.mark.parametrize(
    ("keys", "number"),
    [({}, 0), ({"macspoofchk": True, "ipspoofchk": True}, 1), ({"ipMasq": True}, 1)],
    ids=["plain", "guards", "ipMasq"],
)
def test_guards_are_one_transaction_and_so_is_masquerading(
    node: Node, keys: dict[str, Any], number: int
) -> None:
    peer("host-local")
    network = Network(node, OURS, isGateway=True, ipam=host_local(node, "10.1.2.0/24", "fd00::/64"), **keys)
    network.add(node.pod(), container_id="first").ok()  # which loads the rules
    pod = node.pod()
    with netns.opened(node.netns) as inside, netns.entered(inside):
        heard = Subscription(1 << 20)
    with heard:
        network.add(pod).ok()
        assert transactions(heard) == number
        network.delete(pod).ok()
        # A VM's two addresses are given up one by one.
        assert transactions(heard) == (2 if "ipMasq" in keys else number)
