"""One ADD: every deed with its undo right after it, the record before the first and after the last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from cnvnet.attachments import ADDED, ADDING, Key, Record, Slot, boot_id
from cnvnet.attempts import Undo
from cnvnet.cni.errors import IO_FAILURE, CNIError, InvalidConfig
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result
from cnvnet.guest import provider, settings_json
from cnvnet.kernel.netns import Netns
from cnvnet.kernel.nft import NftError
from cnvnet.kernel.routes import AddRoute
from cnvnet.kernel.stack import Kernel, Stack
from cnvnet.plugins.masquerade import leftovers, plan, ruleset
from cnvnet.plugins.masquerade.config import Config
from cnvnet.plugins.masquerade.leftovers import Leftovers
from cnvnet.plugins.masquerade.plan import Observed, Wanted
from cnvnet.vm import pod_interface, sysctls


class Pod(NamedTuple):
    """The pod's namespace, open for the whole call."""

    kernel: Kernel
    netns: Netns
    stack: Stack


def observe(pod: Stack, request: Request, result: Result | None) -> Observed:
    """What the plan goes by. Raises InvalidConfig when the pod has no interface to bind to."""
    link = pod_interface.find(pod, request, result)
    heeding = [
        found.name
        for route in plan.default_routes(pod.routes())
        if plan.came_from_an_advertisement(route) and (found := pod.link(route.ifindex)) is not None
    ]
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

    def __init__(
        self, request: Request, config: Config, pod: Pod, result: Result | None, env: Mapping[str, str]
    ) -> None:
        self._request = request
        self._config = config
        self._pod = pod
        self._result = result
        self._env = env

    def run(self, key: Key, slot: Slot) -> Result:
        """Raises CNIError or OSError; nothing of the attachment is left then."""
        stack, netns = self._pod.stack, self._pod.netns
        wanted = plan.plan(self._config, observe(stack, self._request, self._result))
        guest = self._guest(wanted)
        self._refuse_taken(wanted)
        left = Leftovers(
            bridge=wanted.names.bridge,
            tap=wanted.names.tap,
            tables=wanted.tables,
            sysctls=sysctls.changes(stack, wanted.global_),
        )
        record = Record(key, self._request.netns, netns.inode, boot_id(), ADDING, left.to_json())
        with Undo() as undo:
            undo.finally_("record", slot.remove)
            slot.write(record)
            self._guard(undo, wanted)
            self._links(undo, wanted, leftovers.alias(key))
            self._forward(undo, wanted, left)
            slot.write(record._replace(state=ADDED, guest=guest))
            provider.serve(self._env, self._config.guest, key)
        return self._result or Result()

    def _guest(self, wanted: Wanted) -> dict[str, object] | None:
        if not self._config.guest.enabled:
            return None
        dns = (self._result or Result()).dns
        settings = plan.guest_settings(self._config, wanted, dns)
        return {"ifname": wanted.names.tap, "settings": settings_json.encode(settings)}

    def _refuse_taken(self, wanted: Wanted) -> None:
        for name in (wanted.names.bridge, wanted.names.tap):
            if self._pod.stack.link(name) is not None:
                raise InvalidConfig(f"{wanted.names.pod}: the pod has a link {name} already")
        with self._pod.kernel.nft(self._pod.netns) as nft:
            for family in wanted.tables:
                if nft.chain(family, ruleset.TABLE, ruleset.ANCHOR) is not None:
                    table = f"table {family} {ruleset.TABLE}"
                    raise InvalidConfig(
                        f"{wanted.names.pod}: another interface of this pod is masqueraded ({table})"
                    )

    def _guard(self, undo: Undo, wanted: Wanted) -> None:
        """Before the links are there: no packet of the guest's ever passes unguarded."""
        kernel, netns = self._pod.kernel, self._pod.netns
        with kernel.nft(netns) as nft:
            for each in wanted.rulesets:
                try:
                    nft.run(ruleset.render(each))
                except NftError as e:
                    raise CNIError(IO_FAILURE, f"table {each.family} {ruleset.TABLE}: {e}") from e
                undo.push("nftables", leftovers.delete_tables, kernel, netns, (each.family,))

    def _links(self, undo: Undo, wanted: Wanted, alias: str) -> None:
        pod = self._pod.stack
        (bridge,) = pod.apply(wanted.bridge)
        undo.push(f"deleting {bridge.name}", leftovers.delete_bridge, pod, bridge.name)
        (tap,) = pod.apply(wanted.tap)
        undo.push(f"deleting {tap.name}", leftovers.delete_tap, pod, tap.name)
        sysctls.apply(pod, wanted.on_links)
        pod.apply(*plan.plan_links(wanted, bridge, tap, alias))

    def _forward(self, undo: Undo, wanted: Wanted, left: Leftovers) -> None:
        """Last of all: until then nothing gets through the pod."""
        pod = self._pod.stack
        before = plan.default_routes(pod.routes())
        undo.push("sysctls", sysctls.restore, pod, left.sysctls)
        sysctls.apply(pod, wanted.global_)
        lost = plan.lost_routes(before, plan.default_routes(pod.routes())) if before else ()
        if lost:
            pod.apply(*(AddRoute(route) for route in lost))
