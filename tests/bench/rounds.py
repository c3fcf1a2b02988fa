"""Rounds: each system is measured once in each, in an order that changes.

A system that comes after one that goes through a node's whole ruleset finds the processor's caches cold.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Turn(NamedTuple):
    """`cycle` measures once, given the round's number."""

    column: str
    cycle: Callable[[int], Sequence[float]]


Samples = dict[str, list[float]]


def interleaved(turns: Sequence[Turn], rounds: int) -> list[Samples]:
    """For each figure of a cycle the samples by column."""
    for turn in turns:
        turn.cycle(-1)  # caches are warm, chains are made
    measured: dict[str, list[Sequence[float]]] = {turn.column: [] for turn in turns}
    for number in range(rounds):
        for turn in random.Random(number).sample(turns, len(turns)):
            measured[turn.column].append(turn.cycle(number))
    by_figure = {
        column: [list(each) for each in zip(*cycles, strict=True)] for column, cycles in measured.items()
    }
    figures = len(next(iter(by_figure.values())))
    return [{column: each[index] for column, each in by_figure.items()} for index in range(figures)]
