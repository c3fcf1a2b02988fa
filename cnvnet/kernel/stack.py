"""The network stack of one namespace, as the rest of the project sees it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from cnvnet.kernel.addresses import AddAddress, Address, DeleteAddress
from cnvnet.kernel.links import ChangeLink, CreateBridge, CreateDummy, CreateVeth, DeleteLink, Link
from cnvnet.kernel.neighbours import AddNeighbour, DeleteNeighbour, Neighbour
from cnvnet.kernel.netns import Netns
from cnvnet.kernel.nft import Nft
from cnvnet.kernel.routes import AddRoute, DeleteRoute, Route
from cnvnet.kernel.vlans import AddVlans, DeleteVlans, VlanRange

Operation = (
    CreateBridge
    | CreateVeth
    | CreateDummy
    | ChangeLink
    | DeleteLink
    | AddAddress
    | DeleteAddress
    | AddRoute
    | DeleteRoute
    | AddNeighbour
    | DeleteNeighbour
    | AddVlans
    | DeleteVlans
)


class KernelError(OSError):
    """The kernel refused an operation: `errno` says how, `operation` is the value that was asked for.

    Of one `apply`, everything before `operation` has been done and nothing after it.
    """

    operation: Operation | None


class Reader(Protocol):
    """What can be asked. Every read is complete: a dump the kernel interrupted is repeated."""

    def link(self, name: str) -> Link | None: ...
    def links(self) -> list[Link]: ...
    def addresses(self, ifindex: int = 0) -> list[Address]: ...
    def routes(self, ifindex: int = 0) -> list[Route]: ...
    def neighbours(self, ifindex: int = 0) -> list[Neighbour]: ...
    def vlans(self, ifindex: int) -> list[VlanRange]: ...


class Sysctls(Protocol):
    """Sysctls of the stack's namespace by their path below /proc/sys, as `net/ipv4/conf/eth0/arp_notify`."""

    def get(self, key: str) -> str | None: ...
    def set(self, key: str, value: str) -> None: ...


class Stack(Reader, Protocol):
    """One namespace's stack. `apply` sends all operations at once and returns the links created, in order."""

    sysctls: Sysctls

    def apply(self, *operations: Operation) -> list[Link]: ...


class Kernel(Protocol):
    """The way in: stack and nftables of the namespace the call runs in (None) or of another; closed on exit.

    `netns` opens the namespace at a path and raises FileNotFoundError when there is none, NotANamespace (an
    OSError, cnvnet.kernel.netns) when the path is something else. `own` is the inode of the call's own namespace.
    """

    def stack(self, netns: Netns | None = None) -> AbstractContextManager[Stack]: ...
    def nft(self, netns: Netns | None = None) -> AbstractContextManager[Nft]: ...
    def netns(self, path: str) -> AbstractContextManager[Netns]: ...
    def own(self) -> int: ...
