"""One ADD: every step with its undo right after it, the record before the first and after the last."""

from __future__ import annotations

from cnvnet.attachment.record import ADDED, ADDING, LockedRecord, Record
from cnvnet.attachment.rollback import Rollback
from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result
from cnvnet.guest import settings_json
from cnvnet.kernel import sysctl
from cnvnet.kernel.boot import boot_id
from cnvnet.kernel.routes import AddRoute
from cnvnet.kernel.stack import Stack
from cnvnet.launch import guest_client
from cnvnet.plugins.binding import ownership, pod_interface, ruleset, sysctls
from cnvnet.plugins.commands import BindingCall
from cnvnet.plugins.masquerade import plan, state
from cnvnet.plugins.masquerade.config import Config
from cnvnet.plugins.masquerade.plan import MasqueradePlan, Observed
from cnvnet.plugins.masquerade.ruleset import ANCHOR
from cnvnet.plugins.masquerade.state import MasqueradeState
from cnvnet.vm.subjects import owners_of


def observe(pod: Stack, request: Request, result: Result | None) -> Observed:
    """What the plan goes by. Raises InvalidConfig when the pod has no interface to bind to."""
    link = pod_interface.find(pod, request, result)
    routes = pod.routes()
    accepting = [
        outgoing.name
        for route in plan.default_routes(routes)
        if plan.came_from_an_advertisement(route) and (outgoing := pod.link(route.ifindex)) is not None
    ]
    # Addresses with a lifetime would expire: only a router's advertisements prolong it.
    if any(each.address.version == 6 and not each.permanent for each in pod.addresses(link.ifindex)):
        accepting.append(link.name)
    return Observed(
        link,
        pod_interface.addresses(pod, link),
        # With accept_ra 2 the link accepts advertisements as a router, too; with 0 its owner wants none.
        tuple(
            name
            for name in dict.fromkeys(accepting)
            if pod.sysctls.get(f"net/ipv6/conf/{name}/accept_ra") == "1"
        ),
        tuple(route for route in routes if route.ifindex == link.ifindex and not route.dst.prefixlen),
    )


class MasqueradeAdd:
    """An ADD whose configuration is sound and whose attachment has nothing left of an earlier one."""

    def __init__(self, call: BindingCall[Config]) -> None:
        self._call = call
        self._config = call.config
        self._pod = call.pod

    def run(self, locked: LockedRecord) -> Result:
        """Raises CNIError or OSError; nothing of the attachment is left then."""
        key, request, stack, netns = self._call.key, self._call.request, self._pod.stack, self._pod.netns
        wanted = plan.plan(self._config, observe(stack, request, self._call.result))
        guest = self._guest(wanted)
        self._refuse_taken(wanted)
        left = MasqueradeState(
            bridge=wanted.bridge.name if wanted.bridge is not None else "",
            tap=wanted.names.tap,
            tables=wanted.tables,
            sysctls=sysctls.changes(stack, wanted.global_, self._call.others),
        )
        owner = owners_of(request, self._call.subject)
        record = Record(key, request.netns, netns.inode, boot_id(), ADDING, left.to_json(), None, *owner)
        with Rollback() as rollback:
            rollback.on_clean("record", locked.remove)
            locked.write(record)
            contents = self._guard(rollback, wanted)
            self._links(rollback, wanted, ownership.alias(key))
            self._forward(rollback, wanted, left)
            added = {**record.undo, "contents": contents, "mtu": wanted.mtu}
            locked.write(record._replace(state=ADDED, undo=added, guest=guest))
            guest_client.serve(self._call.env, self._config.guest, key)
        return self._call.result or Result()

    def _guest(self, wanted: MasqueradePlan) -> dict[str, object] | None:
        if not self._config.guest.enabled:
            return None
        dns = (self._call.result or Result()).dns
        settings = plan.guest_settings(self._config, wanted, dns)
        return {"ifname": wanted.names.tap, "settings": settings_json.encode(settings)}

    def _refuse_taken(self, wanted: MasqueradePlan) -> None:
        for name in (wanted.names.bridge, wanted.names.tap):
            if self._pod.stack.link(name) is not None:
                raise InvalidConfig(f"{wanted.names.pod}: the pod has a link {name} already")
        with self._pod.kernel.nft(self._pod.netns) as nft:
            for each in wanted.rulesets:
                if nft.chain(*each.table, ANCHOR) is not None:
                    raise InvalidConfig(
                        f"{wanted.names.pod}: another interface of this pod is masqueraded ({each.table})"
                    )

    def _guard(self, rollback: Rollback, wanted: MasqueradePlan) -> dict[str, str]:
        """Before the links are there: no packet ever passes unguarded. Returns the contents."""
        kernel, netns = self._pod.kernel, self._pod.netns
        for each in wanted.rulesets:
            ruleset.load(kernel, netns, each)
            rollback.push("nftables", ruleset.delete, kernel, netns, (each.table,))
        return ruleset.contents(kernel, netns, wanted.rulesets)

    def _links(self, rollback: Rollback, wanted: MasqueradePlan, alias: str) -> None:
        pod, bridge = self._pod.stack, None
        if wanted.bridge is not None:
            (bridge,) = pod.apply(wanted.bridge)
            rollback.push(f"deleting {bridge.name}", state.delete_bridge, pod, bridge.name)
        (tap,) = pod.apply(wanted.tap)
        rollback.push(f"deleting {tap.name}", ownership.delete_tap, pod, tap.name)
        sysctl.apply(pod.sysctls, wanted.on_links)
        pod.apply(*plan.plan_links(wanted, bridge, tap, alias))

    def _forward(self, rollback: Rollback, wanted: MasqueradePlan, left: MasqueradeState) -> None:
        """Last of all: until then nothing gets through the pod."""
        pod = self._pod.stack
        before = plan.default_routes(pod.routes())
        unshared = sysctls.unshared(left.sysctls, self._call.others)
        rollback.push("sysctls", sysctls.restore, pod, unshared)
        sysctl.apply(pod.sysctls, wanted.global_)
        lost_routes = plan.lost_routes(before, plan.default_routes(pod.routes())) if before else ()
        if lost_routes:
            pod.apply(*(AddRoute(route) for route in lost_routes))
