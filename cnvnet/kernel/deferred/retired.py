"""Deferred deletion: links that are out of service at once, and deleted a moment later.

The kernel takes 16 to 20 ms to delete a veth, nearly all of it waiting, and for fifty in one message hardly
longer. So a resident process retires a link, which takes 1 ms, and its `Reaper` deletes all retired ones in
one go. A program that ends with its call has no reaper and deletes at once.

Retired links are down, without addresses and in a link group of their own; `Stack.links` leaves them out.
The pod's end has another name, so that its own is free; the near end keeps its name, which no other link
gets. The group is the only list of them, so that one message deletes what a killed process has left.
"""

from __future__ import annotations

import errno
from typing import Final

from cnvnet.kernel.addresses import DeleteAddress
from cnvnet.kernel.links import RETIRED_GROUP, ChangeLink, DeleteGroup, Link
from cnvnet.kernel.stack import KernelError, Stack

# With the ifindex in hexadecimal behind it the name is unique in the namespace, 12 characters at most.
_PREFIX: Final = "cnvx"


def retire(host: Stack, near: Link, pod: Stack, ifname: str) -> bool:
    """Takes a veth out of the way: `near`, and its other end if that is `ifname` of `pod`.

    False when that is another link, or the kernel refuses a step: delete the veth then. The near end is
    last: once it is in the group, the reaper may delete both.
    """
    far = pod.link(ifname)
    # Indexes of both namespaces, and the caller's name: the far end may have been moved and replaced.
    if far is None or far.kind != "veth" or (far.ifindex, far.peer) != (near.peer, near.ifindex):
        return False
    try:
        pod.apply(ChangeLink(far.ifindex, up=False))
        # IPv6 ones stay where keep_addr_on_down is set, IPv4 ones always, and a down link answers for them.
        for each in pod.addresses(far.ifindex):
            _strip(pod, DeleteAddress(far.ifindex, each.address))
        pod.apply(ChangeLink(far.ifindex, name=f"{_PREFIX}{far.ifindex:x}", group=RETIRED_GROUP))
        host.apply(ChangeLink(near.ifindex, up=False, master=0, group=RETIRED_GROUP))
    except KernelError:
        return False
    return True


def sweep(stack: Stack) -> None:
    """Deletes what is retired in a namespace, also by a process that was killed. Raises KernelError."""
    try:
        stack.apply(DeleteGroup(RETIRED_GROUP))
    except KernelError as e:
        if e.errno != errno.ENODEV:
            raise


def _strip(pod: Stack, address: DeleteAddress) -> None:
    try:
        pod.apply(address)
    except KernelError as e:
        # A secondary one goes with the first of its network.
        if e.errno != errno.EADDRNOTAVAIL:
            raise
