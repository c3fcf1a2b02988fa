"""cnvctl status: the node on one screen.

Each part is found out by itself: one that cannot be read keeps no other from being shown.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import click

from cnvnet import VERSION
from cnvnet.cli import agent, launchers, survey
from cnvnet.cli.agent import AgentStatus
from cnvnet.cli.launchers import Installed
from cnvnet.cli.output import (
    JSON,
    PROBLEMS,
    TABLE,
    UNREADABLE,
    failure,
    output_option,
    print_json,
    print_pairs,
    print_table,
)
from cnvnet.cli.place import Place
from cnvnet.cli.stores import find
from cnvnet.cli.survey import NO_AGENT, Survey
from cnvnet.cni.errors import CNIError
from cnvnet.ipam.store.protocol import Ledger, Store, Usage
from cnvnet.kernel.stack import LinuxKernel
from cnvnet.plugins.cnv_bridge.observation import drops

_POOL_HEADINGS: Final = (
    *("NETWORK", "FAMILY", "TOTAL", "ACTIVE", "STOPPED", "COOLING", "FREE", "ADDRESSES"),
)
_LARGE: Final = 10**7
_STATES: Final = {0: "ok", PROBLEMS: "degraded", UNREADABLE: "unreadable"}


class Part(NamedTuple):
    """One line of the screen: its subject, what there is to say, the exit code that this calls for.

    `facts` are the numbers behind the text, for `-o json`.
    """

    subject: str
    text: str
    code: int = 0
    facts: Mapping[str, Any] = {}


class PoolUse(NamedTuple):
    """What a network uses of one family, and how many addresses it has to give, None where nothing tells."""

    of: Usage
    total: int | None

    @property
    def is_full(self) -> bool:
        """Whether no address is free."""
        return self.of.free == 0

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints of it."""
        return {**self.of._asdict(), "total": self.total}


@click.command("status")
@click.option(
    "--cni-bin",
    type=click.Path(file_okay=False),
    default=launchers.usual_folder,
    show_default="as install-cni has recorded, else /opt/cni/bin",
    help="Where the runtime looks for plugins.",
)
@output_option(TABLE, JSON)
@click.pass_obj
def command(place: Place, cni_bin: str, form: str) -> None:
    """Show the node on one screen.

    Its agent and launchers, what is attached, whether the guards stand and what they have dropped, how full
    the networks are. Exit code 1 when something is wrong, 3 when something cannot be read.
    """
    installed = launchers.installed(os.path.abspath(cni_bin))
    env = agent.environment(place.env, place.rundir)
    answering = agent.ask(env)
    parts = _parts(place, env, answering)
    parts.insert(1, launcher_part(installed))
    used, trouble = _pools(place)
    parts.append(pools_part(used, trouble))
    if form == JSON:
        print_json(_document(parts))
    else:
        names = [("node", socket.gethostname()), ("cnvnet", versions(answering, installed))]
        print_pairs([*names, *((part.subject, part.text) for part in parts)])
        if used:
            click.echo()
            print_table(_POOL_HEADINGS, map(_pool_row, used))
    click.get_current_context().exit(max(part.code for part in parts))


def versions(answering: AgentStatus, installed: Installed) -> str:
    """The project's version, and those of what runs and is installed of it."""
    running = "" if answering.absent else f"agent {answering.version or 'older'}"
    launcher = f"launcher {installed.version}" if installed.versions else ""
    others = ", ".join(filter(None, (running, launcher)))
    return f"{VERSION} ({others})" if others else VERSION


def launcher_part(installed: Installed) -> Part:
    """Launchers of another version than the project's are what an upgrade has forgotten."""
    text, code = installed.report()
    return Part("launcher", text, code, {"folder": installed.folder, "versions": installed.versions})


def _parts(place: Place, env: Mapping[str, str], answering: AgentStatus) -> list[Part]:
    try:
        taken = survey.take(place, LinuxKernel(), answering, env)
    except (CNIError, OSError) as e:
        return [agent_part(answering, 0), _unreadable("attachments", e)]
    unserved = sum(each.guest == NO_AGENT for each in taken.attachments)
    parts = [agent_part(answering, unserved), *attachment_parts(taken), *dispute_parts(taken)]
    return [*parts, guards_part(taken), _drops()]


def _document(parts: Sequence[Part]) -> dict[str, Any]:
    document: dict[str, Any] = {"node": socket.gethostname(), "version": VERSION}
    for part in parts:
        document[part.subject] = {"state": _STATES[part.code], "text": part.text, **part.facts}
    return document


def agent_part(answer: AgentStatus, unserved: int) -> Part:
    """Without an agent the executables do all the work: only guests that should be served miss it."""
    facts = {
        "answers": not answer.absent,
        "version": answer.version,
        "served": answer.served,
        "waiting": answer.waiting or unserved,
    }
    guests = f"guests served: {answer.served}, waiting: {answer.waiting}"
    if answer.stuck:
        text = f"does not answer ({answer.absent}): see its log; systemctl restart cnvnet-agent"
        return Part("agent", text, PROBLEMS, facts)
    if answer.absent:
        text = f"absent ({answer.absent})"
        if unserved:
            text += f", guests that wait for it: {unserved} (systemctl start cnvnet-agent)"
        return Part("agent", text, PROBLEMS if unserved else 0, facts)
    if answer.version != VERSION:
        running = f"version {answer.version}" if answer.version else "an older version"
        return Part("agent", f"{running} still runs: systemctl restart cnvnet-agent", PROBLEMS, facts)
    if not answer.loop:
        return Part("agent", f"{answer.version}, its packet loop does not run: see its log", PROBLEMS, facts)
    return Part("agent", f"ok, {answer.version}, {guests}", PROBLEMS if answer.waiting else 0, facts)


def attachment_parts(taken: Survey) -> Iterable[Part]:
    """How many attachments there are, and what of them cannot be read."""
    total, wrong = len(taken.attachments), sum(bool(each.problems) for each in taken.attachments)
    text = f"{total}, {wrong} not as ADD left them: cnvctl attachments list" if wrong else str(total)
    yield Part("attachments", text, PROBLEMS if wrong else 0, {"total": total, "wrong": wrong})
    if taken.unreadable:
        facts = {"errors": list(taken.unreadable)}
        yield Part("unreadable", "; ".join(taken.unreadable), UNREADABLE, facts)


def dispute_parts(taken: Survey) -> Iterable[Part]:
    """Which pods have addresses that are another one's in the Kubernetes API; none on most nodes."""
    if not taken.disputes:
        return
    fenced = sum(each.fenced for each in taken.disputes)
    counts = (f"{fenced} fenced", f"{len(taken.disputes) - fenced} not, as the older claim")
    text = f"interfaces with another one's addresses: {', '.join(counts)}: cnvctl attachments list"
    reasons = [each.dispute for each in taken.disputes]
    yield Part("disputes", text, PROBLEMS, {"fenced": fenced, "reasons": reasons})


def guards_part(taken: Survey) -> Part:
    """Whether the frames of guarded ports are looked at."""
    ports = [each.port for each in taken.attachments if each.port is not None and each.port.guards]
    lacking = sum(bool(port.unguarded) for port in ports)
    facts = {"ports": len(ports), "lacking": lacking}
    table = taken.table
    if table is None:
        return Part("guards", "no port has any", 0, facts)
    if not table.loaded:
        remedy = "the agent or the next ADD of a guarded port loads it"
        text = f"none of {len(ports)} ports is guarded: table bridge cnv_bridge is not whole ({remedy})"
        return Part("guards", text, PROBLEMS, facts)
    newer = f", as a newer version does it ({table.newer})" if table.newer else ""
    if lacking:
        text = f"{lacking} of {len(ports)} ports lack some: cnvctl attachments list"
        return Part("guards", text + newer, PROBLEMS, facts)
    return Part("guards", f"ok, ports: {len(ports)}{newer}", 0, facts)


def _drops() -> Part:
    try:
        return drops_part(drops(LinuxKernel()))
    except (CNIError, OSError) as e:
        return _unreadable("drops", e)


def drops_part(dropped: Mapping[str, int]) -> Part:
    """What the guards have dropped, most of it first. It is what they are for: nothing is wrong."""
    some = sorted(((count, reason) for reason, count in dropped.items() if count), key=lambda each: -each[0])
    text = ", ".join(f"{reason} {count}" for count, reason in some)
    return Part("drops", text or "none", 0, {"packets": dict(dropped)})


def _pools(place: Place) -> tuple[list[PoolUse], list[str]]:
    """What all networks use, and what of the stores cannot be read."""
    try:
        stores = find(place)
    except (CNIError, OSError) as e:
        return [], [failure(e).message]
    trouble = [*stores.unreadable]
    uses: list[PoolUse] = []
    for store in stores.stores:
        try:
            uses += _uses(store)
        except (CNIError, OSError) as e:
            trouble.append(failure(e).message)
    return uses, trouble


def _uses(store: Store) -> list[PoolUse]:
    now = int(time.time())

    def uses(ledger: Ledger) -> list[PoolUse]:
        return [
            PoolUse(usage, ranges.size if ranges is not None else None)
            for usage in ledger.usage(now=now)
            for ranges in (ledger.recorded_pools(usage.network).get(usage.family),)
        ]

    return store.look(uses)


def pools_part(used: Sequence[PoolUse], trouble: Sequence[str] = ()) -> Part:
    """Which networks have no address left."""
    full = sorted({each.of.network for each in used if each.is_full})
    text = f"networks: {len({each.of.network for each in used})}"
    facts = {"networks": [each.as_json() for each in used]}
    if full:
        text += f", no address left in {', '.join(full)}: cnvctl leases list --network {full[0]}"
    if trouble:
        return Part("pools", "; ".join((*trouble, *((text,) if used else ()))), UNREADABLE, facts)
    return Part("pools", text, PROBLEMS if full else 0, facts)


def _pool_row(each: PoolUse) -> tuple[str, ...]:
    of = each.of
    numbers = map(_number, (each.total, of.active, of.stopped, of.cooling, of.free))
    return (of.network, f"IPv{of.family}", *numbers, f"{of.pool} FULL" if each.is_full else of.pool)


def _number(value: int | None) -> str:
    """A count of addresses; those of IPv6 would be as wide as the screen."""
    if value is None:
        return "?"
    return str(value) if value < _LARGE else f"{value:.1e}"


def _unreadable(subject: str, error: CNIError | OSError) -> Part:
    return Part(subject, failure(error).message, UNREADABLE)
