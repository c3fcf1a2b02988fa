"""The plugin behind the skeleton, as a process or the agent runs it: nothing gets out as a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnvnet.call_context import captured
from cnvnet.cni import skel
from cnvnet.cni.errors import CNIError
from cnvnet.cni.request import Request, parse
from cnvnet.cni.result import render
from cnvnet.ipam.static_ip.plugin import StaticIP, load
from cnvnet.ipam.store import data_dirs
from cnvnet.ipam.store.ref import SQLITE, StoreRef
from cnvnet.ipam.store.sqlite import Sqlite
from tests.fakes.rerun import RerunSqlite
from tests.unit.ipam.static_ip.configured import IPAM, JSON

CONFIG = {"cniVersion": "1.1.0", "name": "blue", "ipam": {"subnet": "10.1.0.0/24"}}


def environment(
    folder: Path, container: str = "c1", args: str = "VM_NAME=vm1", command: str = "ADD"
) -> dict[str, str]:
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": "/run/netns/nowhere",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/nowhere",
        "CNI_ARGS": args,
        "CNVNET_STATEDIR": str(folder),
    }


def request(folder: Path, container: str = "c1", args: str = "VM_NAME=vm1", **keys: Any) -> Request:
    return parse(environment(folder, container, args), json.dumps({**CONFIG, **keys}).encode())


@pytest.fixture(params=[Sqlite, RerunSqlite])
def plugin(request: pytest.FixtureRequest) -> StaticIP:
    return StaticIP(lambda store: request.param(store.location))


def test_the_mac_comes_with_the_assignment_and_is_the_same_after_a_restart(
    plugin: StaticIP, tmp_path: Path
) -> None:
    first = plugin.assign(request(tmp_path))
    plugin.release(request(tmp_path))
    again = plugin.assign(request(tmp_path, "c2"))
    assert first.mac.startswith("0a:63:")
    assert (again.mac, again.result, again.role) == (first.mac, first.result, "active")


def test_the_mac_that_is_asked_for_is_handed_back(plugin: StaticIP, tmp_path: Path) -> None:
    wished = {"mac": "0A:63:00:00:00:07"}
    assert plugin.assign(request(tmp_path, runtimeConfig=wished)).mac == "0a:63:00:00:00:07"


def test_a_network_without_macs_hands_none_over(plugin: StaticIP, tmp_path: Path) -> None:
    ipam = {"subnet": "10.1.0.0/24", "mac": "off"}
    assert plugin.assign(request(tmp_path, ipam=ipam)).mac == ""


def test_the_role_tells_a_target_from_the_rest(plugin: StaticIP, tmp_path: Path) -> None:
    plugin.assign(request(tmp_path))
    assert plugin.assign(request(tmp_path, "c2", "VM_NAME=vm1;VM_ROLE=target")).role == "target"
    plugin.release(request(tmp_path))
    # A retry after the migration has ended is about an active pod.
    assert plugin.assign(request(tmp_path, "c2", "VM_NAME=vm1;VM_ROLE=target")).role == "active"


@pytest.mark.parametrize(
    ("release", "warned"), [("vm-deleted", True), ("never", True), ("pod", False), (None, False)]
)
def test_in_kubernetes_an_add_says_that_a_release_policy_for_vms_has_no_effect(
    plugin: StaticIP, tmp_path: Path, release: str | None, warned: bool
) -> None:
    ipam = {"subnet": "10.1.0.0/24", "nodeLocal": True, "release": release}
    pod = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=virt-launcher-vm1"
    with captured() as lines:
        plugin.assign(request(tmp_path, "c1", pod, ipam=ipam))
        plugin.status(request(tmp_path, "c1", pod, ipam=ipam))
        plugin.assign(request(tmp_path, "c2", ipam=ipam))
    text = (
        f"ipam.release: {release} has no effect in Kubernetes without credentials for its API: "
        "virt-launcher-vm1 is not known to be a virtual machine, its address lasts as long as the container"
    )
    assert lines == ([text] if warned else [])


def test_a_holder_says_which_pod_of_which_node_it_is(plugin: StaticIP, tmp_path: Path) -> None:
    ipam = {"subnet": "10.1.0.0/24", "nodeLocal": True}
    name = "virt-launcher-" + "a" * 239
    pod = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=prod;K8S_POD_NAME={name};K8S_POD_UID=0c8e"
    env = {**environment(tmp_path, "c1", pod), "CNVNET_NODE": "worker-1"}
    plugin.assign(parse(env, json.dumps({**CONFIG, "ipam": ipam}).encode()))
    plugin.assign(parse({**env, "CNI_CONTAINERID": "c2", "CNI_ARGS": ""}, json.dumps(CONFIG).encode()))
    in_kubernetes, outside = Sqlite(str(tmp_path)).look(
        lambda ledger: (ledger.held_by("blue", each, "eth0") for each in ("c1", "c2"))
    )
    assert in_kubernetes is not None
    assert outside is not None
    assert in_kubernetes.holders[0][-3:] == ("worker-1", f"prod/{name}", "0c8e")
    assert outside.holders[0][-3:] == ("", "", "")


def test_looking_where_nothing_was_stored_makes_nothing(tmp_path: Path) -> None:
    assert Sqlite(str(tmp_path / "state")).look(lambda ledger: list(ledger.leases())) == []
    assert list(tmp_path.iterdir()) == []


def test_a_call_whose_leases_are_lost_says_so_and_a_del_succeeds(plugin: StaticIP, tmp_path: Path) -> None:
    plugin.assign(request(tmp_path))
    for path in tmp_path.glob("leases.db*"):
        path.unlink()
    text = (
        f"{tmp_path}/leases.db is missing, but leases were kept here: "
        "restore it, or cnvctl leases init --network blue starts an empty one"
    )
    result: Any = {"prevResult": {"cniVersion": "1.1.0", "ips": []}, "cni.dev/valid-attachments": []}
    for call in (plugin.assign, plugin.check, plugin.gc):
        with pytest.raises(CNIError) as caught:
            call(request(tmp_path, "c2", **result))
        assert (caught.value.code, caught.value.msg) == (5, text)
    with pytest.raises(CNIError, match="leases were kept here") as caught:
        plugin.status(request(tmp_path))
    assert caught.value.code == 50
    with captured() as lines:
        plugin.release(request(tmp_path))
    assert lines == [f"{text}; nothing was released"]
    assert not (tmp_path / "leases.db").exists()


def test_a_call_works_in_any_year(plugin: StaticIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ipam = {"subnet": "10.1.0.0/29", "release": "pod", "cooldown": "1d"}

    def overflowing() -> float:
        raise OverflowError("timestamp too large to convert to C _PyTime_t")

    for number, clock in enumerate((time.time, overflowing, time.time)):
        monkeypatch.setattr("time.time", clock)
        asked = request(tmp_path, f"c{number}", f"VM_NAME=vm{number}", ipam=ipam)
        plugin.assign(asked)
        plugin.release(asked)
    monkeypatch.undo()
    # The first one's cooldown was over in the year 2262.
    for number in (7, 8, 9):
        plugin.assign(request(tmp_path, f"c{number}", f"VM_NAME=vm{number}", ipam=ipam))
    with pytest.raises(CNIError, match=r"3 in use, 2 cooling down \(the first until ") as caught:
        plugin.assign(request(tmp_path, "c10", "VM_NAME=vm10", ipam=ipam))
    last = Sqlite(str(tmp_path)).look(lambda ledger: max(each.until for each in ledger.cooldowns()))
    assert last <= time.time() + 86400, caught.value.msg


def test_a_del_ends_the_hold_where_the_record_says_it_is(plugin: StaticIP, tmp_path: Path) -> None:
    was, now = tmp_path / "was", tmp_path / "now"
    given = plugin.assign(request(was))
    assert given.store == StoreRef(SQLITE, str(was))
    plugin.release(request(now))
    assert Sqlite(str(was)).knows("blue", "c1", "eth0")
    plugin.release(request(now), given.store)
    assert not Sqlite(str(was)).knows("blue", "c1", "eth0")
    assert not now.exists()


def test_check_and_gc_go_where_the_record_says(plugin: StaticIP, tmp_path: Path) -> None:
    was, now = tmp_path / "was", tmp_path / "now"
    given = plugin.assign(request(was))
    added: Any = {"prevResult": render(given.result, "1.1.0")}
    with pytest.raises(CNIError, match="no lease for container c1"):
        plugin.check(request(now, **added))
    plugin.check(request(now, **added), given.store)
    gone: Any = {"cni.dev/valid-attachments": []}
    plugin.gc(request(now, **gone))
    assert Sqlite(str(was)).knows("blue", "c1", "eth0")
    plugin.gc(request(now, **gone), given.store)
    assert not Sqlite(str(was)).knows("blue", "c1", "eth0")
    assert not now.exists()


def test_no_command_takes_a_store_of_a_newer_version_for_ours(tmp_path: Path) -> None:
    newer, plugin = StoreRef("of-tomorrow", "there"), StaticIP()
    added: Any = {"prevResult": {"cniVersion": "1.1.0", "ips": []}, "cni.dev/valid-attachments": []}
    for call in (plugin.release, plugin.check, plugin.gc):
        with pytest.raises(
            CNIError, match="store 'of-tomorrow': this version knows sqlite and kubernetes only"
        ) as caught:
            call(request(tmp_path, **added), newer)
        assert caught.value.code == 11


def test_an_assignment_can_be_undone(plugin: StaticIP, tmp_path: Path) -> None:
    asked = request(tmp_path)
    plugin.revert(asked, plugin.assign(asked))
    assert (
        Sqlite(str(tmp_path)).run(lambda ledger: list(ledger.connection.execute("SELECT * FROM addresses")))
        == []
    )


def test_a_target_outside_the_ranges_is_refused_and_holds_nothing(plugin: StaticIP, tmp_path: Path) -> None:
    plugin.assign(request(tmp_path))
    done = skel.run(
        "static-ip",
        load,
        environment(tmp_path, "c2", "VM_NAME=vm1;VM_ROLE=target"),
        lambda: json.dumps({**CONFIG, "ipam": {"subnet": "10.2.0.0/24"}}).encode(),
    )
    assert "is in none of its ranges" in json.loads(done.stdout)["msg"]
    assert Sqlite(str(tmp_path)).run(lambda ledger: ledger.held_by("blue", "c2", "eth0")) is None


@settings(deadline=None)
@given(JSON | IPAM, JSON, JSON, st.sampled_from(["ADD", "CHECK", "DEL", "GC", "STATUS"]))
def test_whatever_the_configuration_there_is_a_result_or_an_error_and_an_error_changes_nothing(
    ipam: Any, runtime: Any, args: Any, command: str
) -> None:
    document = {**CONFIG, "ipam": ipam, "runtimeConfig": runtime, "args": {"cni": args}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "state"
        env = environment(folder, command=command)
        done = skel.run("static-ip", load, env, lambda: json.dumps(document).encode())
        assert b"Traceback" not in done.stderr
        if done.exit:
            error = json.loads(done.stdout)
            assert done.exit == 1
            assert (error["code"] in (7, 50)) or "dataDir" in str(ipam), error
            assert not folder.exists()


def test_a_store_that_cannot_be_read_hides_no_other_one(plugin: StaticIP, tmp_path: Path) -> None:
    first, broken, last = (tmp_path / name for name in ("a", "b", "c"))
    for folder in (first, broken, last):
        plugin.add(request(folder))
    (broken / "leases.db").write_bytes(b"x" * 5000)
    counted: list[int] = []
    with pytest.raises(CNIError, match=str(broken)):
        # What comes before the error counts.
        counted.extend(usage.active for usage in plugin.usage(str(first), int(time.time())))
    assert counted == [1, 1]


FORBIDDEN = {
    "netaddr",
    "pyroute2",
    "dataclasses",
    "logging",
    "subprocess",
    "argparse",
    "pathlib",
    "asyncio",
    "ctypes",
}


def test_importing_the_plugin_costs_what_it_must() -> None:
    program = "import json, sys; {}; print(json.dumps(sorted(sys.modules)))"

    def loaded(statement: str) -> set[str]:
        command = [sys.executable, "-I", "-c", program.format(statement)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return set(json.loads(done.stdout))

    # site may import anything (an editable install does), so only what the statement adds counts.
    before = loaded("pass")
    assert not (loaded("import cnvnet.ipam.static_ip.plugin") - before) & (FORBIDDEN | {"sqlite3"})
    assert "cnvnet.ipam.static_ip.plugin" not in loaded("import cnvnet.ipam.static_ip")


# -- leases in a dataDir


def elsewhere_ipam(folder: Path) -> dict[str, Any]:
    return {"subnet": "10.1.0.0/24", "dataDir": str(folder)}


def test_a_folder_that_a_network_names_is_listed_once_an_add_has_written_there(
    plugin: StaticIP, tmp_path: Path
) -> None:
    state, own = tmp_path / "state", tmp_path / "own"
    plugin.assign(request(state))
    assert data_dirs.read(str(state)) == ((), "")
    with pytest.raises(CNIError):  # no such address: nothing is kept there
        plugin.assign(request(state, args="VM_NAME=vm1;IP=10.9.0.1", ipam=elsewhere_ipam(own)))
    assert data_dirs.read(str(state)) == ((), "")
    for container in ("c1", "c2"):
        plugin.assign(request(state, container, f"VM_NAME=vm-{container}", ipam=elsewhere_ipam(own)))
    assert data_dirs.read(str(state)) == ((str(own),), "")
    # The same process does not look again, another one does.
    Path(data_dirs.path(str(state))).unlink()
    plugin.assign(request(state, "c3", "VM_NAME=vm3", ipam=elsewhere_ipam(own)))
    assert data_dirs.read(str(state)) == ((), "")
    StaticIP().assign(request(state, "c4", "VM_NAME=vm4", ipam=elsewhere_ipam(own)))
    assert data_dirs.read(str(state)) == ((str(own),), "")


def test_a_list_that_cannot_be_written_is_no_reason_to_refuse_an_add(
    plugin: StaticIP, tmp_path: Path
) -> None:
    state, own = tmp_path / "state", tmp_path / "own"
    state.touch()  # no folder can be made of it
    with captured() as lines:
        plugin.assign(request(state, ipam=elsewhere_ipam(own)))
    (line,) = lines
    assert line.startswith(f"{state}/leases.folders: not a directory: ")
    assert line.endswith(f"by --data-dir {own} only")


def test_the_counts_are_also_those_of_listed_folders(plugin: StaticIP, tmp_path: Path) -> None:
    state, own = tmp_path / "state", tmp_path / "own"
    plugin.assign(request(state, ipam=elsewhere_ipam(own)))
    assert [each.active for each in StaticIP().usage(str(state), 0)] == [1]
    with Path(data_dirs.path(str(state))).open("a") as listed:
        listed.write("relative\n")
    counted = StaticIP().usage(str(state), 0)
    assert next(counted).active == 1
    with pytest.raises(CNIError, match="is no absolute path"):
        next(counted)
