"""What is in a cluster before the clock starts: leases of VMs that are stopped, as agents write them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv4Network
from typing import Final

from cnvnet.ipam.lease import Lease, LeaseKey, derive_mac
from cnvnet.ipam.store import objects
from cnvnet.kernel import netns
from cnvnet.kube.client import Client
from cnvnet.kube.credentials import from_kubeconfig
from cnvnet.kube.resources import IP_RESERVATIONS, VM_LEASES

_THREADS: Final = 8
_OUI: Final = bytes.fromhex("0a58")


def add_leases(kubeconfig: str, node: str, key: LeaseKey, subnet: str, count: int) -> None:
    """Leases of so many VMs, named after `key`'s, with addresses at the subnet's low end, each reserved.

    Args:
        kubeconfig: The file of an administrator.
        node: The network namespace from which the API is reached.
        key: Of a lease like them.
        subnet: Theirs.
        count: How many.
    """
    addresses = IPv4Network(subnet)
    made = [
        Lease(
            key._replace(vm=f"{key.vm}-{number}"),
            (addresses[number + 2],),
            derive_mac(_OUI, key.network, addresses[number + 2]),
            f"uid-{number}",
        )
        for number in range(count)
    ]
    with ThreadPoolExecutor(_THREADS) as threads:
        work = partial(_write, kubeconfig, node)
        list(threads.map(work, (made[first::_THREADS] for first in range(_THREADS))))


def _write(kubeconfig: str, node: str, leases: Sequence[Lease]) -> None:
    client = Client(from_kubeconfig(kubeconfig))
    with netns.opened(f"/run/netns/{node}") as there, netns.entered(there):
        for lease in leases:
            document = objects.lease_document(lease, nonce="n")
            uid = client.create(VM_LEASES, document, lease.key.namespace)["metadata"]["uid"]
            for address in objects.addresses_of(lease):
                reserved = objects.reservation_document(
                    lease.key, address, nonce="n", node=node, lease_uid=uid, pod=None
                )
                client.create(IP_RESERVATIONS, reserved)
    client.close()
