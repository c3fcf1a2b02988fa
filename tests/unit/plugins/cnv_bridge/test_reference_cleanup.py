"""The reference plugin's objects by their names; that they are right, its own binary shows elsewhere."""

from __future__ import annotations

import pytest

from cnvnet.kernel.nft.tables import NftError
from cnvnet.plugins.cnv_bridge import reference_cleanup
from cnvnet.plugins.cnv_bridge.reference_cleanup import Attachment
from tests.fakes.nft import FakeNft

OURS = Attachment("mynet", "cidiptables", "eth0")
OTHER = Attachment("mynet", "cidother", "eth0")
# As the reference plugin v1.9.1 made them for these two.
SPOOF = """\
table bridge nat {
	chain PREROUTING {
		type filter hook prerouting priority dstnat; policy accept;
		iifname "veth1" jump cni-br-iface-cidiptables-eth0 comment "macspoofchk-cidiptables-eth0"
		iifname "veth2" jump cni-br-iface-cidother-eth0 comment "macspoofchk-cidother-eth0"
	}
	chain cni-br-iface-cidiptables-eth0 {
		jump cni-br-iface-cidiptables-eth0-mac comment "macspoofchk-cidiptables-eth0"
	}
	chain cni-br-iface-cidiptables-eth0-mac {
		ether saddr a6:db:8c:ab:81:9e return comment "macspoofchk-cidiptables-eth0"
		drop comment "macspoofchk-cidiptables-eth0"
	}
	chain cni-br-iface-cidother-eth0 {
		jump cni-br-iface-cidother-eth0-mac comment "macspoofchk-cidother-eth0"
	}
	chain cni-br-iface-cidother-eth0-mac {
		ether saddr 5a:94:63:2f:09:9b return comment "macspoofchk-cidother-eth0"
		drop comment "macspoofchk-cidother-eth0"
	}
}
"""
IPTABLES = """\
table ip nat {
	chain CNI-d0e0c55450e995ee172216a8 {
		ip daddr 10.1.2.0/24 accept
		ip daddr != 224.0.0.0/4 masquerade
	}
	chain POSTROUTING {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 10.1.2.2 jump CNI-d0e0c55450e995ee172216a8
		ip saddr 10.9.9.9 jump KUBE-POSTROUTING
	}
}
"""
NFTABLES = """\
table inet cni_plugins_masquerade {
	chain masq_checks {
		ip saddr 10.1.2.3 masquerade comment "d23676b4f2d9fe04-00864f268dd30cdc, net: mynet, id: cidnftables"
		ip saddr 10.1.2.4 masquerade comment "d23676b4f2d9fe04-ffffffffffffffff, net: mynet, id: another"
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		goto masq_checks
	}
}
"""


def rules(nft: FakeNft) -> dict[str, int]:
    return {name: len(of) for table in nft.tables.values() for name, of in table.chains.items()}


class Refusing(FakeNft):
    """A node where nft cannot run."""

    def run(self, text: str) -> str:
        raise NftError(2, f"neither libnftables nor nft is here for {text!r}")


def test_the_mac_check_of_one_attachment_goes_and_the_others_stays() -> None:
    nft = FakeNft()
    nft.run(SPOOF)
    assert reference_cleanup.has_spoof_rules(nft, OURS)
    reference_cleanup.remove(nft, OURS)
    assert not reference_cleanup.has_spoof_rules(nft, OURS)
    assert reference_cleanup.has_spoof_rules(nft, OTHER)
    assert rules(nft) == {
        "PREROUTING": 1,
        "cni-br-iface-cidother-eth0": 1,
        "cni-br-iface-cidother-eth0-mac": 2,
    }


@pytest.mark.parametrize(
    "chain", ["PREROUTING", "cni-br-iface-cidiptables-eth0", "cni-br-iface-cidiptables-eth0-mac"]
)
def test_a_mac_check_without_one_of_its_rules_is_none(chain: str) -> None:
    nft = FakeNft()
    nft.run(SPOOF)
    nft.run(f"flush chain bridge nat {chain}")
    assert not reference_cleanup.has_spoof_rules(nft, OURS)
    reference_cleanup.remove(nft, OURS)
    assert "cidiptables" not in str(rules(nft))


def test_iptables_chains_go_with_the_rules_that_lead_there() -> None:
    nft = FakeNft()
    nft.run(IPTABLES)
    assert reference_cleanup.has_masquerade(nft, OURS)
    assert not reference_cleanup.has_masquerade(nft, OTHER)
    reference_cleanup.remove(nft, OURS)
    assert rules(nft) == {"POSTROUTING": 1}


def test_masquerade_rules_go_by_their_comment() -> None:
    nft = FakeNft()
    nft.run(NFTABLES)
    attachment = Attachment("mynet", "cidnftables", "eth0")
    assert reference_cleanup.has_masquerade(nft, attachment)
    reference_cleanup.remove(nft, attachment)
    assert not reference_cleanup.has_masquerade(nft, attachment)
    assert rules(nft) == {"masq_checks": 1, "postrouting": 1}


def test_where_there_is_nothing_no_script_runs() -> None:
    reference_cleanup.remove(Refusing(), OURS)


def test_a_refusal_is_said_and_not_raised(capsys: pytest.CaptureFixture[str]) -> None:
    nft = Refusing()
    FakeNft.run(nft, SPOOF)
    reference_cleanup.remove(nft, OURS)
    assert "neither libnftables nor nft" in capsys.readouterr().err


def test_a_name_that_would_be_another_command_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    nft = FakeNft()
    attachment = OURS._replace(ifname="x;reset")
    nft.run("add table bridge nat\nadd chain bridge nat cni-br-iface-cidiptables-x;reset")
    reference_cleanup.remove(nft, attachment)
    assert nft.chain("bridge", "nat", "cni-br-iface-cidiptables-x;reset")
    assert "cannot be written" in capsys.readouterr().err
