"""CNI_ARGS: "K=V;K2=V2", the spec's older way to hand a plugin per-attachment arguments."""

from __future__ import annotations

from cnvnet.cni.document import quoted, quoted_list
from cnvnet.cni.errors import INVALID_ENVIRONMENT, CNIError

_IGNORE_UNKNOWN = "IgnoreUnknown"
_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}


def parse_args(text: str, known: frozenset[str]) -> dict[str, str]:
    """The arguments among `known` (case-sensitive; of duplicates, which Multus sends, the last wins).

    Texts and order are those of containernetworking/cni pkg/types `LoadArgs`; they come with code 4 instead
    of 999, since it is the environment that is wrong. Unknown arguments are an error unless IgnoreUnknown=1.
    """
    values: dict[str, str] = {}
    unknown: list[str] = []
    ignore_unknown = False
    for pair in text.split(";") if text else ():
        if pair.count("=") != 1:
            raise _refused(f"invalid pair {quoted(pair)}")
        key, _, value = pair.partition("=")
        if key == _IGNORE_UNKNOWN:
            ignore_unknown = _boolean(pair, value)
        elif key in known:
            values[key] = value
        else:
            unknown.append(pair)
    if unknown and not ignore_unknown:
        raise _refused(f"unknown args {quoted_list(unknown)}")
    return values


def readable_args(text: str) -> dict[str, str]:
    """Every argument, for people to read: nothing is refused, what is not UTF-8 becomes "?"."""
    text = text.encode(errors="replace").decode()
    pairs = (pair.partition("=") for pair in text.split(";"))
    return {key: value for key, _, value in pairs}


def _boolean(pair: str, value: str) -> bool:
    meaning = _BOOLEANS.get(value.lower())
    if meaning is None:
        problem = f"boolean unmarshal error: invalid input {value.lower()}"
        raise _refused(f"error parsing value of pair {quoted(pair)}: {problem}")
    return meaning


def _refused(text: str) -> CNIError:
    return CNIError(INVALID_ENVIRONMENT, f"ARGS: {text}")
