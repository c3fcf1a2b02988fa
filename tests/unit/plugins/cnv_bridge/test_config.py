"""Every key of the configuration: what it becomes, and what is said about what it cannot be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.cni.conventions import RequestedMac
from cnvnet.cni.errors import CNIError
from cnvnet.cni.fields import Fields
from cnvnet.cni.request import Request
from cnvnet.cni.result import DNS
from cnvnet.plugins.cnv_bridge.config import Config, DeleteConfig
from cnvnet.plugins.cnv_bridge.guards import Guards

MAC = "02:00:00:00:00:07"


def a_request(config: dict[str, Any], args: str = "") -> Request:
    return Request(
        command="ADD",
        container_id="cid-1",
        netns="/run/netns/pod",
        ifname="eth0",
        args=args,
        path="/opt/cni/bin",
        env={},
        fields=Fields(config),
        raw=b"",
        cni_version="1.1.0",
        name="net1",
    )


def parse(args: str = "", /, **config: Any) -> Config:
    return Config.parse(a_request(config, args))


def test_without_keys_the_defaults_are_those_of_the_reference() -> None:
    assert parse() == Config(
        network="net1",
        bridge="cni0",
        is_gateway=False,
        is_default_gateway=False,
        force_address=False,
        ip_masq=False,
        ip_masq_backend="",
        mtu=0,
        hairpin_mode=False,
        promisc_mode=False,
        vlan=0,
        trunk=None,
        preserve_default_vlan=False,
        macspoofchk=False,
        ipspoofchk=False,
        dhcp_guard=False,
        ra_guard=False,
        enable_dad=False,
        disable_container_interface=False,
        port_isolation=False,
        mac=RequestedMac(),
        ipam_type="",
        dns=None,
    )


FLAGS = {
    "isGateway": "is_gateway",
    "isDefaultGateway": "is_default_gateway",
    "forceAddress": "force_address",
    "ipMasq": "ip_masq",
    "hairpinMode": "hairpin_mode",
    "promiscMode": "promisc_mode",
    "preserveDefaultVlan": "preserve_default_vlan",
    "macspoofchk": "macspoofchk",
    "dhcpGuard": "dhcp_guard",
    "raGuard": "ra_guard",
    "enabledad": "enable_dad",
    "disableContainerInterface": "disable_container_interface",
    "portIsolation": "port_isolation",
}


@pytest.mark.parametrize(("key", "field"), FLAGS.items(), ids=FLAGS)
def test_a_flag_is_read_in_any_case(key: str, field: str) -> None:
    ipam = {"type": "host-local"} if key == "ipMasq" else None
    for spelling in (key, key.upper(), key.lower()):
        assert getattr(parse(**{spelling: True}, ipam=ipam), field) is True
        assert getattr(parse(**{spelling: None}), field) is False


@pytest.mark.parametrize("key", [*FLAGS, "ipspoofchk"])
@pytest.mark.parametrize("value", ["true", 1, 0, [], {}], ids=repr)
def test_a_flag_of_another_type_is_refused(key: str, value: Any) -> None:
    with pytest.raises(CNIError, match=f"^{key}: expected true or false, got ") as caught:
        parse(**{key: value})
    assert caught.value.code == 7


def test_values_are_taken_over() -> None:
    config = parse(bridge="br1", mtu=9000, vlan=100, ipMasqBackend="nftables", ipam={"type": "host-local"})
    assert (config.bridge, config.mtu, config.vlan) == ("br1", 9000, 100)
    assert (config.ip_masq_backend, config.ipam_type) == ("nftables", "host-local")


def test_a_default_gateway_is_a_gateway() -> None:
    assert parse(isDefaultGateway=True, isGateway=False).is_gateway


def test_the_default_vlan_is_kept_in_configurations_of_the_older_reference() -> None:
    assert parse(compat="v1.5").preserve_default_vlan
    assert not parse(compat="v1.5", preserveDefaultVlan=False).preserve_default_vlan


def test_guards_against_rogue_servers_come_with_ipspoofchk_unless_said_otherwise() -> None:
    ipam = {"type": "host-local"}
    config = parse(ipspoofchk=True, ipam=ipam)
    assert (config.dhcp_guard, config.ra_guard) == (True, True)
    config = parse(ipspoofchk=True, ipam=ipam, raGuard=False)
    assert (config.dhcp_guard, config.ra_guard) == (True, False)
    assert config.guards == Guards(ipspoofchk=True, dhcp_guard=True)
    assert not any(parse().guards)


def test_masquerading_is_about_addresses_only() -> None:
    assert not parse(ipMasq=True).ip_masq


TRUNKS: list[tuple[list[Any], Any]] = [
    ([], ()),
    ([{}], ()),
    ([{"id": 101}], ((101, 101),)),
    ([{"minID": 200, "maxID": 210}], ((200, 210),)),
    ([{"MinId": 200, "MAXID": 210, "ID": 101}], ((101, 101), (200, 210))),
    ([{"minID": 5, "maxID": 9}, {"id": 7}, {"id": 10}, {"id": 4094}], ((5, 10), (4094, 4094))),
    ([{"minID": 1, "maxID": 4094}], ((1, 4094),)),
]


@pytest.mark.parametrize(("trunk", "ranges"), TRUNKS)
def test_a_trunk_is_sorted_and_joined(trunk: list[Any], ranges: Any) -> None:
    config = parse(vlanTrunk=trunk)
    assert config.trunk == ranges
    assert config.filters_vlans


def test_no_trunk_is_not_an_empty_trunk() -> None:
    assert parse().trunk is None
    assert parse(vlanTrunk=None).trunk is None
    assert not parse().filters_vlans
    assert parse(vlan=1).filters_vlans


# The texts are the reference's own (collectVlanTrunk and loadNetConf of bridge.go).
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"vlan": -100}, "invalid VLAN ID -100 (must be between 0 and 4094)"),
    ({"vlan": 5000}, "invalid VLAN ID 5000 (must be between 0 and 4094)"),
    ({"vlan": 4095}, "invalid VLAN ID 4095 (must be between 0 and 4094)"),
    ({"vlan": "100"}, "vlan: expected an integer, got a string"),
    ({"vlan": True}, "vlan: expected an integer, got true"),
    ({"vlan": 1.5}, "vlan: expected an integer, got a number with a fraction or exponent"),
    ({"vlanTrunk": {}}, "vlanTrunk: expected a list of objects, got an object"),
    ({"vlanTrunk": [7]}, "vlanTrunk[0]: expected an object, got an integer"),
    ({"vlanTrunk": [{}, {"id": "7"}]}, "vlanTrunk[1].id: expected an integer, got a string"),
    (
        {"vlanTrunk": [{"minID": 10}]},
        "minID and maxID should be configured simultaneously, maxID is missing",
    ),
    (
        {"vlanTrunk": [{"maxID": 10}]},
        "minID and maxID should be configured simultaneously, minID is missing",
    ),
    ({"vlanTrunk": [{"minID": -1, "maxID": 10}]}, "incorrect trunk minID parameter"),
    ({"vlanTrunk": [{"minID": 0, "maxID": 10}]}, "incorrect trunk minID parameter"),
    ({"vlanTrunk": [{"minID": 5000, "maxID": 5001}]}, "incorrect trunk minID parameter"),
    ({"vlanTrunk": [{"minID": 10, "maxID": 4095}]}, "incorrect trunk maxID parameter"),
    ({"vlanTrunk": [{"minID": 10, "maxID": -1}]}, "incorrect trunk maxID parameter"),
    ({"vlanTrunk": [{"minID": 10, "maxID": 9}]}, "minID is greater than maxID in trunk parameter"),
    ({"vlanTrunk": [{"id": 4095}]}, "incorrect trunk id parameter"),
    ({"vlanTrunk": [{"id": -1}]}, "incorrect trunk id parameter"),
    ({"vlanTrunk": [{"id": 0}]}, "incorrect trunk id parameter"),
    ({"mtu": -1}, "mtu: -1 is not between 68 and 65535"),
    ({"mtu": 67}, "mtu: 67 is not between 68 and 65535"),
    ({"mtu": 65536}, "mtu: 65536 is not between 68 and 65535"),
    ({"mtu": "1500"}, "mtu: expected an integer, got a string"),
    ({"bridge": 7}, "bridge: expected a string, got an integer"),
    ({"bridge": ""}, "bridge: an empty name"),
    ({"bridge": "sixteen-letters-"}, 'bridge: "sixteen-letters-" is longer than 15 characters'),
    ({"bridge": "zwölf-ä-ö-ü-ß"}, 'bridge: "zwölf-ä-ö-ü-ß" is longer than 15 characters'),
    ({"bridge": "."}, 'bridge: "." cannot be the name of an interface'),
    ({"bridge": ".."}, 'bridge: ".." cannot be the name of an interface'),
    ({"bridge": "all"}, 'bridge: "all" cannot be the name of an interface'),
    ({"bridge": "a/b"}, 'bridge: "a/b" has a character no name of an interface can have'),
    ({"bridge": "a:b"}, 'bridge: "a:b" has a character no name of an interface can have'),
    ({"bridge": "br%d"}, 'bridge: "br%d" has a character no name of an interface can have'),
    ({"bridge": "a b"}, 'bridge: "a b" has a character no name of an interface can have'),
    ({"bridge": "a\0b"}, 'bridge: "a\0b" has a character no name of an interface can have'),
    ({"ipMasqBackend": "pf"}, 'unknown ipmasq backend "pf"'),
    ({"ipMasqBackend": 1}, "ipMasqBackend: expected a string, got an integer"),
    ({"compat": "v1.4"}, 'compat: "v1.4" is not known, only "v1.5" is'),
    ({"compat": 1.5}, "compat: expected a string, got a number with a fraction or exponent"),
    ({"ipam": "host-local"}, "ipam: expected an object, got a string"),
    ({"ipam": {"type": 1}}, "ipam.type: expected a string, got an integer"),
    ({"dns": []}, "dns: expected an object, got a list"),
    ({"dns": {"nameservers": "10.0.0.1"}}, "dns.nameservers: expected a list of strings, got a string"),
    ({"dns": {"search": [1]}}, "dns.search[0]: expected a string, got an integer"),
    ({"dns": {"domain": 1}}, "dns.domain: expected a string, got an integer"),
    ({"args": []}, "args: expected an object, got a list"),
    ({"args": {"cni": "x"}}, "args.cni: expected an object, got a string"),
    ({"args": {"cni": {"mac": 1}}}, "args.cni.mac: expected a string, got an integer"),
    ({"args": {"cni": {"mac": "xx"}}}, 'args.cni.mac: "xx" is not a MAC address'),
    (
        {"args": {"cni": {"mac": "01:00:00:00:00:00"}}},
        'args.cni.mac: "01:00:00:00:00:00" is a multicast MAC address',
    ),
    (
        {"runtimeConfig": {"mac": "00:00:00:00:00:00"}},
        'runtimeConfig.mac: "00:00:00:00:00:00" cannot be the MAC address of an interface',
    ),
    ({"runtimeConfig": 1}, "runtimeConfig: expected an object, got an integer"),
    (
        {"hairpinMode": True, "promiscMode": True},
        "cannot set hairpin mode and promiscuous mode at the same time",
    ),
    (
        {"ipam": {"type": "host-local"}, "disableContainerInterface": True},
        "cannot use IPAM when DisableContainerInterface flag is set",
    ),
    ({"ipspoofchk": True}, "ipspoofchk: without ipam there are no addresses to allow"),
    (
        {"isGateway": True, "vlan": 1000, "bridge": "longbridge1", "ipam": {"type": "host-local"}},
        "isGateway: the gateway of VLAN 1000 would be called longbridge1.1000, "
        "which is longer than 15 characters",
    ),
]


@pytest.mark.parametrize(("config", "msg"), REFUSED, ids=[json.dumps(config) for config, _ in REFUSED])
def test_what_cannot_be_done_is_refused_with_the_reason(config: dict[str, Any], msg: str) -> None:
    with pytest.raises(CNIError) as caught:
        parse(**config)
    assert (caught.value.msg, caught.value.code) == (msg, 7)


def test_the_capability_beats_args_which_beat_cni_args() -> None:
    args = "MAC=02:00:00:00:00:01"
    cni = {"cni": {"mac": "02:00:00:00:00:02"}}
    runtime = {"mac": "02:00:00:00:00:03"}
    assert parse(args).mac.mac == "02:00:00:00:00:01"
    assert parse(args, args=cni).mac.mac == "02:00:00:00:00:02"
    assert parse(args, args=cni, RuntimeConfig=runtime).mac.mac == "02:00:00:00:00:03"
    assert parse(args, args=cni, runtimeConfig={"mac": ""}).mac.mac == "02:00:00:00:00:02"


def test_a_mac_is_kept_in_canonical_form() -> None:
    assert parse(runtimeConfig={"mac": "02-AB-cd-00-00-01"}).mac.mac == "02:ab:cd:00:00:01"


def test_a_mac_that_is_overruled_need_not_be_one() -> None:
    assert parse("MAC=rubbish", runtimeConfig={"mac": MAC}).mac.mac == MAC


def test_args_a_plugin_does_not_know_are_refused_unless_to_be_ignored() -> None:
    with pytest.raises(CNIError, match=r'^ARGS: unknown args \["FOO=BAR"\]$'):
        parse("FOO=BAR;MAC=" + MAC)
    assert parse("IgnoreUnknown=true;FOO=BAR;K8S_POD_NAME=p;MAC=02:00:00:00:00:01;MAC=" + MAC).mac.mac == MAC
    with pytest.raises(CNIError, match=r'^ARGS: invalid pair "FOO"$') as caught:
        parse("FOO;IgnoreUnknown=1")
    assert caught.value.code == 4


def test_the_arguments_of_our_own_address_manager_are_known() -> None:
    args = "IP=10.0.0.5;VM_NAMESPACE=n;VM_NAME=v;VM_UID=u;VM_INTERFACE=i;VM_ROLE=active"
    assert parse(args, ipam={"type": "static-ip"}).mac.mac == ""
    with pytest.raises(CNIError, match=r"^ARGS: unknown args"):
        parse(args, ipam={"type": "host-local"})


def test_a_bad_mac_in_cni_args_is_refused() -> None:
    with pytest.raises(CNIError, match='"xx" is not a MAC address'):
        parse("MAC=xx")


def test_dns_is_absent_unless_something_is_said() -> None:
    assert parse(dns={}).dns is None
    assert parse(dns={"domain": ""}).dns is None
    assert parse(dns={"search": []}).dns == DNS()
    assert parse(
        dns={"nameservers": ["10.0.0.1"], "domain": "d", "search": ["s"], "options": ["o"]}
    ).dns == DNS(nameservers=("10.0.0.1",), domain="d", search=("s",), options=("o",))


def test_unknown_keys_are_ignored() -> None:
    assert parse(deviceID="0000:00", resourceName=7, migration="auto") == parse()


def test_what_is_needed_for_deleting_is_read_whatever_else_is_wrong() -> None:
    request = a_request(
        {"vlan": 9999, "bridge": 7, "MacSpoofChk": True, "ipMasq": True, "IPAM": {"Type": "host-local"}},
        "FOO",
    )
    assert DeleteConfig.parse(request) == DeleteConfig("", "host-local", ip_masq=True)
    nothing = DeleteConfig("cni0", "", ip_masq=False)
    broken: list[dict[str, Any]] = [
        {"ipam": "x"},
        {"ipam": {"type": 7}},
        {"ipam": []},
        {"macspoofchk": "x", "ipMasq": 1},
    ]
    for config in broken:
        assert DeleteConfig.parse(a_request(config)) == nothing


_KEYS = st.sampled_from(
    [
        *FLAGS,
        "bridge",
        "vlan",
        "vlanTrunk",
        "mtu",
        "ipam",
        "dns",
        "args",
        "cni",
        "runtimeConfig",
        "mac",
        "type",
        "id",
        "minID",
        "maxID",
        "compat",
        "ipMasqBackend",
        "ipspoofchk",
        "nameservers",
        "search",
    ]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(MAC),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS | st.text(), inner, max_size=6),
    max_leaves=12,
)


@given(config=st.dictionaries(_KEYS | st.text(), _JSON), args=st.text() | st.just(f"MAC={MAC}"))
def test_any_json_is_a_configuration_or_a_cni_error(config: dict[str, Any], args: str) -> None:
    request = a_request(config, args)
    DeleteConfig.parse(request)
    try:
        parsed = Config.parse(request)
    except CNIError:
        return
    assert 0 <= parsed.vlan <= 4094
    assert len(parsed.bridge.encode()) < 16
