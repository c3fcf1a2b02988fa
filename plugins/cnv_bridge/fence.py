"""The fence of ports whose addresses are another one's: the table `bridge cnv_fence` drops all of theirs.

The table is there only while a port is fenced: frames of other nodes do not pay for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Final

from cnvnet.attachment.record import Key, UnreadableRecord
from cnvnet.executables import CNV_BRIDGE
from cnvnet.kernel.nft.tables import Element, Nft, intact
from cnvnet.plugins.cnv_bridge.reconcile import ReconcileResult
from cnvnet.plugins.cnv_bridge.state import Context, PortState, find_port

FAMILY: Final = "bridge"
TABLE: Final = "cnv_fence"

# Before the guards, so that they count nothing of a fenced port. Frames to 01:80:c2:00:00:0X take the way of
# `local`; what the node itself sends comes by `delivered`, as what the bridge forwards.
TEXT: Final = """\
table bridge cnv_fence {
	counter from_fenced { packets 0 bytes 0; }
	counter to_fenced { packets 0 bytes 0; }
	set ports { type ifname; }

	chain received {
		type filter hook prerouting priority -400; policy accept;
		iifname @ports counter name from_fenced drop
	}

	chain local {
		type filter hook input priority -400; policy accept;
		iifname @ports counter name from_fenced drop
	}

	chain delivered {
		type filter hook postrouting priority -400; policy accept;
		oifname @ports counter name to_fenced drop
	}
}
"""

# An interface: network, container, interface.
Interface = tuple[str, str, str]


class FenceTable:
    """`bridge cnv_fence` of this node. Several threads use one."""

    family, table = FAMILY, TABLE

    def __init__(self, context: Context, fenced: Callable[[], Iterable[Interface]]) -> None:
        """`fenced` says which interfaces are; it raises CNIError."""
        self._context = context
        self._fenced = fenced
        self._lock = threading.Lock()
        # The ports that this process has fenced, None before it has looked.
        self._loaded: frozenset[str] | None = None

    def reconcile(self) -> ReconcileResult:
        """Make the table what it has to be. Raises CNIError or OSError."""
        with self._lock:
            ports = frozenset(self._ports())
            if not ports and self._loaded == ports:
                return ReconcileResult()  # nothing is asked of the kernel
            with self._context.kernel.nft() as nft:
                if self._is_loaded(nft, ports):
                    self._loaded = ports
                    return ReconcileResult()
                is_lost = bool(ports) and self._loaded == ports
                nft.run(_script(ports))
            self._loaded = ports
            return ReconcileResult(rules=is_lost)

    def _is_loaded(self, nft: Nft, ports: frozenset[str]) -> bool:
        if not ports:
            return not nft.chains(FAMILY, TABLE)
        return (
            self._loaded == ports and intact(nft, FAMILY, TABLE, TEXT) and not nft.missing(_elements(ports))
        )

    def _ports(self) -> Iterable[str]:
        interfaces = [*self._fenced()]
        if not interfaces:
            return
        with self._context.kernel.stack() as host:
            for network, container_id, ifname in interfaces:
                try:
                    record = self._context.attachments.read(Key(CNV_BRIDGE, network, container_id, ifname))
                except UnreadableRecord:
                    continue  # its plugin says so
                link = find_port(host, PortState.of(record)) if record is not None else None
                if link is not None:
                    yield link.name


def _elements(ports: Iterable[str]) -> list[Element]:
    return [Element(FAMILY, TABLE, "ports", ("ifname",), (each,)) for each in sorted(ports)]


def _script(ports: frozenset[str]) -> str:
    """One transaction: no frame finds the fence open in between."""
    # The first line is for the second: nft 1.0.6 has no "delete if there".
    lines = f"table {FAMILY} {TABLE} {{ }}\ndelete table {FAMILY} {TABLE}\n"
    if not ports:
        return lines
    names = ", ".join(f'"{each}"' for each in sorted(ports))
    return f"{lines}{TEXT}add element {FAMILY} {TABLE} ports {{ {names} }}\n"
