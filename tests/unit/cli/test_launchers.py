"""The files in a runtime's folder: ours say their version, other programs' are left alone."""

from __future__ import annotations

import configparser
import os
import sys
from pathlib import Path

import pytest

from cnvnet import VERSION
from cnvnet.cli import launchers
from cnvnet.cli.launchers import installed
from cnvnet.executables import NAMES

OURS = """#!{python} -IS
import sys
if 0:
{module}
print({output!r})
sys.exit({code})
"""
MODULE = """    pass
'''
from cnvnet.plugins.cnv_bridge import main
'''"""


def put(folder: Path, name: str, output: str = "", *, code: int = 0, module: str = "") -> Path:
    path = folder / name
    module = module or "    \n".join(
        ("    pass", "'''", "from cnvnet.plugins.cnv_bridge import main", "'''")
    )
    path.write_text(OURS.format(python=sys.executable, module=module, output=output, code=code))
    path.chmod(0o755)
    return path


def test_all_our_plugins_are_looked_for() -> None:
    read = configparser.ConfigParser()
    read.read(Path(__file__).parents[3] / "setup.cfg")
    lines = read["options.entry_points"]["console_scripts"].strip().split("\n")
    begun = dict(line.split(" = ") for line in lines)
    plugins = {name for name, where in begun.items() if where.startswith("cnvnet.executables:")}
    assert set(NAMES) == plugins


def test_a_folder_without_ours_has_none(tmp_path: Path) -> None:
    foreign = put(tmp_path, "cnv-bridge", "cnv-bridge 9", module="    pass")
    foreign.write_text(foreign.read_text() + f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    os.mkfifo(tmp_path / "masquerade")
    (tmp_path / "static-ip").mkdir()
    found = installed(str(tmp_path))
    assert found.versions == {}
    assert found.version == ""
    assert found.report() == (f"none in {tmp_path} (--cni-bin says where else)", 0)
    assert installed(str(tmp_path / "nowhere")).versions == {}
    assert not (tmp_path / "ran").exists()


def test_ours_say_their_version(tmp_path: Path) -> None:
    for name in NAMES:
        put(tmp_path, name, f"{name} {VERSION} (launcher)")
    found = installed(str(tmp_path))
    assert found.version == VERSION
    assert found.report() == (f"ok, {VERSION}, in {tmp_path}", 0)


@pytest.mark.parametrize(
    "module", ["cnvnet.executables", "cnvnet.plugins.cnv_bridge", "cnvnet.ipam.static_ip"]
)
def test_executables_of_every_version_are_ours(tmp_path: Path, module: str) -> None:
    lines = ("    pass", "'''", f"from {module} import main", "'''")
    put(tmp_path, "cnv-bridge", f"cnv-bridge {VERSION}", module="\n".join(lines))
    assert installed(str(tmp_path)).versions == {"cnv-bridge": VERSION}


def test_those_of_another_version_are_named_with_the_remedy(tmp_path: Path) -> None:
    put(tmp_path, "cnv-bridge", f"cnv-bridge {VERSION}")
    put(tmp_path, "masquerade", "masquerade 0.0.9 (launcher)")
    put(tmp_path, "vm-bridge", "vm-bridge 0.0.9")
    put(tmp_path, "static-ip", "{}", code=1)  # knows no such argument
    put(tmp_path, "cnvnet-bridge").chmod(0o644)
    found = installed(str(tmp_path))
    text, code = found.report()
    assert code == 1
    assert text == (
        f"not of version {VERSION} in {tmp_path}: cannot be run (permission denied): cnvnet-bridge; "
        "0.0.9: masquerade, vm-bridge; an older version: static-ip "
        "(scripts/install-cni puts this version's there)"
    )


def test_one_that_does_not_answer_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "_PATIENCE", 0.1)
    path = put(tmp_path, "cnv-bridge")
    path.write_text(path.read_text().replace("import sys", "import sys, time; time.sleep(60)"))
    assert installed(str(tmp_path)).versions == {"cnv-bridge": "does not answer"}


@pytest.mark.parametrize(
    ("mark", "folder"),
    [
        (None, "/opt/cni/bin"),
        ("", "/opt/cni/bin"),
        ("/var/lib/cni/bin\n", "/var/lib/cni/bin"),
        ("x", "/opt/cni/bin"),
    ],
)
def test_the_folder_is_the_one_that_install_cni_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str | None, folder: str
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    if mark is not None:
        (tmp_path / ".install-cni").write_text(mark)
    assert launchers.usual_folder() == folder
