"""What one transaction of nftables costs beside the chains of others: which calls pay, and for what.

    unshare -n .venv/bin/python -m tests.bench.commits

Milliseconds of processor time of one element added and deleted again, medians. "cold": other memory has been
walked through before, as between the calls of a node; "hot": at once after the one before.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Final

from cnvnet.kernel import netns
from cnvnet.kernel.nft.tables import Element, Nft, open_nft
from tests.harness import namespace

_CHAINS: Final = (0, 5_000, 20_000)
_ROUNDS: Final = 40
# More than any cache of the processor holds.
_EVICTED: Final = 64 << 20
_TABLE: Final = "table {0} ours {{ set s {{ type ipv4_addr; }}; }}"
_ELEMENT: Final = Element("bridge", "ours", "s", ("ipv4_addr",), ("192.0.2.1",))
_KEPT: Final = _ELEMENT._replace(key=("192.0.2.2",))

Step = Callable[[Nft], None]


def _cost(nft: Nft, step: Step, *, cold: bool) -> float:
    spent: list[float] = []
    for _ in range(_ROUNDS):
        if cold:
            bytes(_EVICTED).count(1)
        begun = time.thread_time_ns()
        step(nft)
        spent.append((time.thread_time_ns() - begun) / 1e6)
    return statistics.median(spent)


def _nothing(nft: Nft) -> None:
    """Two transactions that change nothing: the element is there."""
    nft.change(add=[_KEPT])
    nft.change(add=[_KEPT])


def _once(nft: Nft) -> None:
    """One transaction with a deletion and an addition."""
    nft.change(add=[_KEPT], delete=[_KEPT])


def _add_and_delete(nft: Nft) -> None:
    nft.change(add=[_ELEMENT])
    nft.change(delete=[_ELEMENT])


def _foreign(chains: int) -> Iterator[str]:
    """As kube-proxy keeps them, one rule each."""
    yield "add table ip foreign"
    for number in range(chains):
        yield f"add chain ip foreign service-{number}"
        address = f"10.96.{number >> 8 & 255}.{number & 255}"
        yield f"add rule ip foreign service-{number} ip daddr {address} accept"


def _rules(count: int) -> Iterator[str]:
    """As many rules in one chain."""
    yield "add table ip foreign; add chain ip foreign one"
    for number in range(count):
        address = f"10.96.{number >> 8 & 255}.{number & 255}"
        yield f"add rule ip foreign one ip daddr {address} accept"


def _load(lines: Iterator[str]) -> None:
    script = "\n".join(lines) + "\n"
    subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True)


def main() -> None:
    with ExitStack() as opened:
        here = opened.enter_context(open_nft())
        other = opened.enter_context(netns.opened(opened.enter_context(namespace())))
        elsewhere = opened.enter_context(open_nft(other))
        for nft in (here, elsewhere):
            nft.run(_TABLE.format("bridge"))
            nft.change(add=[_KEPT])
        states = [(f"{chains:,} chains", _foreign(chains)) for chains in _CHAINS]
        states.append((f"1 chain, {_CHAINS[-1]:,} rules", _rules(_CHAINS[-1])))
        print(f"{'':24}{'hot':>8}{'cold':>8}{'in one':>8}{'nothing':>9}{'elsewhere':>11}")
        for state, lines in states:
            _load(lines)
            figures = [
                _cost(here, _add_and_delete, cold=False),
                _cost(here, _add_and_delete, cold=True),
                _cost(here, _once, cold=True),
                _cost(here, _nothing, cold=True),
                _cost(elsewhere, _add_and_delete, cold=True),
            ]
            print(f"{state:24}{'{:8.3f}{:8.3f}{:8.3f}{:9.3f}{:11.3f}'.format(*figures)}")
            sys.stdout.flush()
            here.run("delete table ip foreign")


if __name__ == "__main__":
    main()
