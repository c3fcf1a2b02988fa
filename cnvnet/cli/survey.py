"""All attachments of the node as one value each: the records beside the kernel, the leases and the agent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from cnvnet.attachment import sandbox
from cnvnet.attachment.files import read_all
from cnvnet.attachment.record import ADDED, Record, chains
from cnvnet.cli.agent import AgentStatus, GuestProbe
from cnvnet.cli.place import Place
from cnvnet.cli.stores import has_lease, with_records
from cnvnet.cni.errors import CNIError
from cnvnet.cni.fields import Address
from cnvnet.executables import CNV_BRIDGE
from cnvnet.ipam.lease import Lease
from cnvnet.ipam.store.holds import Hold, Holds
from cnvnet.ipam.store.protocol import Ledger
from cnvnet.kernel.boot import boot_id
from cnvnet.kernel.stack import Kernel
from cnvnet.plugins.cnv_bridge.observation import (
    DOWN,
    MISSING,
    Observation,
    ObservedPort,
    ObservedTable,
    observe,
)

SERVED = "served"
WAITING = "waiting"
NO_AGENT = "no-agent"


class AttachmentView(NamedTuple):
    """One interface of one container, with all plugins that were called for it."""

    records: tuple[Record, ...]
    # What static-ip keeps for it.
    lease: Lease | None
    # None where none of the plugins has a port on the host.
    port: ObservedPort | None
    # Whether the port's guards drop what they should.
    guarded: bool
    # SERVED, WAITING or NO_AGENT; "" where no guest is to be served.
    guest: str
    # What is not as ADD has left it, in words.
    problems: tuple[str, ...]

    @property
    def network(self) -> str:
        """The network's name."""
        return self.records[0].key.network

    @property
    def container_id(self) -> str:
        """The container's id."""
        return self.records[0].key.container_id

    @property
    def ifname(self) -> str:
        """The name of the interface in the pod."""
        return self.records[0].key.ifname

    @property
    def plugins(self) -> tuple[str, ...]:
        """The plugins that have a record of it."""
        return tuple(record.key.plugin for record in self.records)

    @property
    def pod(self) -> str:
        """The pod as "namespace/name", "" where the records do not say."""
        return next((str(each.pod) for each in self.records if each.pod is not None), "")

    @property
    def vm(self) -> str:
        """The VM as "namespace/name", "" for a container that is none or is not known to be one."""
        if self.lease is not None and self.lease.key.is_vm:
            return f"{self.lease.key.namespace}/{self.lease.key.vm}"
        return next((str(each.vm) for each in self.records if each.vm is not None), "")

    @property
    def ips(self) -> tuple[Address, ...]:
        """The addresses of its lease; none without one."""
        return self.lease.ips if self.lease is not None else ()

    @property
    def mac(self) -> str:
        """The MAC of the container's end, or of the guest that has it."""
        return self.port.mac if self.port is not None else ""

    @property
    def state(self) -> str:
        """The state of the records: that of the first which is not "added", if there is one."""
        return next((each.state for each in self.records if each.state != ADDED), ADDED)


class Survey(NamedTuple):
    """What was found on the node."""

    attachments: tuple[AttachmentView, ...]
    # What could not be read, and why.
    unreadable: tuple[str, ...]
    # None where no port has guards.
    table: ObservedTable | None
    # Interfaces whose addresses are another one's in the Kubernetes API.
    disputes: tuple[Hold, ...] = ()


def take(place: Place, kernel: Kernel, agent: AgentStatus, env: Mapping[str, str]) -> Survey:
    """Raises OSError, for a folder or a kernel that cannot be read."""
    records, unreadable = read_all(place.rundir)
    errors = [error.msg for error in unreadable]
    present = [each for each in records if each.key.plugin == CNV_BRIDGE and each.boot_id == boot_id()]
    seen = observe(kernel, present) if present else Observation({}, ObservedTable(loaded=False, newer=""))
    guests = GuestProbe(env, agent)
    leases: dict[tuple[str, ...], Lease] | None = None
    try:
        leases = _leases(place, records)
    except (CNIError, OSError) as e:
        errors.append(str(e))
    disputes: list[Hold] = []
    try:
        disputes = Holds(place.statedir).disputed()
    except CNIError as e:
        errors.append(e.msg)
    disputed = {each.interface: each for each in disputes}
    attachments = tuple(
        _attachment(chain, leases, seen, guests, disputed.get(chain[0].key[1:])) for chain in chains(records)
    )
    guarded = any(port.guards for port in seen.ports.values())
    return Survey(attachments, tuple(errors), seen.table if guarded else None, tuple(disputes))


def _leases(place: Place, records: Sequence[Record]) -> dict[tuple[str, ...], Lease]:
    """The leases that the records' interfaces hold, by network, container and interface."""
    interfaces = {record.key[1:] for record in records}
    leases: dict[tuple[str, ...], Lease] = {}

    def held(ledger: Ledger) -> dict[tuple[str, ...], Lease]:
        pairs = ((interface, ledger.held_by(*interface)) for interface in interfaces)
        return {interface: lease for interface, lease in pairs if lease is not None}

    for store in with_records(place, records) if interfaces else ():
        leases |= store.look(held)
    return leases


def _attachment(
    chain: tuple[Record, ...],
    leases: Mapping[tuple[str, ...], Lease] | None,
    seen: Observation,
    guests: GuestProbe,
    dispute: Hold | None,
) -> AttachmentView:
    """`leases` is None where they cannot be read: that is no problem of the attachment."""
    lease = leases.get(chain[0].key[1:]) if leases is not None else None
    port = next((seen.ports[each.key] for each in chain if each.key in seen.ports), None)
    problems = [*_record_problems(chain)]
    guest = ""
    if not problems and chain[0].state == ADDED:
        problems += _port_problems(port, seen.table)
        guest, problem = _guest(chain, guests)
        problems += [problem] if problem else []
        if leases is not None and lease is None and any(map(has_lease, chain)):
            problems.append("its lease has gone: others may get the addresses (restart the VM)")
    if dispute is not None:
        problems.append(f"fenced: {dispute.dispute}" if dispute.fenced else dispute.dispute)
    guarded = port is None or not port.guards or (seen.table.loaded and not port.unguarded)
    return AttachmentView(chain, lease, port, guarded, guest, tuple(problems))


def _record_problems(chain: Sequence[Record]) -> Iterable[str]:
    record = chain[0]
    if record.boot_id != boot_id():
        yield "recorded before the node was booted: a DEL or GC removes the record"
    elif not sandbox.is_there(record):
        yield f"the namespace {record.netns_path} has gone: a DEL or GC removes what is left"


def _port_problems(port: ObservedPort | None, table: ObservedTable) -> Iterable[str]:
    if port is None:
        return
    if port.state == MISSING:
        yield f"the port {port.name} is missing"
        return
    if port.state == DOWN:
        yield f"the port {port.name} is down (ip link set {port.name} up)"
    if not port.bridge:
        yield f"the port {port.name} is on no bridge"
    if port.guards and not table.loaded:
        yield "not guarded: the table bridge cnv_bridge is not loaded"
    elif port.unguarded:
        sets = ", ".join(dict.fromkeys(element.set for element in port.unguarded))
        yield f"not guarded as it should be: missing in the sets {sets}"


def _guest(chain: Iterable[Record], guests: GuestProbe) -> tuple[str, str]:
    """The state of the guest that is to be served, "" for none, and what is wrong with it."""
    record = next((each for each in chain if each.guest is not None), None)
    if record is None:
        return "", ""
    problem = guests.problem(record.key)
    if problem is None:
        return NO_AGENT, "no agent serves the guest (systemctl start cnvnet-agent)"
    return (WAITING, problem) if problem else (SERVED, "")
