"""What the reference bridge plugin's ADD leaves on a host, removed, so that a node is upgraded in place.

Names are those of containernetworking/plugins v1.9.1: pkg/link/spoofcheck.go,
pkg/ip/ipmasq_iptables_linux.go and ipmasq_nftables_linux.go. Each is asked for by its name, which costs
microseconds where there is nothing; only what is found is worth starting nft's machinery.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from cnvnet.call_context import log
from cnvnet.kernel.nft.tables import Nft, NftChain, NftRule

_MASQUERADE: Final = ("inet", "cni_plugins_masquerade", "masq_checks")
# The longest name that iptables takes for a chain: the reference plugin cuts its hash to it.
_CHAIN_LENGTH: Final = 28
# A tenant may have chosen a part of the name, and nft's language has no quotes for names.
_PLAIN: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_./-")
# Tables of the old iptables: which there are, and the program for them.
_XTABLES: Final = (("ip_tables_names", "iptables-legacy"), ("ip6_tables_names", "ip6tables-legacy"))


class Attachment(NamedTuple):
    """By what the reference plugin names things: the network, the container and its interface."""

    network: str
    container_id: str
    ifname: str


def remove(nft: Nft, attachment: Attachment) -> None:
    """Removes what the reference plugin's ADD left for an attachment. Never raises: DEL must go on."""
    try:
        for script in _scripts(nft, attachment):
            nft.run(script)
    except OSError as e:
        log(f"rules of an older plugin stay: {e}")
    for names, program in _XTABLES:
        if "nat" in _words(f"/proc/thread-self/net/{names}"):
            _remove_xtables(program, _iptables_chain(attachment))


def has_spoof_rules(nft: Nft, attachment: Attachment) -> bool:
    """Whether macspoofchk of the reference plugin is in force for its attachment, as CHECK wants to know."""
    port, mac = _spoof_chains(attachment)
    # One rule and the jump from PREROUTING; two rules and the jump from the port's chain.
    return _use(nft.chain("bridge", "nat", port)) >= 2 and _use(nft.chain("bridge", "nat", mac)) >= 3


def has_masquerade(nft: Nft, attachment: Attachment) -> bool:
    """Whether ipMasq of the reference plugin, by whichever backend, is in force for its attachment."""
    chain = _iptables_chain(attachment)
    # Two rules and a jump for every address.
    if any(_use(nft.chain(family, "nat", chain)) >= 3 for family in ("ip", "ip6")):
        return True
    if _masquerade_rules(nft, attachment):
        return True
    names, program = _XTABLES[0]
    return "nat" in _words(f"/proc/thread-self/net/{names}") and bool(_xtables_rules(program, chain))


def _scripts(nft: Nft, attachment: Attachment) -> Iterator[str]:
    """What to run for what is there."""
    port, mac = _spoof_chains(attachment)
    chains = [name for name in (port, mac) if _probe(nft, "bridge", "nat", name)]
    if chains:
        yield _removal(nft, "bridge", "PREROUTING", chains)
    chain = _iptables_chain(attachment)
    for family in ("ip", "ip6"):
        if _probe(nft, family, "nat", chain):
            yield _removal(nft, family, "POSTROUTING", [chain])
    if rules := _masquerade_rules(nft, attachment):
        yield "".join(f"delete rule {' '.join(_MASQUERADE)} handle {rule.handle}\n" for rule in rules)


def _removal(nft: Nft, family: str, base: str, chains: list[str]) -> str:
    """The script that takes the chains and the rules of `base` that jump to them from a table `nat`."""
    jumps = [rule for rule in nft.rules(family, "nat", base) if rule.target in chains]
    lines = [f"delete rule {family} nat {base} handle {rule.handle}" for rule in jumps]
    lines += [f"flush chain {family} nat {name}" for name in chains]
    lines += [f"delete chain {family} nat {name}" for name in chains]
    return "\n".join(lines) + "\n"


def _masquerade_rules(nft: Nft, attachment: Attachment) -> list[NftRule]:
    chain = nft.chain(*_MASQUERADE)
    # The base chain's goto is the first use: without another there is nothing to list.
    if _use(chain) < 2:
        return []
    instance = _digest(f"{attachment.ifname}:{attachment.container_id}", 16)
    prefix = f"{_digest(attachment.network, 16)}-{instance}"
    return [rule for rule in nft.rules(*_MASQUERADE) if rule.comment.startswith(prefix)]


def _remove_xtables(program: str, chain: str) -> None:
    for rule in _xtables_rules(program, chain):
        _xtables(program, "-D", *rule)
    if _xtables(program, "-S", chain):
        _xtables(program, "-F", chain)
        _xtables(program, "-X", chain)


def _xtables_rules(program: str, chain: str) -> list[list[str]]:
    """The rules of POSTROUTING that jump to the chain, each as the arguments it was appended with."""
    import shlex

    rules = [shlex.split(line) for line in _xtables(program, "-S", "POSTROUTING").splitlines()]
    return [rule[1:] for rule in rules if rule[-2:] == ["-j", chain]]


def _xtables(program: str, *arguments: str) -> str:
    """What the program printed, "" when it refused or is not here."""
    import subprocess  # 10 ms, for hosts that still have the old iptables

    command = [program, "-w", "5", "-t", "nat", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as e:
        log(f"{' '.join(command)}: {e}")
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def _spoof_chains(attachment: Attachment) -> tuple[str, str]:
    name = f"cni-br-iface-{attachment.container_id}-{attachment.ifname}"
    return name, f"{name}-mac"


def _iptables_chain(attachment: Attachment) -> str:
    digest = _digest(attachment.network + attachment.container_id, _CHAIN_LENGTH)
    return f"CNI-{digest}"[:_CHAIN_LENGTH]


def _digest(text: str, length: int) -> str:
    return hashlib.sha512(text.encode()).hexdigest()[:length]


def _probe(nft: Nft, family: str, table: str, chain: str) -> bool:
    if nft.chain(family, table, chain) is None:
        return False
    if not _PLAIN.issuperset(chain):
        log(f"chain {chain!r} of an older plugin stays: its name cannot be written in nft's language")
        return False
    return True


def _use(chain: NftChain | None) -> int:
    return chain.use if chain is not None else 0


def _words(path: str) -> list[str]:
    try:
        with open(path) as file:
            return file.read().split()
    except OSError:
        return []  # a kernel without the old iptables
