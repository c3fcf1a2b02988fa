"""The image that scripts/build-image makes: all that runs in it is there."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from cnvnet import VERSION
from tests.functional.test_scripts import run_script

PYTHON = "/opt/cnvnet/bin/python"
# With the tests of the DaemonSet, for which it is built once.
pytestmark = [pytest.mark.alone, pytest.mark.xdist_group("image")]


class Image:
    """An OCI archive, read from its index to its layer, each blob by its digest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with tarfile.open(path) as tar:
            files = {each.name: tar.extractfile(each) for each in tar}
            self._members = {name: file.read() for name, file in files.items() if file is not None}
        (self.entry,) = json.loads(self._members["index.json"])["manifests"]
        self.manifest: dict[str, Any] = json.loads(self._blob(self.entry))
        self.config: dict[str, Any] = json.loads(self._blob(self.manifest["config"]))
        (compressed,) = (self._blob(each) for each in self.manifest["layers"])
        self.layer = gzip.decompress(compressed)

    def _blob(self, descriptor: dict[str, Any]) -> bytes:
        content = self._members[f"blobs/{descriptor['digest'].replace(':', '/')}"]
        assert f"sha256:{hashlib.sha256(content).hexdigest()}" == descriptor["digest"]
        assert len(content) == descriptor["size"]
        return content


@pytest.fixture(scope="module")
def image(image_archive: Path) -> Image:
    return Image(image_archive)


@pytest.fixture(scope="module")
def root(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its files, as a container has them."""
    folder = tmp_path_factory.mktemp("root")
    subprocess.run(["tar", "-x", "-C", folder], input=image.layer, check=True)
    return folder


def inside(root: Path, *argv: str) -> str:
    """What a program prints in the image, whose file system is read-only and has a /proc."""
    script = """
    mount --bind "$0" "$0"; mount -t proc none "$0/proc"; mount -o remount,bind,ro "$0"
    exec env -i PATH=/opt/cnvnet/bin:/usr/bin:/usr/sbin chroot "$0" "$@"
    """
    within = ("unshare", "--mount", "--net", "sh", "-euc", script, str(root))
    done = subprocess.run([*within, *argv], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def test_its_name_and_entry_are_those_of_the_daemonset(image: Image) -> None:
    assert image.entry["annotations"]["io.containerd.image.name"] == f"localhost/cnvnet:{VERSION}"
    assert image.config["config"]["Entrypoint"] == ["/opt/cnvnet/bin/cnvnet-agent"]
    digest = f"sha256:{hashlib.sha256(image.layer).hexdigest()}"
    assert image.config["rootfs"]["diff_ids"] == [digest]


def test_the_same_files_make_the_same_image(image: Image, tmp_path: Path) -> None:
    again = tmp_path / "again.tar"
    run_script("build-image", "--output", str(again))
    assert again.read_bytes() == image.path.read_bytes()


def test_it_has_what_container_runtimes_and_multus_look_for(root: Path) -> None:
    assert (root / "etc/passwd").read_text().startswith("root:x:0:0:")
    # Runtimes say /var/run/netns/cni-… of what is in /run/netns.
    assert (root / "var/run").readlink() == Path("/run")
    assert (root / "usr/share/doc/libnftables1/copyright").exists()


def test_the_programs_start(root: Path) -> None:
    for name in ("cnvnet-agent", "cnvctl"):
        assert VERSION in inside(root, name, "--version")
    for name in ("cnv-bridge", "cnvnet-bridge", "masquerade", "vm-bridge", "static-ip"):
        assert VERSION in inside(root, name, "--version")
    assert "nftables v" in inside(root, "nft", "--version")
    assert "util-linux" in inside(root, "nsenter", "--version")


def test_the_libraries_can_be_loaded(root: Path) -> None:
    script = (
        "import ctypes, sqlite3, ssl, urllib3, yaml; ctypes.CDLL('libnftables.so.1'); print(ssl.HAS_TLSv1_3)"
    )
    assert inside(root, PYTHON, "-I", "-c", script) == "True\n"
    # Other names for ports and protocols than numbers are read from /etc.
    inside(
        root,
        "nft",
        "-c",
        "add table ip t; add chain ip t c; add rule ip t c ip protocol tcp tcp dport domain accept",
    )


def test_modules_are_compiled(root: Path) -> None:
    script = (
        "import sys, cnvnet.agent.main\n"
        "print(*(getattr(module, '__cached__', None) for module in sys.modules.values()))"
    )
    cached = [name for name in inside(root, PYTHON, "-I", "-c", script).split() if name != "None"]
    assert len(cached) > 200
    assert [name for name in cached if not (root / name.lstrip("/")).exists()] == []


def test_the_launcher_is_static_and_answers(root: Path, tmp_path: Path) -> None:
    launcher = tmp_path / "cnv-bridge"
    launcher.write_bytes((root / "opt/cnvnet/libexec/cnv-launch").read_bytes())
    launcher.chmod(0o755)
    done = subprocess.run([launcher], env={"CNI_COMMAND": "VERSION"}, capture_output=True, check=True)
    assert "1.1.0" in json.loads(done.stdout)["supportedVersions"]
    elf = subprocess.run(["ldd", launcher], capture_output=True, text=True, check=False)
    assert elf.returncode == 1
