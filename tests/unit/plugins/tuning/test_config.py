"""Names of sysctls: how they are read, whatever separates their parts."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.request import Request, parse
from cnvnet.plugins.tuning.config import Config, NamedSysctl


def request(**keys: object) -> Request:
    config = {"cniVersion": "1.0.0", "name": "n", "type": "cnv-tuning", **keys}
    env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": "/n", "CNI_IFNAME": "eth0.5"}
    return parse(env, json.dumps(config).encode())


def one_sysctl(written: str) -> NamedSysctl:
    (found,) = Config.parse(request(sysctl={written: "1"})).sysctls
    return found


@pytest.mark.parametrize(
    "written",
    ["net.ipv4.conf.IFNAME.arp_notify", "net/ipv4/conf/IFNAME/arp_notify"],
)
def test_dots_and_slashes_separate_the_same_parts(written: str) -> None:
    assert one_sysctl(written) == NamedSysctl(
        written, "net.ipv4.conf.IFNAME.arp_notify", "net/ipv4/conf/eth0.5/arp_notify", "1"
    )


@pytest.mark.parametrize("written", ["net.ipv4.conf.eth0/5.arp_notify", "net/ipv4/conf/eth0.5/arp_notify"])
def test_a_dot_inside_a_part_is_kept(written: str) -> None:
    found = one_sysctl(written)
    assert (found.name, found.path) == ("net.ipv4.conf.eth0/5.arp_notify", "net/ipv4/conf/eth0.5/arp_notify")


@given(st.text("net./IFAME_", min_size=1))
def test_no_name_leads_out_of_net(written: str) -> None:
    try:
        path = one_sysctl(written).path
    except InvalidConfig:
        return
    assert path.split("/")[0] == "net"
    assert not {"", ".", ".."} & set(path.split("/"))
