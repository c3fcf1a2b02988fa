"""Other plugins, run as real processes."""

from __future__ import annotations

import json
import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import pytest

from cnvnet.call_context import Exec, captured, on_behalf_of
from cnvnet.cni import delegate
from cnvnet.cni.delegate import (
    delegate_add,
    delegate_check,
    delegate_delete,
    delegate_gc,
    delegate_status,
    find,
)
from cnvnet.cni.errors import CNIError, InvalidConfig
from cnvnet.cni.request import Request, parse
from cnvnet.cni.result import IP, Result
from tests.unit.cni.test_environment import COMPLETE


def plugin(folder: Path, script: str, name: str = "ipam") -> None:
    """An executable of that name which does what the shell script says."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def request(folder: Path, config: dict[str, Any] | None = None, **env: str) -> Request:
    raw = json.dumps({"name": "net", "cniVersion": "1.0.0", **(config or {})}).encode()
    return parse({**COMPLETE, "CNI_PATH": str(folder), **env}, raw)


def failure(folder: Path, script: str) -> CNIError:
    plugin(folder, script)
    with pytest.raises(CNIError) as caught:
        delegate_add(request(folder), "ipam")
    return caught.value


@pytest.mark.parametrize(
    ("name", "path", "msg"),
    [
        ("", "/x", "no plugin name provided"),
        ("a/b", "/x", "invalid plugin name: a/b"),
        ("../x", "/x", "invalid plugin name: ../x"),
        ("a", "", "no paths provided"),
        ("a", "/nowhere:/else", 'failed to find plugin "a" in path [/nowhere /else]'),
        ("usr", "/", 'failed to find plugin "usr" in path [/]'),
    ],
)
def test_a_plugin_that_cannot_be_found_is_named(name: str, path: str, msg: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        find(name, path)
    assert caught.value.msg == msg


def test_the_first_regular_file_is_taken_whether_executable_or_not(tmp_path: Path) -> None:
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a" / "x").mkdir()
    (tmp_path / "b" / "x").touch()
    (tmp_path / "c" / "x").touch()
    found = find("x", ":".join(str(tmp_path / folder) for folder in ("a", "b", "c")))
    assert found == str(tmp_path / "b" / "x")


def test_the_working_directory_is_no_place_for_plugins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidConfig):
        find("x", ":")


def test_the_delegate_gets_the_whole_stdin_and_environment(tmp_path: Path) -> None:
    plugin(tmp_path, f'cat > {tmp_path}/stdin; env > {tmp_path}/env; echo "{{}}"')
    call = request(tmp_path, {"extra": "x" * 300_000}, SOMETHING="else", ODD="\udcff")
    delegate_delete(call, "ipam")
    assert (tmp_path / "stdin").read_bytes() == call.raw
    lines = (tmp_path / "env").read_bytes().splitlines()
    assert b"SOMETHING=else" in lines
    assert b"ODD=\xff" in lines
    assert b"CNI_COMMAND=DEL" in lines
    assert b"CNI_CONTAINERID=dummy-0" in lines


@pytest.mark.parametrize(
    ("run", "command"),
    [
        (delegate_delete, "DEL"),
        (delegate_check, "CHECK"),
        (delegate_gc, "GC"),
        (delegate_status, "STATUS"),
        (delegate_add, "ADD"),
    ],
)
def test_each_command_is_passed_on(
    tmp_path: Path, run: Callable[[Request, str], object], command: str
) -> None:
    plugin(tmp_path, f"printf %s $CNI_COMMAND > {tmp_path}/command; echo null")
    run(request(tmp_path), "ipam")
    assert (tmp_path / "command").read_text() == command


ADDRESS = Result(ips=(IP(IPv4Interface("10.0.0.5/24")),))


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ('{"ips": [{"address": "10.0.0.5/24"}]}', ADDRESS),
        ('{"cniVersion": "", "ips": [{"address": "10.0.0.5/24"}]}', ADDRESS),
        ('{"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.0.0.5/24"}]}', ADDRESS),
        ('{"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.5/24"}}', ADDRESS),
        ("null", Result()),
        ("{}", Result()),
    ],
)
def test_its_result_is_read_in_the_version_it_names(tmp_path: Path, printed: str, expected: Result) -> None:
    plugin(tmp_path, f"cat > /dev/null; echo '{printed}'")
    assert delegate_add(request(tmp_path), "ipam") == expected


@pytest.mark.parametrize(
    ("printed", "msg"),
    [
        ("", "ipam: its result is not JSON: unexpected end of JSON input"),
        ("[]", "ipam: its result is not JSON: expected an object, got a list"),
        ('{"ips": [{"address": "x"}]}', 'ipam: its result: ips[0].address: "x" is not in CIDR notation'),
        ('{"cniVersion": "3"}', 'ipam: its result: cniVersion: unsupported CNI result version "3"'),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, printed: str, msg: str) -> None:
    assert failure(tmp_path, f"echo '{printed}'").msg == msg


def test_its_error_is_passed_on_whole(tmp_path: Path) -> None:
    error = failure(
        tmp_path, """echo '{"cniVersion": "1.0.0", "code": 11, "msg": "later", "details": "d"}'; exit 1"""
    )
    assert (error.code, error.msg, error.details) == (11, "later", "d")


@pytest.mark.parametrize(
    ("script", "msg"),
    [
        ("exit 3", "netplugin failed with no error message: exit status 3"),
        ("kill -9 $$", "netplugin failed with no error message: signal: killed"),
        ("echo 'no luck' >&2; exit 2", 'netplugin failed: "no luck\\n": exit status 2'),
        (
            "printf oops; exit 1",
            'netplugin failed but error parsing its diagnostic message "oops": '
            "expecting value: line 1 column 1",
        ),
        (
            "printf '[]'; exit 1",
            'netplugin failed but error parsing its diagnostic message "[]": not an object',
        ),
        ("""printf '{"msg": "m"}'; exit 1""", "m"),
    ],
)
def test_a_failure_without_an_error_object_is_described(tmp_path: Path, script: str, msg: str) -> None:
    error = failure(tmp_path, script)
    assert (error.code, error.msg) == (999, msg)


def test_a_file_that_cannot_be_started_is_described(tmp_path: Path) -> None:
    (tmp_path / "ipam").write_text("#!/nowhere/sh\n")
    (tmp_path / "ipam").chmod(0o755)
    with pytest.raises(CNIError) as caught:
        delegate_add(request(tmp_path), "ipam")
    expected = (
        f"netplugin failed with no error message: fork/exec {tmp_path}/ipam: no such file or directory"
    )
    assert caught.value.msg == expected


def test_what_it_says_on_stderr_is_forwarded(tmp_path: Path) -> None:
    plugin(tmp_path, "cat > /dev/null; echo one >&2; echo two >&2; echo null")
    with captured() as lines:
        delegate_delete(request(tmp_path), "ipam")
    assert lines == ["one", "two"]


def test_it_may_print_much_before_it_reads(tmp_path: Path) -> None:
    much = "head -c 300000 /dev/zero | tr '\\0'"
    plugin(tmp_path, f"{much} x >&2; {much} ' '; echo null; cat >&2")
    with captured() as lines:
        assert delegate_add(request(tmp_path, {"extra": "y" * 300_000}), "ipam") == Result()
    assert sum(len(line) for line in lines) > 600_000


def test_it_need_not_read_at_all(tmp_path: Path) -> None:
    plugin(tmp_path, "exec 0<&-; echo null")
    delegate_add(request(tmp_path, {"extra": "y" * 300_000}), "ipam")


def test_a_file_that_is_being_written_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A script is never busy, a binary is.
    program = tmp_path / "ipam"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o755)
    monkeypatch.setattr(delegate, "_BUSY_SECONDS", 0.05)
    writer = program.open("r+b")
    with pytest.raises(CNIError, match=r"fork/exec .*: text file busy$"):
        delegate_delete(request(tmp_path), "ipam")
    later = threading.Timer(0.1, writer.close)
    later.start()
    delegate_delete(request(tmp_path), "ipam")
    later.join()


def test_a_caller_that_ignores_its_children_still_learns_how_they_end(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert failure(tmp_path, "exit 3").msg == "netplugin failed with no error message: exit status 3"
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_it_is_killed_by_a_broken_pipe_as_any_program(tmp_path: Path) -> None:
    plugin(tmp_path, "grep SigIgn /proc/self/status >&2; echo null")
    with captured() as lines:
        delegate_delete(request(tmp_path), "ipam")
    ignored = int(lines[0].split()[1], 16)
    assert not ignored & 1 << (signal.SIGPIPE - 1)


class Impatient:
    """A caller whose programs may take half a second."""

    def open(self, path: str, flags: int) -> int:
        return os.open(path, flags)

    def stat(self, path: str) -> os.stat_result:
        return os.stat(path)

    def program(self, path: str) -> Exec:
        return Exec(path, [path], seconds=0.5)


def test_one_that_takes_too_long_is_killed_with_all_that_it_has_started(tmp_path: Path) -> None:
    plugin(tmp_path, f"sleep 1000 & echo $! $$ >{tmp_path}/pids; wait")
    with on_behalf_of(Impatient()):
        error = failure(tmp_path, (tmp_path / "ipam").read_text().partition("\n")[2])
    assert (error.code, error.msg) == (11, f"{tmp_path}/ipam: no answer in 0.5 seconds: it has been killed")
    deadline = time.monotonic() + 30
    while running(tmp_path / "pids") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running(tmp_path / "pids") == []


def running(pids: Path) -> list[str]:
    """Those of the processes that have not ended, be they waited for or not."""
    return [
        pid
        for pid in pids.read_text().split()
        if Path(f"/proc/{pid}").exists()
        and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    ]


def test_one_that_never_stops_talking_is_killed(tmp_path: Path) -> None:
    error = failure(tmp_path, "exec cat /dev/zero")
    assert (error.code, "more than 16777216 bytes: it has been killed" in error.msg) == (11, True)


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    plugin(tmp_path, "exit 1")
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(CNIError):
            delegate_delete(request(tmp_path), "ipam")
    (tmp_path / "ipam").chmod(stat.S_IRUSR)
    assert len(os.listdir("/proc/self/fd")) == len(before)
