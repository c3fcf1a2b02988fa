"""Configurations of static-ip, parsed: what tests of keys begin with."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import strategies as st

from cnvnet.cni.errors import CNIError
from cnvnet.cni.request import Request, parse
from cnvnet.ipam.pool import Pool
from cnvnet.ipam.static_ip.config import Config

SUBNET = {"subnet": "10.0.0.0/24"}


def request(ipam: Any = SUBNET, cni_args: str = "", cni_version: str = "1.0.0", **keys: Any) -> Request:
    document = {"cniVersion": cni_version, "name": "net", "ipam": ipam, **keys}
    env = {"CNI_COMMAND": "ADD", "CNI_IFNAME": "eth0", "CNI_ARGS": cni_args, "CNVNET_STATEDIR": "/state"}
    return parse(env, json.dumps(document).encode())


def config(ipam: Any = SUBNET, cni_args: str = "", cni_version: str = "1.0.0", **keys: Any) -> Config:
    return Config.parse(request(ipam, cni_args, cni_version, **keys))


@contextmanager
def refused(message: str, code: int = 7) -> Generator[None]:
    with pytest.raises(CNIError) as caught:
        yield
    assert (caught.value.code, caught.value.msg) == (code, message)


def shape(found: Pool) -> list[list[str]]:
    """Sets of ranges as "first-last via gateway"."""
    return [[f"{each.name} via {each.gateway}" for each in given.ranges] for given in found.sets]


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(
        ["10.0.0.0/24", "10.0.0.5", "fd00::/64", "10.0.0.5-10.0.0.9/24", "::ffff:10.0.0.0/120", "/etc"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


RANGE_KEYS = ["subnet", "rangeStart", "rangeEnd", "gateway", "range", "range_start", "range_end", "exclude"]


LEASE_KEYS = [
    "ranges",
    "ipRanges",
    "routes",
    "dns",
    "resolvConf",
    "mac",
    "release",
    "cooldown",
    "store",
    "dataDir",
]


RANGE = st.dictionaries(st.sampled_from(RANGE_KEYS), JSON, max_size=5)


IPAM = st.dictionaries(
    st.sampled_from([*RANGE_KEYS, *LEASE_KEYS, "nodeLocal", "bogus"]),
    JSON | RANGE | st.lists(RANGE, max_size=2) | st.lists(st.lists(RANGE, max_size=2), max_size=2),
    max_size=6,
)
