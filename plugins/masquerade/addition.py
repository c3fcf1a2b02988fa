"""One ADD: every deed with its undo right after it, the record before the first and after the last."""

from __future__ import annotations

from cnvnet.attachments import ADDED, ADDING, Record, Slot
from cnvnet.attempts import Undo
from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result
from cnvnet.guest import provider, settings_json
from cnvnet.kernel.boot import boot_id
from cnvnet.kernel.routes import AddRoute
from cnvnet.kernel.stack import Stack
from cnvnet.plugins.binding import Call
from cnvnet.plugins.masquerade import leftovers, plan
from cnvnet.plugins.masquerade.config import Config
from cnvnet.plugins.masquerade.leftovers import Leftovers
from cnvnet.plugins.masquerade.plan import Observed, Wanted
from cnvnet.plugins.masquerade.ruleset import ANCHOR
from cnvnet.vm import pod_interface, ruleset, sysctls, traces


def observe(pod: Stack, request: Request, result: Result | None) -> Observed:
    """What the plan goes by. Raises InvalidConfig when the pod has no interface to bind to."""
    link = pod_interface.find(pod, request, result)
    heeding = [
        found.name
        for route in plan.default_routes(pod.routes())
        if plan.came_from_an_advertisement(route) and (found := pod.link(route.ifindex)) is not None
    ]
    # What has a lifetime would run out one day: nobody but a router prolongs it.
    if any(each.address.version == 6 and not each.permanent for each in pod.addresses(link.ifindex)):
        heeding.append(link.name)
    return Observed(
        link,
        pod_interface.addresses(pod, link),
        # 2 heeds them already; 0 does not want to.
        tuple(
            name
            for name in dict.fromkeys(heeding)
            if pod.sysctls.get(f"net/ipv6/conf/{name}/accept_ra") == "1"
        ),
    )


class Addition:
    """An ADD whose configuration is sound and whose attachment has nothing left of an earlier one."""

    def __init__(self, call: Call[Config]) -> None:
        self._call = call
        self._config = call.config
        self._pod = call.pod

    def run(self, slot: Slot) -> Result:
        """Raises CNIError or OSError; nothing of the attachment is left then."""
        key, request, stack, netns = self._call.key, self._call.request, self._pod.stack, self._pod.netns
        wanted = plan.plan(self._config, observe(stack, request, self._call.result))
        guest = self._guest(wanted)
        self._refuse_taken(wanted)
        left = Leftovers(
            bridge=wanted.names.bridge,
            tap=wanted.names.tap,
            tables=wanted.tables,
            sysctls=sysctls.changes(stack, wanted.global_, self._call.others),
        )
        record = Record(key, request.netns, netns.inode, boot_id(), ADDING, left.to_json())
        with Undo() as undo:
            undo.finally_("record", slot.remove)
            slot.write(record)
            contents = self._guard(undo, wanted)
            self._links(undo, wanted, traces.alias(key))
            self._forward(undo, wanted, left)
            added = {**record.undo, "contents": contents}
            slot.write(record._replace(state=ADDED, undo=added, guest=guest))
            provider.serve(self._call.env, self._config.guest, key)
        return self._call.result or Result()

    def _guest(self, wanted: Wanted) -> dict[str, object] | None:
        if not self._config.guest.enabled:
            return None
        dns = (self._call.result or Result()).dns
        settings = plan.guest_settings(self._config, wanted, dns)
        return {"ifname": wanted.names.tap, "settings": settings_json.encode(settings)}

    def _refuse_taken(self, wanted: Wanted) -> None:
        for name in (wanted.names.bridge, wanted.names.tap):
            if self._pod.stack.link(name) is not None:
                raise InvalidConfig(f"{wanted.names.pod}: the pod has a link {name} already")
        with self._pod.kernel.nft(self._pod.netns) as nft:
            for each in wanted.rulesets:
                if nft.chain(*each.table, ANCHOR) is not None:
                    raise InvalidConfig(
                        f"{wanted.names.pod}: another interface of this pod is masqueraded ({each.table})"
                    )

    def _guard(self, undo: Undo, wanted: Wanted) -> dict[str, str]:
        """Before the links are there: no packet ever passes unguarded. Returns the contents."""
        kernel, netns = self._pod.kernel, self._pod.netns
        for each in wanted.rulesets:
            ruleset.load(kernel, netns, each)
            undo.push("nftables", ruleset.delete, kernel, netns, (each.table,))
        return ruleset.contents(kernel, netns, wanted.rulesets)

    def _links(self, undo: Undo, wanted: Wanted, alias: str) -> None:
        pod = self._pod.stack
        (bridge,) = pod.apply(wanted.bridge)
        undo.push(f"deleting {bridge.name}", leftovers.delete_bridge, pod, bridge.name)
        (tap,) = pod.apply(wanted.tap)
        undo.push(f"deleting {tap.name}", traces.delete_tap, pod, tap.name)
        sysctls.apply(pod, wanted.on_links)
        pod.apply(*plan.plan_links(wanted, bridge, tap, alias))

    def _forward(self, undo: Undo, wanted: Wanted, left: Leftovers) -> None:
        """Last of all: until then nothing gets through the pod."""
        pod = self._pod.stack
        before = plan.default_routes(pod.routes())
        mine = sysctls.unshared(left.sysctls, self._call.others)
        undo.push("sysctls", sysctls.restore, pod, mine)
        sysctls.apply(pod, wanted.global_)
        lost = plan.lost_routes(before, plan.default_routes(pod.routes())) if before else ()
        if lost:
            pod.apply(*(AddRoute(route) for route in lost))
