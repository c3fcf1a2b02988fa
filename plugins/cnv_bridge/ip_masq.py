"""ipMasq: what a pod sends beyond its own subnet leaves the host with the host's address.

The table `inet cnv_masquerade` is constant but for a chain per subnet; a pod's address is an element of a
map that leads to the chain of its subnet. (A set of address and subnet would say the same without chains,
but it takes the kernel 100 ms to delete from one of 4,000.)

A VM's next pod has the address of the one before, and the runtime may add the next before it deletes the
last. So each address has a folder of markers, one per attachment that wants it masqueraded, and only the
last to go takes the element along. A marker is a symbolic link, which comes into being whole:
`<folder>/<address>/<attachment>` -> `v1 <address>/<prefix>`.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Sequence, Set
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Interface, ip_interface
from typing import Final, NamedTuple

from cnvnet.attachment.record import Attachments, Key
from cnvnet.call_context import log
from cnvnet.cni.errors import IO_FAILURE, CNIError
from cnvnet.cni.fields import InterfaceAddress
from cnvnet.kernel import private_folder
from cnvnet.kernel.nft.tables import Element, Nft, NftError, loaded
from cnvnet.plugins.cnv_bridge.reload import change_loaded

FAMILY: Final = "inet"
TABLE: Final = "cnv_masquerade"
VERSION: Final = "masquerade_v1"
# Sets keep their types; rules change together with VERSION.
TEXT: Final = """\
table inet cnv_masquerade {
	# A pod's address leads to the chain of its subnet, inside which it is known by its own address.
	map pods4 { type ipv4_addr : verdict; }
	map pods6 { type ipv6_addr : verdict; }

	chain masquerade_v1 {
		type nat hook postrouting priority srcnat; policy accept;
		ip daddr 224.0.0.0/4 return
		ip6 daddr ff00::/8 return
		ip saddr vmap @pods4
		ip6 saddr vmap @pods6
	}
}
"""

_LOCK: Final = "masquerade"
# What the chains of subnets begin with.
_SUBNETS: Final = "beyond_"
_MARK: Final = "v1 "
_UNWRITABLE: Final = (errno.EROFS, errno.EACCES, errno.EPERM)


class IpMasq(NamedTuple):
    """The masqueraded addresses of one node, with their markers below `folder`."""

    attachments: Attachments
    folder: str

    def add(self, nft: Nft, key: Key, addresses: Sequence[InterfaceAddress]) -> None:
        """Masquerades the addresses for an attachment; again is fine. Raises NftError, and CNIError 5."""
        with self.attachments.shared(_LOCK):
            for address in addresses:
                self._mark(key, address)
            change_loaded(partial(_load, nft, addresses), partial(_lead, nft, addresses))

    def remove(self, nft: Nft, key: Key, addresses: Sequence[InterfaceAddress]) -> None:
        """Ends the masquerading of an attachment's addresses; again, or never added, is fine."""
        with self._locked_if_possible():
            for address in addresses:
                self._remove(nft, _marker(key), address)

    def gc(self, nft: Nft, plugin: str, network: str, keep: Iterable[tuple[str, str]]) -> None:
        """Forgets all attachments of a network but those of the (container id, ifname) pairs."""
        kept = {_marker(Key(plugin, network, *pair)) for pair in keep}
        with self._locked_if_possible():
            for name in _listing(self.folder):
                for owner in _listing(os.path.join(self.folder, name)):
                    if owner.startswith(_of_network(plugin, network)) and owner not in kept:
                        self._remove(nft, owner, ip_interface(name))
            # Chains that nothing leads to: a DEL of an older version, or one that was killed, has left them.
            for chain in nft.chains(FAMILY, TABLE):
                if chain.startswith(_SUBNETS):
                    nft.delete_chain(FAMILY, TABLE, chain)

    def reconcile(self, nft: Nft, keys: Iterable[Key], repair: Callable[[bool], bool]) -> tuple[bool, int]:
        """Restores what other programs have removed of these attachments' addresses.

        Whether rules were not as they should be, and how many elements were missing. `repair` sees to the
        table; its argument says whether it is needed. Raises NftError, and CNIError 5.
        """
        owners = {_marker(key) for key in keys}
        # The markers decide: DEL removes its own under this lock, and with the last one the address.
        with self.attachments.shared(_LOCK):
            wanted = self._marked(owners)
            rules = repair(bool(wanted))
            for subnet in {address.network: address for address in wanted}.values():
                rules = _ensure_subnet(nft, subnet) or rules
            # An address that leads to another subnet by now is a newer pod's: it stays.
            elements = {element(address)._replace(data=""): element(address) for address in wanted}
            missing = [elements[key] for key in nft.missing(list(elements))]
            nft.change(add=missing)
        return rules, len(missing)

    def _marked(self, owners: Set[str]) -> list[InterfaceAddress]:
        """The addresses that any of these attachments has; of several attachments, as the newest has it."""
        addresses: list[InterfaceAddress] = []
        for name in _listing(self.folder):
            folder = os.path.join(self.folder, name)
            paths = [os.path.join(folder, owner) for owner in _listing(folder) if owner in owners]
            targets = [os.readlink(path) for path in sorted(paths, key=_age)]
            known = [target.removeprefix(_MARK) for target in targets if target.startswith(_MARK)]
            addresses += [ip_interface(text) for text in known[-1:]]
        return addresses

    def _remove(self, nft: Nft, owner: str, address: InterfaceAddress) -> None:
        folder = self._place(address)
        _remove_path(os.unlink, os.path.join(folder, owner))
        is_last = not set(_listing(folder)) - {owner}
        if is_last:
            nft.change(delete=[element(address)])
        # With its last pod: an ADD that needs the chain waits for the lock that is held here.
        nft.delete_chain(FAMILY, TABLE, _subnet_chain(address))
        if is_last:
            # Last of all: killed before that, the next DEL does it all again.
            _remove_path(os.rmdir, folder)

    def _mark(self, key: Key, address: InterfaceAddress) -> None:
        folder, target = self._place(address), _MARK + address.with_prefixlen
        path = os.path.join(folder, _marker(key))
        try:
            private_folder.ensure(self.folder, folder)
            try:
                os.symlink(target, path)
            except FileExistsError:
                if os.readlink(path) != target:
                    os.unlink(path)
                    os.symlink(target, path)
        except OSError as e:
            raise CNIError(IO_FAILURE, f"{path}: {e.strerror}") from e

    def _place(self, address: InterfaceAddress) -> str:
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


def _load(nft: Nft, addresses: Sequence[InterfaceAddress]) -> None:
    nft.ensure(FAMILY, TABLE, VERSION, TEXT)
    for address in addresses:
        _ensure_subnet(nft, address)


def _lead(nft: Nft, addresses: Sequence[InterfaceAddress]) -> None:
    """The addresses to the chains of their subnets."""
    wanted = [element(address) for address in addresses]
    try:
        nft.change(add=wanted)
    except NftError as e:
        if e.errno not in (errno.EEXIST, errno.EBUSY):
            raise
        # An address that led to another subnet until now: the newer pod is right.
        nft.change(add=wanted, delete=wanted)


def element(address: InterfaceAddress) -> Element:
    """What a map of the table holds for a pod's address."""
    kind, name = ("ipv4_addr", "pods4") if isinstance(address, IPv4Interface) else ("ipv6_addr", "pods6")
    return Element(FAMILY, TABLE, name, (kind,), (str(address.ip),), f"goto {_subnet_chain(address)}")


def missing(nft: Nft, addresses: Sequence[InterfaceAddress]) -> list[Element]:
    """The elements of those addresses that are not masqueraded as they should be; for CHECK."""
    works = loaded(nft, FAMILY, TABLE, VERSION, TEXT)
    return [
        element(address)
        for address in addresses
        if not works or not _has_subnet(nft, address) or nft.missing([element(address)])
    ]


def _ensure_subnet(nft: Nft, address: InterfaceAddress) -> bool:
    """The chain for a subnet's pods, which is made with the first one and goes with the last.

    Whether it was missing.
    """
    if _has_subnet(nft, address):
        return False
    chain = f"{FAMILY} {TABLE} {_subnet_chain(address)}"
    rule = f"{'ip' if address.version == 4 else 'ip6'} daddr != {address.network} masquerade"
    nft.run(f"add chain {chain}\nflush chain {chain}\nadd rule {chain} {rule}\n")
    return True


def _has_subnet(nft: Nft, address: InterfaceAddress) -> bool:
    return len(nft.rules(FAMILY, TABLE, _subnet_chain(address))) == 1


def _subnet_chain(address: InterfaceAddress) -> str:
    # nft's names have no colons.
    return f"{_SUBNETS}{str(address.network).replace(':', '-')}"


def _marker(key: Key) -> str:
    identity = f"{key.container_id}\0{key.ifname}".encode()
    return _of_network(key.plugin, key.network) + hashlib.sha256(identity).hexdigest()[:32]


def _age(path: str) -> int:
    return os.lstat(path).st_mtime_ns


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
    except (FileNotFoundError, NotADirectoryError):
        pass  # an earlier DEL came as far as this, or there never was a folder
    except OSError as e:
        # Where nothing can be written the record stays too, so that the next DEL does all of this again.
        if e.errno not in _UNWRITABLE:
            raise
        log(f"{path}: {e.strerror}")
