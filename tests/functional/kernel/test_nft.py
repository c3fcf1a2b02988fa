"""nftables, real and fake alike: tables are loaded once, elements come and go, nothing else is touched."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from cnvnet.kernel import netns
from cnvnet.kernel.nft import script, wire
from cnvnet.kernel.nft.tables import Element, Nft, NftError, loaded, open_nft
from cnvnet.plugins.cnv_bridge import guards, ip_masq
from tests.fakes.nft import render
from tests.functional.kernel.conftest import World
from tests.harness import Sandbox, namespace

DATA = Path(__file__).parents[2] / "data"
TEXT = """\
table bridge t {
	set macs { type ifname . ether_addr; }
	set ports { type ifname; }
	map to { type ipv4_addr : verdict; }

	chain guard_v1 {
		type filter hook prerouting priority -310; policy accept;
		iifname . ether saddr @macs accept
		ip saddr vmap @to
		jump more
	}

	chain more {
		iifname @ports drop
	}
}
"""
NEWER = TEXT.replace("guard_v1", "guard_v2")
# All that an inet table can be asked: trees of intervals, and concatenations of intervals.
RANGES = """\
table inet r {
	set nets {
		type ipv4_addr
		flags interval
	}
	set pairs {
		type ipv4_addr . ipv4_addr
		flags interval
	}
	chain use_v1 {
		type filter hook input priority 0; policy accept;
		ip saddr @nets counter accept
		ip saddr . ip daddr @pairs counter accept
	}
}
"""


@pytest.fixture
def nft(world: World) -> Iterator[Nft]:
    with world.kernel.nft(world.host_netns) as opened:
        yield opened


def mac(port: str, number: int = 1) -> Element:
    key = (port, f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}")
    return Element("bridge", "t", "macs", ("ifname", "ether_addr"), key)


def port(name: str) -> Element:
    return Element("bridge", "t", "ports", ("ifname",), (name,))


def jump(address: str, chain: str = "more") -> Element:
    return Element("bridge", "t", "to", ("ipv4_addr",), (address,), f"goto {chain}")


def chains(nft: Nft, *names: str) -> list[str]:
    return [name for name in names if nft.chain("bridge", "t", name)]


def load(nft: Nft, text: str = TEXT, version: str = "guard_v1") -> None:
    nft.ensure("bridge", "t", version, text)


def test_a_table_is_loaded_once(nft: Nft) -> None:
    assert nft.chain("bridge", "t", "guard_v1") is None
    for _ in range(3):
        load(nft)
        found = nft.chain("bridge", "t", "guard_v1")
        assert found is not None
        assert found.use == 3
        assert len(nft.rules("bridge", "t", "more")) == 1


def test_what_is_not_loaded_has_no_elements_and_takes_none(nft: Nft) -> None:
    assert nft.missing([mac("veth1")]) == [mac("veth1")]
    nft.change(delete=[mac("veth1")])
    with pytest.raises(NftError, match="macs") as caught:
        nft.change(add=[mac("veth1")])
    assert caught.value.errno == errno.ENOENT
    assert nft.rules("bridge", "t", "guard_v1") == []


def test_elements_come_and_go(nft: Nft) -> None:
    load(nft)
    ours = [mac("veth1"), port("veth1"), jump("10.0.0.5")]
    others = [mac("veth1", 2), mac("veth2"), port("veth11"), jump("10.0.0.6")]
    nft.change(add=[*ours, *others])
    nft.change(add=ours)
    assert nft.missing([*ours, *others]) == []
    nft.change(delete=ours)
    assert nft.missing([*ours, *others]) == ours


def test_deleting_what_is_not_there_is_fine_and_the_rest_is_done(nft: Nft) -> None:
    load(nft)
    nft.change(add=[mac("veth1"), mac("veth3")])
    nft.change(delete=[mac("veth1"), mac("veth2"), mac("veth3"), mac("veth3")], add=[mac("veth4")])
    assert nft.missing([mac("veth1"), mac("veth3"), mac("veth4")]) == [mac("veth1"), mac("veth3")]
    nft.change(delete=[mac("veth1"), mac("veth2")])


def test_deletions_come_before_additions(nft: Nft) -> None:
    load(nft)
    nft.change(add=[mac("veth1")])
    nft.change(add=[mac("veth1")], delete=[mac("veth1")])
    assert nft.missing([mac("veth1")]) == []


def test_a_change_is_all_or_nothing(nft: Nft) -> None:
    load(nft)
    nft.change(add=[mac("veth1")])
    with pytest.raises(NftError):
        nft.change(add=[mac("veth2"), port("veth2")._replace(set="nowhere")], delete=[mac("veth1")])
    assert nft.missing([mac("veth1"), mac("veth2")]) == [mac("veth2")]


def test_a_verdict_is_part_of_what_is_there(nft: Nft) -> None:
    load(nft)
    nft.run("add chain bridge t other")
    nft.change(add=[jump("10.0.0.5")])
    elsewhere = jump("10.0.0.5", "other")
    assert nft.missing([elsewhere]) == [elsewhere]
    with pytest.raises(NftError) as caught:
        nft.change(add=[elsewhere])
    assert caught.value.errno == errno.EEXIST
    nft.change(delete=[elsewhere], add=[elsewhere])
    assert nft.missing([elsewhere]) == []


def test_four_thousand_ports_are_one_change(nft: Nft) -> None:
    load(nft)
    everything = [e for n in range(4000) for e in (mac(f"veth{n}", n), port(f"veth{n}"))]
    nft.change(add=everything)
    assert nft.missing(everything) == []
    nft.change(delete=everything[:-2])
    assert len(nft.missing(everything)) == 7998


def test_a_newer_text_takes_the_place_of_an_older_and_keeps_the_elements(nft: Nft) -> None:
    load(nft)
    nft.run("add chain bridge t beyond")
    nft.change(add=[mac("veth1"), jump("10.0.0.5", "beyond")])
    load(nft, NEWER, "guard_v2")
    assert chains(nft, "guard_v1", "guard_v2", "more", "beyond") == ["guard_v2", "more", "beyond"]
    assert len(nft.rules("bridge", "t", "more")) == 1
    assert nft.missing([mac("veth1"), jump("10.0.0.5", "beyond")]) == []


def test_a_chain_is_deleted_with_its_rules_once_nothing_leads_to_it(nft: Nft) -> None:
    load(nft)
    before = nft.chains("bridge", "t")
    nft.run("add chain bridge t beyond\nadd rule bridge t beyond accept")
    assert set(nft.chains("bridge", "t")) == {*before, "beyond"}
    nft.change(add=[jump("10.0.0.5", "beyond")])
    nft.delete_chain("bridge", "t", "beyond")
    assert len(nft.rules("bridge", "t", "beyond")) == 1
    nft.change(delete=[jump("10.0.0.5", "beyond")])
    for _ in range(2):
        nft.delete_chain("bridge", "t", "beyond")
        assert nft.chains("bridge", "t") == before
    nft.delete_chain("bridge", "elsewhere", "beyond")
    assert nft.chains("bridge", "elsewhere") == []


def test_no_transaction_is_lost_on_a_chain_that_stays(nft: Nft, monkeypatch: pytest.MonkeyPatch) -> None:
    load(nft)
    nft.run("add chain bridge t beyond\nadd rule bridge t beyond accept")
    nft.change(add=[jump("10.0.0.5", "beyond")])
    begun: list[object] = []

    def refuse(_connection: wire.NftConnection, messages: object) -> dict[int, int]:
        begun.append(messages)
        return {0: errno.EBUSY}

    monkeypatch.setattr(wire.NftConnection, "transaction", refuse)
    for chain in ("beyond", "missing"):
        nft.delete_chain("bridge", "t", chain)
    assert begun == [], "each that the kernel refuses takes it 10 ms and more"


def test_an_older_program_leaves_a_newer_table_and_uses_its_sets(nft: Nft) -> None:
    load(nft, NEWER, "guard_v2")
    load(nft)
    assert chains(nft, "guard_v1", "guard_v2") == ["guard_v2"]
    assert loaded(nft, "bridge", "t", "guard_v1", TEXT)
    nft.change(add=[mac("veth1")])
    assert nft.missing([mac("veth1")]) == []


@pytest.mark.parametrize(
    "command",
    [
        "flush ruleset",
        "flush table bridge t",
        "flush chain bridge t guard_v1",
        "flush chain bridge t more",
        "delete table bridge t",
    ],
)
def test_what_was_flushed_is_noticed_and_loaded_again(nft: Nft, command: str) -> None:
    load(nft)
    nft.change(add=[mac("veth1")])
    nft.run(command)
    assert not loaded(nft, "bridge", "t", "guard_v1", TEXT)
    load(nft)
    assert loaded(nft, "bridge", "t", "guard_v1", TEXT)
    found = nft.chain("bridge", "t", "guard_v1")
    assert found is not None
    assert found.use == 3
    assert len(nft.rules("bridge", "t", "more")) == 1


def test_a_text_that_is_refused_leaves_no_table(nft: Nft) -> None:
    with pytest.raises(NftError):
        load(nft, "table bridge t {\n\tchain guard_v1 {\n\t}\n}\nand nonsense\n")
    with pytest.raises(NftError):
        nft.run("delete table bridge t\n")


def test_counters_are_read_by_their_names(nft: Nft) -> None:
    assert nft.counters("bridge", "t") == {}
    counted = "\tcounter seen { packets 7 bytes 700; }\n\tcounter other { packets 0 bytes 0; }\n"
    nft.ensure("bridge", "t", "guard_v1", TEXT.replace("bridge t {\n", f"bridge t {{\n{counted}"))
    nft.ensure("bridge", "u", "guard_v1", TEXT.replace("bridge t {", "bridge u {"))
    # The kernel in memory counts nothing, and begins with nothing.
    assert nft.counters("bridge", "t") in ({"seen": 7, "other": 0}, {"seen": 0, "other": 0})
    assert nft.counters("bridge", "u") == {}


def test_rules_show_their_comment_and_where_they_jump(nft: Nft) -> None:
    nft.run(
        "table inet theirs {\n\tchain down {\n\t}\n\tchain base {\n"
        '\t\tmeta l4proto tcp jump down comment "for them"\n\t\tcounter\n\t\tgoto down\n\t}\n}\n'
    )
    found = nft.rules("inet", "theirs", "base")
    assert [(rule.comment, rule.target) for rule in found] == [("for them", "down"), ("", ""), ("", "down")]
    nft.run(f"delete rule inet theirs base handle {found[1].handle}")
    assert [rule.handle for rule in nft.rules("inet", "theirs", "base")] == [
        found[0].handle,
        found[2].handle,
    ]


def test_text_that_is_none_is_refused_whole(nft: Nft) -> None:
    with pytest.raises(NftError) as caught:
        nft.run("add table bridge t\nthis is nothing\n")
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(NftError):
        nft.run("delete table bridge t\n")


def nets(*keys: str) -> list[Element]:
    return [Element("inet", "r", "nets", ("ipv4_addr",), (key,)) for key in keys]


def pairs(*keys: tuple[str, str]) -> list[Element]:
    return [Element("inet", "r", "pairs", ("ipv4_addr", "ipv4_addr"), key) for key in keys]


def test_intervals_come_and_go(nft: Nft) -> None:
    nft.ensure("inet", "r", "use_v1", RANGES)
    some = nets("10.0.0.0/24", "10.0.1.5-10.0.1.9", "192.168.0.0/16", "255.255.255.0/24")
    more = pairs(("10.0.0.5", "10.0.0.0/24"), ("10.0.1.0/24", "10.0.0.0/8"))
    nft.change(add=[*some, *more])
    assert nft.missing([*some, *more]) == []
    wider = pairs(("10.0.0.5", "10.0.0.0/16"))
    assert nft.missing(wider) == wider
    nft.change(delete=[some[0], more[0]])
    assert nft.missing([*some, *more]) == [some[0], more[0]]


# From here on only the real one is meant.


def test_a_table_to_be_created_must_not_be_there_and_brings_its_elements(nft: Nft) -> None:
    script = """\
create table ip c
table ip c {
	set pairs {
		type inet_proto . inet_service
		flags interval
		elements = { 6 . 80, 17 . 5000-5010 }
	}
	chain use {
		meta l4proto . th dport @pairs counter accept comment "a pair"
	}
}
"""
    pair = Element("ip", "c", "pairs", ("inet_proto", "inet_service"), ("6", "80"))
    others = [pair._replace(key=key) for key in (("17", "5000-5010"), ("17", "80"), ("6", "5000-5010"))]
    nft.run(script)
    assert nft.missing([pair, *others]) == others[1:]
    assert [rule.comment for rule in nft.rules("ip", "c", "use")] == ["a pair"]
    with pytest.raises(NftError, match="File exists"):
        nft.run(script)
    removal = "add table ip c\ndelete table ip c\n"
    nft.run(removal)
    assert nft.rules("ip", "c", "use") == []
    nft.run(removal)


class Linux(NamedTuple):
    """The real one in a namespace of its own."""

    netns: str
    nft: Nft


@pytest.fixture
def linux() -> Iterator[Linux]:
    with namespace() as path, netns.opened(path) as inside, open_nft(inside) as opened:
        yield Linux(path, opened)


def listed(path: str) -> str:
    return Sandbox(path).run("nft", "list", "ruleset").stdout


def test_the_same_elements_as_text_are_the_same_elements(linux: Linux) -> None:
    nft = linux.nft
    load(nft)
    port_elements = [mac("veth1"), port("veth1"), jump("10.0.0.5")]
    nft.run(render(add=port_elements))
    assert nft.missing(port_elements) == []
    nft.change(add=port_elements)
    nft.run(render(delete=port_elements))
    assert nft.missing(port_elements) == port_elements


def test_nothing_is_executed_or_listed_once_a_table_is_there(
    linux: Linux, monkeypatch: pytest.MonkeyPatch
) -> None:
    nft = linux.nft
    load(nft)

    def never(script: str) -> str:
        raise AssertionError(f"nft would have listed everything for {script!r}")

    monkeypatch.setattr(script, "run", never)
    load(nft)
    nft.change(add=[mac("veth1")], delete=[mac("veth2")])
    assert nft.missing([mac("veth1")]) == []


def test_foreign_tables_stay_byte_for_byte(linux: Linux) -> None:
    nft = linux.nft
    chains = "".join(f"\tchain KUBE-SVC-{n} {{\n\t\tip daddr 10.96.0.1 counter\n\t}}\n" for n in range(2000))
    bridge = "table bridge nat {\n\tchain PREROUTING {\n\t\tcounter\n\t}\n}\n"
    nft.run(f"table ip theirs {{\n{chains}}}\n{bridge}")
    before = listed(linux.netns)
    load(nft)
    nft.change(add=[mac("veth1")])
    nft.change(delete=[mac("veth1")])
    nft.run("delete table bridge t")
    assert listed(linux.netns) == before


@pytest.mark.parametrize("golden", sorted(DATA.glob("*.nft")), ids=lambda path: path.stem)
def test_nft_takes_the_golden_files_and_can_list_them(golden: Path) -> None:
    with namespace() as path:
        # Rules know a link that is there already by its number.
        for link in ("eth0", "eth0-nic", "pod16477688c0e", "tap0"):
            Sandbox(path).run("ip", "link", "add", link, "type", "bridge")
        Sandbox(path).run("nft", "-c", "-f", str(golden))
        Sandbox(path).run("nft", "-f", str(golden))
        assert "chain" in listed(path)


@pytest.mark.parametrize(
    ("text", "of"), [(guards.TEXT, "guards"), (ip_masq.TEXT, "masquerade")], ids=["guards", "masquerade"]
)
def test_no_rule_looks_at_the_ethernet_headers_type(text: str, of: str) -> None:
    # It is the tag's in a tagged frame, and nft adds this look of itself where a rule does not say `meta`.
    with namespace() as path:
        shown = Sandbox(path).run("nft", "--debug=netlink", "-f", "-", input=text)
    assert "lookup" in shown.stdout + shown.stderr, of
    assert "link header + 12" not in shown.stdout + shown.stderr


RUN_ALONE = """
import sys
from cnvnet.kernel.nft.tables import open_nft
if sys.argv[1] == "program":
    sys.modules["ctypes"] = None
with open_nft() as nft:
    nft.ensure("bridge", "t", "guard_v1", sys.stdin.read())
    print(nft.chain("bridge", "t", "guard_v1").use)
"""


def _run_alone(argv: Sequence[str], **env: str) -> subprocess.CompletedProcess[str]:
    with namespace() as path:
        command = [shutil.which("nsenter") or "", f"--net={path}", *argv]
        return subprocess.run(command, input=TEXT, env=env, text=True, capture_output=True, check=False)


@pytest.mark.parametrize("way", ["library", "program"])
def test_a_table_is_loaded_by_the_library_or_the_program(way: str) -> None:
    done = _run_alone([sys.executable, "-c", RUN_ALONE, way])
    assert done.stdout == "3\n", done.stderr


MANY_DESCRIPTORS = """\
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
while os.open('/dev/null', os.O_RDONLY) < 1100: pass
"""


def test_a_process_with_many_descriptors_loads_a_table() -> None:
    """libnftables would end it."""
    done = _run_alone([sys.executable, "-c", MANY_DESCRIPTORS + RUN_ALONE, "library"])
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


@pytest.mark.parametrize(
    ("way", "script", "reason"),
    [
        ("program", "", "libnftables.so.1 is not here"),
        ("library", MANY_DESCRIPTORS, "libnftables.so.1 works with 900 open files at most"),
    ],
)
def test_without_library_and_program_the_error_names_the_remedy(way: str, script: str, reason: str) -> None:
    script += "from cnvnet.kernel.nft import script; script.DEFAULT_PATH = '/nowhere'\n" + RUN_ALONE
    done = _run_alone([sys.executable, "-c", script, way], PATH="/nowhere")
    assert f"{reason}, nor is the nft program: install the package nftables" in done.stderr


def test_without_rights_the_error_names_the_capability() -> None:
    # As root, since a checkout in /root is readable by no other user.
    dropped = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    done = _run_alone([*dropped, sys.executable, "-c", RUN_ALONE, "library"], PATH="/usr/sbin:/usr/bin")
    assert "CAP_NET_ADMIN" in done.stderr


def test_many_chains_are_asked_for_at_once(linux: Linux) -> None:
    nft, chains = linux.nft, [f"c{number}" for number in range(60)]
    rules = "\n".join(f"add chain inet many {name}\nadd rule inet many {name} accept" for name in chains)
    nft.run(f"add table inet many\n{rules}\nadd rule inet many c0 jump c1")
    found = nft.uses("inet", "many", [*chains, "missing"])
    assert found == {**dict.fromkeys(chains, 1), "c0": 2, "c1": 2}
    assert nft.uses("inet", "no_table", chains) == {}
