"""Everything that can be asked of a stack, as one type: its messages, and its words for people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from cnvnet.kernel import addresses, link_messages, neighbours, routes, vlans
from cnvnet.kernel.addresses import AddAddress, DeleteAddress
from cnvnet.kernel.links import (
    ChangeLink,
    CreateBridge,
    CreateDummy,
    CreateVeth,
    DeleteGroup,
    DeleteLink,
)
from cnvnet.kernel.neighbours import AddNeighbour, ResolveNeighbour
from cnvnet.kernel.netlink import NetlinkMessage
from cnvnet.kernel.replays import Replay
from cnvnet.kernel.routes import AddRoute
from cnvnet.kernel.tap import CreateTap
from cnvnet.kernel.vlans import AddVlans, DeleteVlans

Operation = (
    CreateBridge
    | CreateVeth
    | CreateDummy
    | CreateTap
    | ChangeLink
    | DeleteLink
    | DeleteGroup
    | AddAddress
    | DeleteAddress
    | AddRoute
    | AddNeighbour
    | ResolveNeighbour
    | AddVlans
    | DeleteVlans
    | Replay
)


def encode(operation: Operation) -> list[NetlinkMessage]:
    """The messages of an operation, in order; a tap and a resolution have none."""
    return _ENCODERS[type(operation)](operation)


def describe(operation: Operation, link: str = "") -> str:
    """One line for messages: what was asked, of which link (`link` is its name where one is known)."""
    words = operation.words if isinstance(operation, Replay) else _WORDS[type(operation)]
    if isinstance(operation, CreateBridge | CreateDummy | CreateTap):
        return f"{words} {operation.name}"
    if isinstance(operation, CreateVeth):
        return f"{words} {operation.name} with peer {operation.peer.name}"
    if isinstance(operation, DeleteGroup):
        return f"{words} {operation.group}"
    of = link or f"link {ifindex_of(operation)}"
    detail = _detail(operation)
    return f"{words} {detail} on {of}" if detail else f"{words} {of}"


def ifindex_of(operation: Operation) -> int:
    """The link an operation is about, 0 for one that makes its link or has none."""
    if isinstance(operation, AddRoute):
        return operation.route.ifindex
    if isinstance(operation, AddNeighbour):
        return operation.neighbour.ifindex
    if isinstance(operation, CreateBridge | CreateVeth | CreateDummy | CreateTap | DeleteGroup):
        return 0
    return operation.ifindex


def _detail(operation: Operation) -> str:
    if isinstance(operation, Replay):
        return operation.subject
    if isinstance(operation, AddAddress | DeleteAddress | ResolveNeighbour):
        return str(operation.address)
    if isinstance(operation, AddRoute):
        route = operation.route
        return f"{route.dst} via {route.gw}" if route.gw is not None else str(route.dst)
    if isinstance(operation, AddNeighbour):
        return str(operation.neighbour.address)
    if isinstance(operation, AddVlans | DeleteVlans):
        return ",".join(
            f"{v.first}-{v.last}" if v.last > v.first else str(v.first) for v in operation.ranges
        )
    return ""


def _one(encode: Callable[[Any], NetlinkMessage]) -> Callable[[Any], list[NetlinkMessage]]:
    return lambda operation: [encode(operation)]


_ENCODERS: Final[dict[type, Callable[[Any], list[NetlinkMessage]]]] = {
    CreateBridge: _one(link_messages.encode_bridge),
    CreateVeth: _one(link_messages.encode_veth),
    CreateDummy: _one(link_messages.encode_dummy),
    ChangeLink: link_messages.encode_change,
    DeleteLink: _one(link_messages.encode_delete),
    DeleteGroup: _one(link_messages.encode_delete_group),
    AddAddress: _one(addresses.encode_add),
    DeleteAddress: _one(addresses.encode_delete),
    AddRoute: _one(routes.encode_add),
    AddNeighbour: _one(neighbours.encode_add),
    AddVlans: _one(vlans.encode),
    DeleteVlans: _one(vlans.encode),
    Replay: lambda operation: [operation.message],
}

_WORDS: Final[dict[type, str]] = {
    CreateBridge: "create bridge",
    CreateVeth: "create veth",
    CreateDummy: "create dummy",
    CreateTap: "create tap",
    ChangeLink: "change",
    DeleteLink: "delete",
    DeleteGroup: "delete link group",
    AddAddress: "add address",
    DeleteAddress: "delete address",
    AddRoute: "add route",
    AddNeighbour: "add neighbour",
    ResolveNeighbour: "resolve neighbour",
    AddVlans: "add vlans",
    DeleteVlans: "delete vlans",
}
