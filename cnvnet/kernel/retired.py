"""Deferred deletion: links that are out of everybody's way at once, and deleted a moment later.

The kernel takes 16 to 20 ms to delete a veth, nearly all of it waiting, and for fifty in one message hardly
longer. So a process that stays retires a link, which takes one, and has a `Reaper` delete all retired ones
in one go. A program that ends with its call has no reaper and deletes at once.

Retired links are down, without addresses and in a link group of their own: whoever lists links does not see
them. The pod's end has another name, so that its own is free; that of the near end was made up for it, and
nobody asks for it again. The group is all that tells of them, so one message removes what a process has left
that was killed.
"""

from __future__ import annotations

import errno
from typing import Final, Protocol

from cnvnet.kernel.addresses import DeleteAddress
from cnvnet.kernel.links import RETIRED_GROUP, ChangeLink, DeleteGroup, Link
from cnvnet.kernel.stack import KernelError, Stack

# With the ifindex in hexadecimal, which no other link of the namespace has, at most 12 characters.
_PREFIX: Final = "cnvx"


class Reaper(Protocol):
    """Deletes the retired links of the namespace its process runs in."""

    def notify(self) -> None:
        """There are some; returns at once."""
        ...


def retire(host: Stack, near: Link, pod: Stack, ifname: str) -> bool:
    """Takes a veth out of the way: `near`, and its other end if that is `ifname` of `pod`.

    False when that is another link, or the kernel refuses a step: delete the veth then. The near end is
    last, because its group is the sign for the reaper.
    """
    far = pod.link(ifname)
    # Indexes of both namespaces, and the caller's name: the far end may have been moved and replaced.
    if far is None or far.kind != "veth" or (far.ifindex, far.peer) != (near.peer, near.ifindex):
        return False
    try:
        pod.apply(ChangeLink(far.ifindex, up=False))
        # IPv6 ones stay where keep_addr_on_down is set, IPv4 ones always, and a down link answers for them.
        for found in pod.addresses(far.ifindex):
            _strip(pod, DeleteAddress(far.ifindex, found.address))
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
