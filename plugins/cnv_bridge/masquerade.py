"""ipMasq: what a pod sends beyond its own subnet leaves the host with the host's address.

The table `inet cnv_masquerade` is constant; a pod's address is an element in two of its sets. A VM's next
pod has the address of the one before, and the runtime may add the next before it deletes the last: so each
address has a folder of markers, one per attachment that wants it masqueraded, and only the last to go takes
the elements along.

A marker is a symbolic link, which comes into being whole: `<folder>/<address>/<attachment>` -> `v1
<address>/<prefix>`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Final, NamedTuple

from cnvnet.attachments import Attachments, Key
from cnvnet.cni.errors import IO_FAILURE, CNIError
from cnvnet.diagnostics import say
from cnvnet.kernel.nft import Element, Nft

FAMILY: Final = "inet"
TABLE: Final = "cnv_masquerade"
VERSION: Final = "masquerade_v1"
# Sets keep their types; rules change together with VERSION.
TEXT: Final = """\
table inet cnv_masquerade {
	set pods4 { type ipv4_addr; }
	set pods6 { type ipv6_addr; }

	# A pod's address and its own subnet, where it is known by its own address.
	set local4 { type ipv4_addr . ipv4_addr; flags interval; }
	set local6 { type ipv6_addr . ipv6_addr; flags interval; }

	chain masquerade_v1 {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr @pods4 ip daddr != 224.0.0.0/4 ip saddr . ip daddr != @local4 masquerade
		ip6 saddr @pods6 ip6 daddr != ff00::/8 ip6 saddr . ip6 daddr != @local6 masquerade
	}
}
"""

_LOCK: Final = "masquerade"
_MARK: Final = "v1 "

Interface = IPv4Interface | IPv6Interface


class Masquerade(NamedTuple):
    """The masqueraded addresses of one node, with their markers below `folder`."""

    attachments: Attachments
    folder: str

    def add(self, nft: Nft, key: Key, addresses: Sequence[Interface]) -> None:
        """Masquerades the addresses for an attachment; again is fine. Raises NftError, and CNIError 5."""
        with self.attachments.shared(_LOCK):
            nft.ensure(FAMILY, TABLE, VERSION, TEXT)
            stale: list[Element] = []
            for address in addresses:
                self._mark(key, address)
                # Two subnets for one address would overlap in the set: the newer pod is right.
                stale += [e for other in self._owners(address).values() for e in elements(other)]
            wanted = [element for address in addresses for element in elements(address)]
            nft.change(add=wanted, delete=[element for element in stale if element not in wanted])

    def remove(self, nft: Nft, key: Key, addresses: Sequence[Interface]) -> None:
        """The attachment wants its addresses masqueraded no more; again, or never added, is fine."""
        with self._locked_if_possible():
            for address in addresses:
                self._remove(nft, _marker(key), address)

    def gc(self, nft: Nft, plugin: str, network: str, keep: Iterable[tuple[str, str]]) -> None:
        """Forgets all attachments of a network but those of the (container id, ifname) pairs."""
        kept = {_marker(Key(plugin, network, *pair)) for pair in keep}
        with self._locked_if_possible():
            for name in _listing(self.folder):
                for owner, address in self._owners(ip_interface(name)).items():
                    if owner.startswith(_of_network(plugin, network)) and owner not in kept:
                        self._remove(nft, owner, address)

    def _remove(self, nft: Nft, owner: str, address: Interface) -> None:
        folder, owners = self._place(address), self._owners(address)
        # The marker tells which subnet was added, whatever the caller takes it to be.
        gone = elements(owners.pop(owner, address))
        _remove_path(os.unlink, os.path.join(folder, owner))
        wanted = elements(list(owners.values())[-1]) if owners else []
        nft.change(add=wanted, delete=[element for element in gone if element not in wanted])
        if not owners:
            _remove_path(os.rmdir, folder)

    def _mark(self, key: Key, address: Interface) -> None:
        folder, target = self._place(address), _MARK + address.with_prefixlen
        path = os.path.join(folder, _marker(key))
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            try:
                os.symlink(target, path)
            except FileExistsError:
                if os.readlink(path) != target:
                    os.unlink(path)
                    os.symlink(target, path)
        except OSError as e:
            raise CNIError(IO_FAILURE, f"{path}: {e.strerror}") from e

    def _owners(self, address: Interface) -> dict[str, Interface]:
        """Who wants this address masqueraded, and in which subnet each takes it to be."""
        folder = self._place(address)
        targets = {name: os.readlink(os.path.join(folder, name)) for name in _listing(folder)}
        return {
            name: ip_interface(target.removeprefix(_MARK)) if target.startswith(_MARK) else address
            for name, target in targets.items()
        }

    def _place(self, address: Interface) -> str:
        return os.path.join(self.folder, str(address.ip))

    @contextmanager
    def _locked_if_possible(self) -> Generator[None]:
        """A folder that cannot be written must not keep anything from being deleted."""
        try:
            lock = self.attachments.shared(_LOCK)
            lock.__enter__()
        except CNIError:
            yield
            return
        try:
            yield
        finally:
            lock.__exit__(None, None, None)


def elements(address: Interface) -> list[Element]:
    """What the table's sets hold for a pod's address."""
    kind, suffix = ("ipv4_addr", "4") if isinstance(address, IPv4Interface) else ("ipv6_addr", "6")
    own, subnet = str(address.ip), str(address.network)
    return [
        Element(FAMILY, TABLE, f"pods{suffix}", (kind,), (own,)),
        Element(FAMILY, TABLE, f"local{suffix}", (kind, kind), (own, subnet)),
    ]


def missing(nft: Nft, addresses: Sequence[Interface]) -> list[Element]:
    """What CHECK should find and does not; the addresses' elements all, where the table is not loaded."""
    wanted = [element for address in addresses for element in elements(address)]
    chain = nft.chain(FAMILY, TABLE, VERSION)
    return nft.missing(wanted) if chain is not None and chain.use > 0 else wanted


def _marker(key: Key) -> str:
    identity = f"{key.container_id}\0{key.ifname}".encode()
    return _of_network(key.plugin, key.network) + hashlib.sha256(identity).hexdigest()[:32]


def _of_network(plugin: str, network: str) -> str:
    return hashlib.sha256(f"{plugin}\0{network}".encode()).hexdigest()[:16] + "-"


def _listing(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove_path(remove: Callable[[str], None], path: str) -> None:
    try:
        remove(path)
    except FileNotFoundError:
        pass  # an earlier DEL came as far as this
    except OSError as e:
        # A marker that stays takes nothing from anybody: the next owner adds its elements again.
        say(f"{path}: {e.strerror}")
