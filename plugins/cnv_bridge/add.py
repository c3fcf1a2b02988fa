"""One ADD: every step with its undo right after it, the record before the first and after the last."""

from __future__ import annotations

from functools import partial
from ipaddress import ip_interface
from typing import NamedTuple

from cnvnet.attachment.record import ADDED, ADDING, Key, LockedRecord, Record
from cnvnet.attachment.rollback import Rollback
from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result
from cnvnet.kernel.boot import boot_id
from cnvnet.kernel.links import Link
from cnvnet.kernel.netns import Netns
from cnvnet.kernel.nft.tables import Element, Nft
from cnvnet.kernel.stack import Stack, delete_link
from cnvnet.plugins.cnv_bridge import guards, plan, port
from cnvnet.plugins.cnv_bridge.bridge import deleted, ensure_bridge, ensure_gateway, report_mtu, still_there
from cnvnet.plugins.cnv_bridge.config import Config
from cnvnet.plugins.cnv_bridge.ipam import Ipam, Prospect, ipam_of
from cnvnet.plugins.cnv_bridge.reload import change_loaded
from cnvnet.plugins.cnv_bridge.state import Context, PortState, remove_elements, remove_masquerade
from cnvnet.vm.identity import SILENT_ROLES
from cnvnet.vm.subjects import owners_of


class Namespaces(NamedTuple):
    """Both ends' namespaces, open for the whole call."""

    host: Stack
    pod: Stack
    netns: Netns


class AddTransaction(NamedTuple):
    """What an ADD works on, and how it is undone."""

    rollback: Rollback
    locked: LockedRecord
    record: Record
    namespaces: Namespaces

    def note(self, left: PortState) -> None:
        """Record what the next step will leave, before that step."""
        self.locked.write(self.record._replace(undo=left.to_json()))


class Progress(NamedTuple):
    """How far an ADD has come."""

    names: plan.PortNames
    bridge: Link
    # What the address manager gave.
    leased: Result
    # What the record says.
    left: PortState
    # The elements of `left` that are in the sets already.
    elements: tuple[Element, ...] = ()
    # The link of a VLAN that has the gateway's addresses.
    gateway: Link | None = None
    # Whether the addresses are still another pod's, which announces them.
    silent: bool = False


class PortAdd:
    """An ADD whose configuration is sound and whose attachment has nothing left of an earlier one."""

    def __init__(
        self,
        request: Request,
        config: Config,
        context: Context,
        ipam: Ipam | None,
        prospect: Prospect,
        mac: str,
    ) -> None:
        """`mac` is the port's, "" for any; static-ip's beats it where the call asks for none."""
        self._request = request
        self._config = config
        self._context = context
        self._ipam = ipam
        self._prospect = prospect
        self._mac = mac

    def run(self, key: Key, locked: LockedRecord, namespaces: Namespaces) -> Result:
        """Raises CNIError or OSError; nothing of the attachment is left then."""
        config = self._config
        self._refuse_absent_ipam()
        names = port.choose_names(namespaces.host, self._request.ifname, self._mac)
        port.refuse_taken_name(namespaces.pod, names.container, names.host)
        owner = owners_of(self._request, self._prospect.subject)
        record = Record(
            key, self._request.netns, namespaces.netns.inode, boot_id(), ADDING, {}, None, *owner
        )
        leased = Result(dns=config.dns or Result().dns)
        order = plan.order(config.ipam_type)
        left = self._begun(names)
        if order.before_port[0] is plan.Step.GUARDS:
            left = self._planned(left, names, leased)
        with Rollback() as rollback:
            rollback.on_clean("record", locked.remove)
            transaction = AddTransaction(rollback, locked, record, namespaces)
            transaction.note(left)
            bridge = ensure_bridge(namespaces.host, self._context.attachments, config)
            port.refuse_hosts_mac(namespaces.host, bridge, self._mac)
            with still_there(namespaces.host, bridge):
                begun = Progress(names, bridge, leased, left, silent=self._is_silent())
                progress, link = self._make(transaction, order, begun)
            result = self._result(namespaces.host, progress, link)
            locked.write(record._replace(state=ADDED, undo=progress.left.to_json()))
        return result

    def _make(
        self, transaction: AddTransaction, order: plan.Order, progress: Progress
    ) -> tuple[Progress, Link]:
        for step in order.before_port:
            progress = self._do(step, transaction, progress)
        link = self._connect(transaction, progress)
        progress = progress._replace(left=progress.left._replace(host_ifindex=link.ifindex))
        for step in order.after_port:
            progress = self._do(step, transaction, progress)
        return progress, self._settle(transaction, progress, link)

    def _is_silent(self) -> bool:
        """Whether the Kubernetes API says so; outside of it the lease knows it better than the call."""
        subject = self._prospect.subject
        return subject is not None and bool(subject.vmi) and subject.role in SILENT_ROLES

    def _refuse_absent_ipam(self) -> None:
        unavailable_reason = self._ipam.unavailable_reason(self._request) if self._ipam is not None else ""
        if unavailable_reason:
            raise InvalidConfig(unavailable_reason)

    def _begun(self, names: plan.PortNames) -> PortState:
        ipam_type = self._config.ipam_type
        ipam = ipam_of(self._request) if ipam_type else None
        return PortState(
            names.host, names.host_mac, ipam_type=ipam_type, ipam=ipam, store=self._prospect.store
        )

    def _planned(self, left: PortState, names: plan.PortNames, leased: Result) -> PortState:
        config = self._config
        addresses = [ip.address for ip in leased.ips]
        elements = guards.elements(names.host, names.container_mac, addresses, config.guards)
        return left._replace(
            container_mac=names.container_mac,
            elements=tuple(elements),
            masqueraded=tuple(str(address) for address in addresses) if config.ip_masq else (),
        )

    def _do(self, step: plan.Step, transaction: AddTransaction, progress: Progress) -> Progress:
        if step is plan.Step.ADDRESSES:
            return self._lease(transaction, progress)
        return self._guard(transaction, progress)

    def _lease(self, transaction: AddTransaction, progress: Progress) -> Progress:
        """The addresses, and on the bridge those of their gateways."""
        config, names = self._config, progress.names
        if self._ipam is None:
            return progress
        lease = self._ipam.add(self._request)
        transaction.rollback.push(f"giving addresses back to {config.ipam_type}", lease.undo)
        if lease.mac and not config.mac.mac:
            names = names._replace(container_mac=lease.mac)
        leased = plan.with_gateways(config, lease.result)
        gateway = self._gateway(transaction.namespaces.host, progress.bridge, leased)
        return progress._replace(
            names=names, leased=leased, gateway=gateway, silent=progress.silent or lease.is_silent
        )

    def _gateway(self, host: Stack, bridge: Link, leased: Result) -> Link | None:
        wanted = plan.gateways(self._config, leased)
        if not wanted:
            return None
        link = ensure_gateway(host, self._context.attachments, self._config, bridge, wanted)
        return link if self._config.vlan else None

    def _guard(self, transaction: AddTransaction, progress: Progress) -> Progress:
        """By the port's name, for its MAC and the addresses known so far: no frame ever passes unguarded."""
        left = self._planned(progress.left, progress.names, progress.leased)
        if not left.elements and not left.masqueraded:
            return progress._replace(left=left)
        if left != progress.left:
            transaction.note(left)
        with self._context.kernel.nft() as nft:
            if left.elements:
                self._add_elements(transaction, nft, left, progress.elements)
            if left.masqueraded:
                # It has several steps, and its undo may be run though some of them were not.
                transaction.rollback.push(
                    "removing masquerade", remove_masquerade, self._context, transaction.record.key, left
                )
                addresses = [ip_interface(text) for text in left.masqueraded]
                self._context.masquerade.add(nft, transaction.record.key, addresses)
        return progress._replace(left=left, elements=left.elements)

    def _add_elements(
        self, transaction: AddTransaction, nft: Nft, left: PortState, present: tuple[Element, ...]
    ) -> None:
        # All of them: the table may have been flushed while an address manager was waited for.
        change_loaded(partial(self._load, nft), partial(nft.change, add=left.elements))
        new = tuple(each for each in left.elements if each not in present)
        transaction.rollback.push(
            "removing guards", remove_elements, self._context, left._replace(elements=new)
        )

    def _load(self, nft: Nft) -> None:
        if not guards.loaded(nft):
            with self._context.attachments.shared(guards.LOCK):
                guards.ensure(nft)

    def _connect(self, transaction: AddTransaction, progress: Progress) -> Link:
        """The veth: its host end is up on the bridge, the container's end is down."""
        host = transaction.namespaces.host
        link = port.create(host, self._config, progress.names, progress.bridge, transaction.namespaces.netns)
        transaction.rollback.push(f"deleting {link.name}", delete_link, host, link.ifindex)
        port.configure(host, self._config, progress.bridge, link)
        return link

    def _settle(self, transaction: AddTransaction, progress: Progress, link: Link) -> Link:
        """The container's end gets its addresses and goes up; the port as it is then."""
        host, pod, _ = transaction.namespaces
        raised = False
        if plan.finds_port(self._config.ipam_type):
            raised = port.is_up(pod, link.peer)
            # They are given back to the address manager while the port still exists.
            transaction.rollback.push("taking addresses off", port.take_addresses, pod, link.peer)
        port.configure_container(
            pod,
            self._config,
            progress.names,
            link.peer,
            progress.leased,
            is_up=raised,
            silent=progress.silent,
        )
        if self._config.disable_container_interface:
            return link
        link = port.wait_until_up(host, link)
        if any(ip.address.version == 6 for ip in progress.leased.ips):
            port.wait_for_dad(pod, progress.names.container, link.peer)
        return link

    def _result(self, host: Stack, progress: Progress, link: Link) -> Result:
        # Read once more: a bridge without a MAC or MTU of its own has got one from its ports only now.
        bridge, gateway = _still(host, progress.bridge.name), progress.gateway
        report_mtu(self._config, progress.bridge, bridge)
        if gateway is not None:
            gateway = _still(host, gateway.name)
        interfaces = plan.interfaces(bridge, link, progress.names, self._request.netns, gateway)
        return progress.leased._replace(interfaces=interfaces)


def _still(host: Stack, name: str) -> Link:
    link = host.link(name)
    if link is None:
        raise deleted(name)
    return link
