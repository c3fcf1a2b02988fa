"""The protocol as every executable speaks it, seen from outside: one made here on the skeleton, and ours.

Whatever is refused is refused by the reference plugin too, with the same code, message and details.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cnvnet.cni import skel
from tests.harness import CHECKABLE, OURS, VERSIONS, Node, executable, installed, peer
from tests.unit.test_executables import LOADED_FOR_VERSION

TINY = """#!{python}
import json
import os
from cnvnet.launch import executable
from cnvnet.cni.delegate import delegate_add
from cnvnet.cni.fields import as_interface_address
from cnvnet.cni.result import IP, Interface, Result


class Tiny:
    name = "tiny"

    def add(self, request):
        print("a library that prints to stdout")
        if request.fields.has("delegate"):
            return delegate_add(request, request.fields.text("delegate"))
        if request.fields.flag("crash"):
            raise ValueError("as the test says")
        padding = "x" * request.fields.integer("padding")
        address = as_interface_address("10.0.0.5/24", "")
        return Result((Interface(request.ifname, sandbox=padding),), (IP(address, interface=0),))

    def delete(self, request):
        with open(request.fields.text("report"), "w") as file:
            json.dump([request.netns, sorted(os.listdir("/proc/self/fd"))], file)

    def check(self, request): ...
    def gc(self, request): ...
    def status(self, request): ...


executable.main("tiny", lambda env: Tiny(), "answers tests")
"""

COMPLETE = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "dummy-0",
    "CNI_NETNS": "/nowhere/netns",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/nowhere/bin",
}
CONFIG = {"cniVersion": "1.0.0", "name": "net"}


class Called(NamedTuple):
    """What the caller saw."""

    code: int
    stdout: bytes
    stderr: str

    def error(self) -> dict[str, Any]:
        """The error object, without the version that the reference leaves out."""
        assert self.code == 1, self
        assert "Traceback" not in self.stderr
        document: dict[str, Any] = json.loads(self.stdout)
        assert set(document) <= {"cniVersion", "code", "msg", "details"}
        document.pop("cniVersion", None)
        return document


def call(program: str, env: Mapping[str, str], stdin: object = CONFIG, **options: Any) -> Called:
    """One call of an executable with nothing but that environment."""
    raw = stdin if isinstance(stdin, bytes) else json.dumps(stdin).encode()
    done = subprocess.run([program], env=dict(env), input=raw, capture_output=True, timeout=60, **options)
    return Called(done.returncode, done.stdout, done.stderr.decode())


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    path = tmp_path / "tiny"
    path.write_text(TINY.format(python=sys.executable))
    path.chmod(0o755)
    return str(path)


@pytest.fixture(params=["tiny", *OURS])
def program(request: pytest.FixtureRequest, tiny: str) -> str:
    name: str = request.param
    return tiny if name == "tiny" else executable(name)


def in_process(env: Mapping[str, str], raw: bytes) -> Called:
    """The skeleton's answer to a call that must not reach the plugin, without starting a process for it."""

    def load(env: Mapping[str, str]) -> skel.Plugin:
        raise AssertionError("the call was not refused")

    response = skel.run("tiny", load, env, lambda: raw)
    return Called(response.exit, response.stdout, response.stderr.decode())


def without(*names: str) -> dict[str, str]:
    return {key: value for key, value in COMPLETE.items() if key not in names}


def with_(**changed: str) -> dict[str, str]:
    return {**COMPLETE, **changed}


ENVIRONMENTS: list[dict[str, str]] = [
    *(without(name) for name in COMPLETE if name != "CNI_COMMAND"),
    *(with_(**{name: ""}) for name in COMPLETE if name != "CNI_COMMAND"),
    *({"CNI_COMMAND": command} for command in ("ADD", "CHECK", "DEL", "GC", "STATUS")),
    *({**without("CNI_PATH"), "CNI_COMMAND": command} for command in ("CHECK", "DEL", "GC", "STATUS")),
    *(with_(CNI_CONTAINERID=text) for text in ("a/b", "..", "-a", "a b", "a\n", "ä", "a\udcff", "a\u2028")),
    *(with_(CNI_IFNAME=text) for text in ("a" * 16, "ä" * 8, ".", "..", "a/b", "a:b", "a b", "a\n")),
    *(with_(CNI_IFNAME=text) for text in ("a\u0085", "a\u00a0b", "a\u1680", "a\u2003b", "a\u3000")),
    with_(CNI_CONTAINERID="a b", CNI_IFNAME="a b"),
    with_(CNI_CONTAINERID="", CNI_IFNAME="a b"),
    with_(CNI_IFNAME="a b", CNI_PATH=""),
]


def named(**changed: object) -> bytes:
    return json.dumps({**CONFIG, **changed}).encode()


@pytest.mark.parametrize("env", ENVIRONMENTS, ids=lambda env: ",".join(ascii(v) for v in env.values()))
def test_a_bad_environment_is_refused_as_by_the_reference(env: dict[str, str]) -> None:
    expected = call(peer("bridge"), env).error()
    assert expected["code"] == 4
    assert in_process(env, named()).error() == expected


REFUSED: list[tuple[str, bytes]] = [
    *(("ADD", named(name=name)) for name in ("", "a b", "a\n", "../x", "-a", "ä", "<&>", "a\u2028")),
    ("ADD", b"{}"),
    ("ADD", b"null"),
    ("ADD", b'{"NAME": "a b"}'),
    ("ADD", b'{"name": "net", "Name": "a b"}'),
    ("ADD", b'{"name": "a b", "name": null}'),
    ("ADD", b'{"name": "\xff"}'),
    ("ADD", b'{"name": "\\ud800"}'),
    *((command, named()) for command in ("FOO", "add", "ADD ", "\u00c4DD", "%s", '"')),
    ("FOO", b"{}"),
    ("FOO", named(cniVersion=3)),
    *(
        (command, named(cniVersion=version))
        for command in ("ADD", "DEL", "CHECK", "GC", "STATUS")
        for version in (
            "9.9.9",
            "1.0",
            "1.1.0.0",
            "x",
            "1.x",
            "1.1.x",
            "-1",
            "+1.1.0",
            "1.1.1",
            '"\n',
            "0.4.1",
        )
    ),
    *(("ADD", named(cniVersion=f"9{'0' * digits}")) for digits in (18, 30, 5000)),
    *(("CHECK", named(cniVersion=f"9{'0' * digits}")) for digits in (18, 30, 5000)),
    *(("CHECK", named(cniVersion=version)) for version in VERSIONS if version not in CHECKABLE),
    *(("GC", named(cniVersion=version)) for version in VERSIONS if version != "1.1.0"),
    *(("STATUS", named(cniVersion=version)) for version in VERSIONS if version != "1.1.0"),
]


@pytest.mark.parametrize(("command", "raw"), REFUSED, ids=lambda value: ascii(value)[:40])
def test_a_bad_configuration_is_refused_as_by_the_reference(command: str, raw: bytes) -> None:
    env = with_(CNI_COMMAND=command)
    assert in_process(env, raw).error() == call(peer("bridge"), env, raw).error()


UNREADABLE: list[bytes] = [
    b"",
    b" ",
    b"{",
    b"[]",
    b'"net"',
    b"5",
    b"true",
    b'{"name": "net"} x',
    b'{"name": "net"}{}',
    b'\xef\xbb\xbf{"name": "net"}',
    b"\xff\xfe{\x00}\x00",
    b'{"name": NaN}',
    b'{"name": 5}',
    b'{"name": ["net"]}',
    b'{"name": "a\nb"}',
    b'{"name": "net", "cniVersion": 3}',
    b'{"name": "net", "cniVersion": {}}',
    b"{'name': 'net'}",
    b"[" * 100_000,
    b'{"a":' * 100_000,
]


@pytest.mark.parametrize("raw", UNREADABLE, ids=lambda raw: ascii(raw[:30]))
def test_what_cannot_be_decoded_is_refused_with_the_references_code(raw: bytes) -> None:
    ours, theirs = in_process(COMPLETE, raw).error(), call(peer("bridge"), COMPLETE, raw).error()
    assert ours["code"] == theirs["code"] == 6
    # What follows is each JSON library's own opinion.
    assert ours["msg"].partition(": ")[0] == theirs["msg"].partition(": ")[0]


def test_the_executables_answer_as_the_skeleton_does(program: str) -> None:
    calls = [
        *((env, named()) for env in ENVIRONMENTS[::8]),
        *((with_(CNI_COMMAND=command), raw) for command, raw in REFUSED[::12]),
        *((COMPLETE, raw) for raw in UNREADABLE[::6]),
    ]
    for env, raw in calls:
        assert call(program, env, raw) == in_process(env, raw), (env, raw)


def test_more_than_16_mib_are_not_read(program: str) -> None:
    error = call(program, COMPLETE, b" " * (16 * 1024 * 1024 + 1)).error()
    assert error == {"code": 5, "msg": "error reading from stdin: more than 16777216 bytes"}


def test_version_is_the_references_to_the_byte(program: str) -> None:
    env = {"CNI_COMMAND": "VERSION"}
    assert call(program, env, b"not read") == call(peer("bridge"), env, b"not read")


def test_without_a_command_it_introduces_itself(program: str) -> None:
    ours, theirs = call(program, {}), call(peer("bridge"), {})
    assert (ours.code, ours.stdout) == (theirs.code, theirs.stdout) == (0, b"")
    about, versions = ours.stderr.splitlines()
    assert about.startswith(f"CNI {os.path.basename(program)} plugin ")
    assert versions == theirs.stderr.splitlines()[1]


def test_it_works_under_another_name(program: str, tmp_path: Path) -> None:
    link = tmp_path / "bridge"
    link.symlink_to(program)
    assert call(str(link), {"CNI_COMMAND": "VERSION"}).code == 0


@pytest.mark.parametrize("command", ["ADD", "CHECK"])
def test_the_nodes_own_namespace_is_refused(node: Node, program: str, command: str) -> None:
    error = node.cni(program, command, CONFIG, node).error()
    assert (error["code"], error["cniVersion"]) == (8, "1.0.0")
    assert error["msg"] == "plugin's netns and netns from CNI_NETNS should not be the same"
    assert list(node.links()) == ["lo"]


def test_del_of_the_nodes_own_namespace_goes_on_without_one(node: Node, tiny: str) -> None:
    report = node.folder / "report"
    node.cni(tiny, "DEL", {**CONFIG, "report": str(report)}, node).ok()
    assert json.loads(report.read_text())[0] == ""
    report.unlink()
    pod = node.pod()
    node.cni(tiny, "DEL", {**CONFIG, "report": str(report)}, pod).ok()
    assert json.loads(report.read_text())[0] == pod.netns


def test_stdout_carries_one_document_whatever_a_library_prints(tiny: str) -> None:
    called = call(tiny, COMPLETE)
    assert json.loads(called.stdout)["ips"][0]["address"] == "10.0.0.5/24"


def test_a_crash_is_an_error_object_and_one_line(tiny: str) -> None:
    called = call(tiny, COMPLETE, {**CONFIG, "crash": True})
    assert called.error() == {"code": 999, "msg": "internal error: ValueError: as the test says"}
    message = "tiny: internal error: ValueError: as the test says (tiny:18)"
    assert called.stderr.splitlines() == ["a library that prints to stdout", message]


def test_a_large_result_is_written_whole_into_a_pipe_that_does_not_block(tiny: str) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    env = {**COMPLETE, "PATH": os.environ["PATH"]}
    stdin = json.dumps({**CONFIG, "padding": 1_000_000}).encode()
    with subprocess.Popen([tiny], env=env, stdin=subprocess.PIPE, stdout=writing) as process:
        os.close(writing)
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.close()
        with open(reading, "rb") as pipe:
            document = json.load(pipe)
    assert process.returncode == 0
    assert len(document["interfaces"][0]["sandbox"]) == 1_000_000


@pytest.mark.parametrize("command", ["VERSION", "ADD", "FOO"])
def test_an_answer_that_cannot_be_written_is_a_failure_without_a_traceback(
    program: str, command: str
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [program],
        env=with_(CNI_COMMAND=command),
        input=b"",
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def closing(descriptor: int, program: str) -> list[str]:
    return ["sh", "-c", f'exec "$0" {descriptor}>&-', program]


@pytest.mark.parametrize("descriptor", [0, 1, 2])
def test_a_descriptor_that_is_closed_is_not_used_for_something_else(
    tiny: str, tmp_path: Path, descriptor: int
) -> None:
    report = tmp_path / "report"
    raw = json.dumps({**CONFIG, "report": str(report)}).encode()
    env = {**with_(CNI_COMMAND="DEL"), "PATH": os.environ["PATH"]}
    done = subprocess.run(closing(descriptor, tiny), env=env, input=raw, capture_output=True, check=False)
    if descriptor == 0:
        assert json.loads(done.stdout)["code"] == 6
    else:
        assert done.returncode == 0
        # 0, 1, 2, the file itself, and the one that lists the folder
        assert json.loads(report.read_text())[1] == ["0", "1", "2", "3", "4"]
    assert b"Traceback" not in done.stderr


def test_an_unreadable_stdin_is_an_io_failure(program: str) -> None:
    # Not a folder: at that the interpreter itself gives up, before any of our code runs.
    writable = os.open("/dev/null", os.O_WRONLY)
    done = subprocess.run([program], env=COMPLETE, stdin=writable, capture_output=True, check=False)
    theirs = subprocess.run([peer("bridge")], env=COMPLETE, stdin=writable, capture_output=True, check=False)
    os.close(writable)
    assert json.loads(done.stdout) == json.loads(theirs.stdout)
    assert json.loads(done.stdout)["code"] == 5


def test_variables_are_text_in_any_locale(program: str) -> None:
    for locale in ({"LC_ALL": "C"}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        error = call(program, {**with_(CNI_CONTAINERID="ä"), **locale}).error()
        assert error["details"] == "ä"


def test_a_working_directory_that_is_gone_is_not_needed(tiny: str, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    script = f'mkdir {gone}; cd {gone}; rmdir {gone}; exec "$0"'
    for command in ("VERSION", "ADD"):
        done = subprocess.run(
            ["/bin/sh", "-c", script, tiny],
            env=with_(CNI_COMMAND=command, PATH=os.environ["PATH"]),
            input=json.dumps(CONFIG).encode(),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done


@pytest.mark.parametrize("version", VERSIONS)
def test_delegates_find_each_other_and_their_errors_come_through(
    tiny: str, tmp_path: Path, version: str
) -> None:
    folders = f"{tmp_path}:{os.path.dirname(peer('static'))}"
    config: dict[str, Any] = {"cniVersion": version, "name": "net", "delegate": "static"}
    good = {**config, "ipam": {"type": "static", "addresses": [{"address": "10.1.2.3/24"}]}}
    ours = call(tiny, with_(CNI_PATH=folders), good)
    theirs = call(peer("static"), with_(CNI_PATH=folders), good)
    assert (ours.code, ours.stdout) == (theirs.code, theirs.stdout)
    assert (
        call(tiny, with_(CNI_PATH=folders), config).error() == call(peer("static"), COMPLETE, config).error()
    )


# What VERSION may import of Python's is only what these lines do.
PYTHONS = "import __future__, gc, os"
# Says which module and function are an executable, and where the package is.
SHOW = """
import os.path, sys
from importlib.metadata import distribution
import cnvnet
points = distribution("cnvnet").entry_points.select(group="console_scripts")
point = points[sys.argv[1]]
print(point.module, point.attr, os.path.dirname(cnvnet.__path__[0]))
"""


def imported(name: str, env: dict[str, str], without: str = "pass") -> set[str]:
    """The modules that an executable imports less those of a program `without`.

    It is run as scripts/install-cni writes it: pip's for an editable install imports `typing` itself.
    """
    python = str(Path(installed(name)).parent / Path(sys.executable).name)
    shown = subprocess.run([python, "-I", "-c", SHOW, name], capture_output=True, text=True, check=True)
    module, function, folder = shown.stdout.split()

    def modules(code: str) -> set[str]:
        command = [python, "-IS", "-X", "importtime", "-c", code]
        done = subprocess.run(command, env=env, input=b"", capture_output=True, check=False)
        lines = done.stderr.decode().splitlines()
        return {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}

    stub = f"import sys\nsys.path.insert(0, {folder!r})\nfrom {module} import {function}\n{function}()"
    return modules(stub) - modules(without)


@pytest.mark.parametrize("env", [{"CNI_COMMAND": "VERSION"}, {}], ids=["version", "about"])
@pytest.mark.parametrize("name", OURS)
def test_version_and_about_import_next_to_nothing(name: str, env: dict[str, str]) -> None:
    assert imported(name, env, PYTHONS) == LOADED_FOR_VERSION


@pytest.mark.parametrize("name", OURS)
def test_a_malformed_call_imports_nothing_of_the_plugin(name: str) -> None:
    found = imported(name, {"CNI_COMMAND": "ADD"})
    assert "cnvnet.cni.document" in found
    assert not {
        module for module in found if module.startswith("cnvnet.kernel") or module.endswith(".plugin")
    }
