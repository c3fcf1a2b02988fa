"""cnvctl attachments: the records beside what the kernel has of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from cnvnet.attachment.record import ADDED
from cnvnet.cli import agent, output, survey
from cnvnet.cli.place import Place
from cnvnet.cli.survey import AttachmentView, Survey
from cnvnet.kernel.stack import LinuxKernel

_HEADINGS = ("NETWORK", "POD", "IF", "PLUGINS", "PORT", "LINK", "GUARDS", "GUEST", "STATE")
_WIDE_HEADINGS = (
    *("NETWORK", "POD", "VM", "CONTAINER", "IF", "PLUGINS", "IP", "MAC"),
    *("PORT", "LINK", "BRIDGE", "GUARDS", "GUEST", "STATE"),
)
# The guards as columns call them, by the configuration's keys.
_SHORT = {"macspoofchk": "mac", "ipspoofchk": "ip", "dhcpGuard": "dhcp", "raGuard": "ra"}


@click.group("attachments")
def group() -> None:
    """What is attached: ports, guards, guests."""


@group.command("list")
@click.option("--network", default="", help="Of this network only.")
@output.output_option(output.TABLE, output.WIDE, output.JSON)
@click.pass_obj
def list_(place: Place, network: str, form: str) -> None:
    """List what ADDs have attached.

    Exit code 1 when something is not as its ADD has left it.
    """
    taken = take(place)
    attachments = [each for each in taken.attachments if network in ("", each.network)]
    if form == output.JSON:
        output.print_json({"attachments": [as_json(each) for each in attachments]})
    elif form == output.WIDE:
        output.print_table(_WIDE_HEADINGS, map(_wide_row, attachments))
    else:
        output.print_table(_HEADINGS, map(_row, attachments))
    _finish(attachments, taken)


@group.command("show")
@click.argument("name")
@output.output_option(output.TABLE, output.JSON)
@click.pass_obj
def show(place: Place, name: str, form: str) -> None:
    """Show all about a pod, VM or container.

    A pod and a VM are written as NAMESPACE/NAME; of a container's id the beginning will do. Exit code 1 when
    something is not as its ADD has left it.
    """
    taken = take(place)
    attachments = [each for each in taken.attachments if _is_named(each, name)]
    if form == output.JSON:
        output.print_json({"attachments": [as_json(each) for each in attachments]})
    else:
        output.print_each(_details(each) for each in attachments)
    _finish(attachments, taken)
    if not attachments:
        raise output.CommandRefused(f"{name}: no pod, VM or container of this name is attached on this node")


def take(place: Place) -> Survey:
    """All attachments of the node. Raises OSError and CNIError for what cannot be read."""
    env = agent.environment(place.env, place.rundir)
    return survey.take(place, LinuxKernel(), agent.ask(env), env)


def as_json(attachment: AttachmentView) -> dict[str, Any]:
    """An attachment as `-o json` has it; keys that say nothing are empty, not absent."""
    record, port = attachment.records[0], attachment.port
    return {
        "network": attachment.network,
        "pod": attachment.pod,
        "vm": attachment.vm,
        "containerID": attachment.container_id,
        "ifname": attachment.ifname,
        "plugins": list(attachment.plugins),
        "state": attachment.state,
        "netns": record.netns_path,
        "ips": [str(ip) for ip in attachment.ips],
        "mac": attachment.mac,
        "port": {
            "name": port.name,
            "link": port.state,
            "bridge": port.bridge,
            "guards": list(port.guards),
            "missing": [f"{each.set} {' . '.join(each.key)}" for each in port.unguarded],
        }
        if port is not None
        else None,
        "guest": attachment.guest,
        "problems": list(attachment.problems),
    }


def _row(each: AttachmentView) -> tuple[str, ...]:
    return (
        each.network,
        _pod(each),
        each.ifname,
        ",".join(each.plugins),
        each.port.name if each.port is not None else "",
        each.port.state if each.port is not None else "",
        _guards(each),
        each.guest,
        _state(each),
    )


def _wide_row(each: AttachmentView) -> tuple[str, ...]:
    network, pod, ifname, plugins, port, link, guards, guest, state = _row(each)
    bridge = each.port.bridge if each.port is not None else ""
    ips = ",".join(map(str, each.ips))
    known = (network, pod, each.vm, each.container_id, ifname, plugins, ips, each.mac)
    return (*known, port, link, bridge, guards, guest, state)


def _details(each: AttachmentView) -> Iterable[tuple[str, str]]:
    yield "network", each.network
    yield "pod", each.pod
    yield "vm", each.vm
    yield "container", each.container_id
    yield "interface", each.ifname
    yield "plugins", ", ".join(each.plugins)
    yield "namespace", each.records[0].netns_path
    yield "addresses", ", ".join(map(str, each.ips))
    yield "mac", each.mac
    if each.port is not None:
        yield "port", f"{each.port.name}, {each.port.state}"
        yield "bridge", each.port.bridge
        yield "guards", ", ".join(each.port.guards)
        for element in each.port.unguarded:
            yield "missing", f"{element.set}: {' . '.join(element.key)}"
    yield "guest", each.guest
    yield "state", each.state
    for problem in each.problems:
        yield "problem", problem


def _pod(each: AttachmentView) -> str:
    return each.pod or output.short_id(each.container_id)


def _guards(each: AttachmentView) -> str:
    if each.port is None or not each.port.guards:
        return ""
    if not each.guarded:
        return "missing"
    return ",".join(_SHORT[key] for key in each.port.guards)


def _state(each: AttachmentView) -> str:
    if each.problems:
        return each.problems[0]
    return "ok" if each.state == ADDED else each.state


def _is_named(each: AttachmentView, name: str) -> bool:
    return bool(name) and (name in (each.pod, each.vm) or each.container_id.startswith(name))


def _finish(attachments: Iterable[AttachmentView], taken: Survey) -> None:
    """Says which records cannot be read, and ends with the code for their problems."""
    output.say(taken.unreadable)
    if taken.unreadable:
        click.get_current_context().exit(output.UNREADABLE)
    if any(each.problems for each in attachments):
        click.get_current_context().exit(output.PROBLEMS)
