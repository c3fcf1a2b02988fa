"""The guest's whole system: an initramfs of busybox, DHCPv6 clients and modules of Debian's cloud kernel.

Made of what is installed here, once for each kernel and each version of its parts, below .tools. The kernel
may be unpacked there rather than installed; where there is no dhclient or udhcpc6 the guest has none.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

CHECKOUT: Final = Path(__file__).resolve().parents[2]
FILES: Final = Path(__file__).resolve().parent / "files"
# With what they depend on: the network card, the bus it may be plugged into, VLAN interfaces.
_MODULES: Final = ("virtio_pci", "virtio_net", "8021q")
_INSTALL: Final = "scripts/setup guests brings it"


class Image(NamedTuple):
    """What QEMU boots."""

    kernel: Path
    initrd: Path


def image() -> Image:
    """The image, made if it is not there yet. RuntimeError when something it is made of is not installed."""
    kernel = _newest_kernel()
    modules = _modules(kernel)
    busybox, *clients = (_find(name) for name in ("busybox", "dhclient", "udhcpc6"))
    if busybox is None:
        raise RuntimeError(f"busybox for a guest is not here: {_INSTALL}")
    programs = [busybox, *(client for client in clients if client is not None)]
    initrd = (
        CHECKOUT / ".tools/guest" / f"{_fingerprint([*modules, *programs, *sorted(FILES.iterdir())])}.cpio"
    )
    if not initrd.exists():
        _make(initrd, modules, programs)
    return Image(kernel, initrd)


def _newest_kernel() -> Path:
    """The cloud flavour boots fastest: it knows hardly any hardware."""
    folders = (Path("/boot"), *CHECKOUT.glob(".tools/debian/linux-image-*/boot"))
    kernels = [path for place in folders for path in place.glob("vmlinuz-*-cloud-amd64")]
    if not kernels:
        raise RuntimeError(f"no kernel for a guest in /boot: {_INSTALL}")
    return max(kernels, key=_version)


def _version(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.name)]


def _modules(kernel: Path) -> list[Path]:
    """The modules' files in the order in which they can be inserted."""
    where = ("--dirname", str(kernel.parents[1]), "--set-version", kernel.name.removeprefix("vmlinuz-"))
    files: dict[Path, None] = {}
    for module in _MODULES:
        shown = _output("modprobe", *where, "--ignore-install", "--show-depends", module)
        files.update(
            (Path(line.split()[1]), None) for line in shown.splitlines() if line.startswith("insmod ")
        )
    return list(files)


def _find(name: str) -> Path | None:
    path = shutil.which(name, path=f"/bin:/usr/bin:/sbin:/usr/sbin:{CHECKOUT / '.tools/bin'}")
    return Path(path) if path is not None else None


def _fingerprint(parts: list[Path]) -> str:
    """Changes with any of the parts; packages give their files the times of their builds."""
    known = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in [*parts, Path(__file__)]]
    return hashlib.sha256(repr(known).encode()).hexdigest()[:16]


def _make(initrd: Path, modules: list[Path], programs: list[Path]) -> None:
    initrd.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=initrd.parent) as work:
        root = Path(work) / "root"
        for folder in ("bin", "modules"):
            (root / folder).mkdir(parents=True)
        for module in modules:
            _copy_module(module, root / "modules")
        (root / "modules/order").write_text("".join(f"{_plain(module)}\n" for module in modules))
        for program in programs:
            shutil.copy2(program, root / "bin" / program.name)
            for library in _libraries(program):
                (root / library.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(library, root / library.relative_to("/"))
        shutil.copy2(FILES / "init", root / "init")
        for script in ("udhcpc", "dhclient", "udhcpc6"):
            shutil.copy2(FILES / script, root / "bin" / f"{script}-script")
        packed = Path(work) / "initrd"
        with packed.open("wb") as out:
            names = "".join(f"{path.relative_to(root)}\n" for path in sorted(root.rglob("*")))
            cpio = ["cpio", "--quiet", "--create", "--format=newc", "--owner=+0:+0"]
            subprocess.run(cpio, cwd=root, input=names.encode(), stdout=out, check=True)
        os.replace(packed, initrd)  # others may be making the same one
    for older in initrd.parent.glob("*.cpio"):
        if older != initrd:
            older.unlink(missing_ok=True)


def _copy_module(module: Path, folder: Path) -> None:
    content = module.read_bytes()
    (folder / _plain(module)).write_bytes(lzma.decompress(content) if module.suffix == ".xz" else content)


def _plain(module: Path) -> str:
    return module.name.removesuffix(".xz")


def _libraries(program: Path) -> Iterator[Path]:
    """What a program is linked with, its loader included; nothing for a static one."""
    done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines() if done.returncode == 0 else []:
        if match := re.search(r"(?:=> |^\s*)(/\S+)", line):
            yield Path(match[1])


def _output(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{argv[-1]} for a guest is not here: {done.stderr.strip()}: {_INSTALL}")
    return done.stdout
