"""The container image of cnvnet, made of the files of the Debian that it is made on: scripts/build-image.

A layer with Python and its library, nft, nsenter, the libraries that these load, and the project as
`scripts/setup` has installed it. No shell and no package manager: what a container does not have cannot be
used in it.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import marshal
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import Distribution, distributions
from importlib.util import MAGIC_NUMBER, source_hash
from pathlib import Path
from typing import Final, NamedTuple

from cnvnet import VERSION

CHECKOUT: Final = Path(__file__).resolve().parent.parent
NAME: Final = f"localhost/cnvnet:{VERSION}"
PREFIX: Final = "opt/cnvnet"
_PYTHON: Final = f"python{sys.version_info.major}.{sys.version_info.minor}"
_PACKAGES: Final = f"{PREFIX}/lib/{_PYTHON}/site-packages"
_PROGRAMS: Final = (_PYTHON, "nft", "nsenter")
# Loaded by name at run time, so that no program lists it.
_LIBRARIES: Final = ("libnftables.so.1",)
# What nft reads names of protocols and ports from.
_CONFIGURATION: Final = ("/etc/protocols", "/etc/services")
# The launcher is linked with it statically.
_LINKED_STATICALLY: Final = "musl-dev"
# Parts of Python's library that an agent never imports, by their first folder or module: half of its size.
_LEFT_OUT: Final = re.compile(
    r"(test|idlelib|tkinter|turtledemo|turtle|lib2to3|ensurepip|pydoc_data|distutils|config-.*|sitecustomize"
    r"|lib-dynload/_(tkinter|curses|dbm|gdbm|test|xx).*|lib-dynload/(readline|nis|ossaudiodev|audioop|xx).*)"
    r"(/|\.py|\.cpython|$)"
)
# What pip writes of the build's temporary folders.
_OF_PIP: Final = frozenset({"RECORD", "REQUESTED", "INSTALLER", "direct_url.json"})
_PASSWD: Final = b"root:x:0:0:root:/root:/usr/sbin/nologin\n"
_GROUP: Final = b"root:x:0:\n"
# As a merged Debian has them; /var/run is where runtimes say that namespaces are.
_LINKS: Final = {
    "bin": "usr/bin",
    "sbin": "usr/sbin",
    "lib": "usr/lib",
    "lib64": "usr/lib64",
    "usr/bin/python3": _PYTHON,
    "var/run": "/run",
    f"{PREFIX}/bin/python": f"/usr/bin/{_PYTHON}",
}
# Places of mounts: the root file system of a container may be read-only.
_FOLDERS: Final = ("dev", "etc", "proc", "root", "run", "sys", "tmp", "var/lib")
_ENVIRONMENT: Final = {
    "PATH": f"/{PREFIX}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
}


class File(NamedTuple):
    """A regular file of the image."""

    content: bytes
    executable: bool = False


class Symlink(NamedTuple):
    """A symbolic link of the image."""

    target: str


Tree = dict[str, File | Symlink]
"""What is in the image, by its path without the first slash."""


def tree(launcher: bytes) -> Tree:
    """All of the image; `launcher` is the static cnv-launch."""
    made: Tree = {path: Symlink(target) for path, target in _LINKS.items()}
    made["etc/passwd"], made["etc/group"] = File(_PASSWD), File(_GROUP)
    library = Path("/usr/lib", _PYTHON)
    system = [*_programs(), *_libraries_by_name(), *_files(library, _LEFT_OUT)]
    system += [path for name in _CONFIGURATION if (path := Path(name)).exists()]
    system += _loaded_by(path for path in system if _is_elf(path))
    for path in system:
        made[_in_image(path)] = _file(path)
    for path in _licences(system):
        made[str(path).lstrip("/")] = _file(path)
    made |= _project()
    made[f"{PREFIX}/libexec/cnv-launch"] = File(launcher, executable=True)
    return made | _compiled(made)


def _project() -> Tree:
    """The environment of scripts/setup, as one that was made in /opt/cnvnet."""
    (packages,) = (CHECKOUT / ".tools/installed/lib").glob(f"{_PYTHON}/site-packages")
    made: Tree = {
        f"{PREFIX}/pyvenv.cfg": File(b"home = /usr/bin\ninclude-system-site-packages = false\n"),
    }
    for path in _files(packages, None):
        if path.name not in _OF_PIP:
            made[f"{_PACKAGES}/{path.relative_to(packages)}"] = _file(path)
    for name, text in _executables(packages):
        made[f"{PREFIX}/bin/{name}"] = File(text.encode(), executable=True)
    return made


def _executables(packages: Path) -> Iterator[tuple[str, str]]:
    """Our console scripts: not pip's, whose first line names the interpreter of this machine."""
    ours = next(each for each in distributions(path=[str(packages)]) if _is_ours(each))
    for entry in ours.entry_points.select(group="console_scripts"):
        yield (
            entry.name,
            (
                f"#!/{PREFIX}/bin/python -I\n"
                f"import sys\nfrom {entry.module} import {entry.attr}\nsys.exit({entry.attr}())\n"
            ),
        )


def _is_ours(distribution: Distribution) -> bool:
    return distribution.metadata["Name"] == "cnvnet"


def _compiled(made: Mapping[str, File | Symlink]) -> Tree:
    """The modules as Python caches them: it could not write that into a read-only file system."""
    compiled: Tree = {}
    for path, file in made.items():
        if not path.endswith(".py") or not isinstance(file, File):
            continue
        try:
            code = compile(file.content, f"/{path}", "exec", dont_inherit=True)
        except SyntaxError:
            continue  # of another Python, or a template
        folder, name = os.path.split(path)
        # PEP 552: by the source's hash, which is never looked at again.
        header = MAGIC_NUMBER + (1).to_bytes(4, "little") + source_hash(file.content)
        content = header + marshal.dumps(code)
        compiled[f"{folder}/__pycache__/{name[:-3]}.{sys.implementation.cache_tag}.pyc"] = File(content)
    return compiled


def _programs() -> Iterator[Path]:
    for name in _PROGRAMS:
        path = shutil.which(name, path="/usr/bin:/usr/sbin")
        if not path:
            sys.exit(
                f"build-image: no {name} in /usr/bin or /usr/sbin: the image is made of this Debian's files"
            )
        yield Path(path)


def _libraries_by_name() -> Iterator[Path]:
    for name in _LIBRARIES:
        library = next(Path("/usr/lib").glob(f"*-linux-gnu/{name}"), None)
        if library is None:
            sys.exit(f"build-image: no {name} below /usr/lib: apt-get install libnftables1")
        yield library


def _loaded_by(programs: Iterable[Path]) -> list[Path]:
    """The libraries, the dynamic loader among them, by the names by which they are looked for."""
    listing = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in sorted(set(re.findall(r"(?:=> |^\t)(/\S+) \(0x", listing, re.MULTILINE)))]


def _licences(system: Iterable[Path]) -> Iterator[Path]:
    """The copyright file of each package whose files are in the image."""
    # Packages know files by the paths from before /usr was merged, too.
    names = {name for path in system for name in (str(path), str(path).removeprefix("/usr"), f"/usr{path}")}
    done = subprocess.run(["dpkg-query", "-S", *sorted(names)], capture_output=True, text=True, check=False)
    owners = {line.rpartition(": ")[0] for line in done.stdout.splitlines()}
    packages = {owner.partition(":")[0] for line in owners for owner in line.split(", ")}
    for package in sorted({*packages, _LINKED_STATICALLY}):
        if (path := Path("/usr/share/doc", package, "copyright")).exists():
            yield path


def _files(folder: Path, left_out: re.Pattern[str] | None) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        inside = str(path.relative_to(folder))
        if path.is_file() and "__pycache__" not in path.parts and not (left_out and left_out.match(inside)):
            yield path


def _in_image(path: Path) -> str:
    """Where a file of this machine is in the image: not below a link, such as /lib."""
    parts = str(path).lstrip("/").split("/")
    return "/".join(["usr", *parts] if parts[0] in ("bin", "sbin", "lib", "lib64") else parts)


def _file(path: Path) -> File:
    return File(path.read_bytes(), executable=os.access(path, os.X_OK))


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def layer(files: Mapping[str, File | Symlink]) -> bytes:
    """The tar archive of the image's file system."""
    out = io.BytesIO()
    folders = {str(parent) for path in (*files, *_FOLDERS) for parent in Path(path).parents}
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted({*folders, *_FOLDERS, *files} - {"."}):
            entry = tarfile.TarInfo(path)
            item = files.get(path)
            if isinstance(item, File):
                entry.size, entry.mode = len(item.content), 0o755 if item.executable else 0o644
                tar.addfile(entry, io.BytesIO(item.content))
            elif isinstance(item, Symlink):
                entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, item.target, 0o777
                tar.addfile(entry)
            else:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if path == "tmp" else 0o755
                tar.addfile(entry)
    return out.getvalue()


def archive(content: bytes, architecture: str) -> bytes:
    """An OCI archive with one image of one layer: https://github.com/opencontainers/image-spec."""
    blobs: dict[str, bytes] = {}

    def blob(kind: str, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        media = f"application/vnd.oci.image.{kind}"
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(data)}

    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Entrypoint": [f"/{PREFIX}/bin/cnvnet-agent"],
            "Env": [f"{name}={value}" for name, value in _ENVIRONMENT.items()],
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": "cnvnet",
                "org.opencontainers.image.version": VERSION,
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(content).hexdigest()}"]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("config.v1+json", _json(config)),
        "layers": [blob("layer.v1.tar+gzip", gzip.compress(content, 6, mtime=0))],
    }
    entry = {
        **blob("manifest.v1+json", _json(manifest)),
        "platform": {"architecture": architecture, "os": "linux"},
        # containerd's name for it, and that of podman and skopeo.
        "annotations": {"io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": NAME},
    }
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    }
    out = io.BytesIO()
    files = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": _json(index), **blobs}
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in sorted(files.items()):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _launcher() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "cnv-launch")
        subprocess.run(["make", "--silent", f"OUT={made}", made], cwd=CHECKOUT / "launcher", check=True)
        return made.read_bytes()


def _architecture() -> str:
    """As Debian and OCI call this processor."""
    done = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main() -> None:
    """Writes the archive and says what it has."""
    if Path(sys.executable).resolve() != Path("/usr/bin", _PYTHON):
        sys.exit(
            f"build-image: .venv has {sys.executable}, not Debian's own Python: remove .venv, unset PYTHON"
        )
    architecture = _architecture()
    parser = argparse.ArgumentParser(prog="build-image", allow_abbrev=False)
    default = CHECKOUT / f".tools/cnvnet-{VERSION}-{architecture}.tar"
    parser.add_argument("--output", type=Path, default=default, metavar="FILE")
    output: Path = parser.parse_args().output
    content = layer(tree(_launcher()))
    made = archive(content, architecture)
    fresh = output.with_name(f"{output.name}.new")
    fresh.write_bytes(made)
    fresh.replace(output)
    print(
        f"{output}: {NAME} ({architecture}), {len(made) / 1e6:.1f} MB, on a node {len(content) / 1e6:.1f} MB"
    )
    print(f"on each node: ctr -n k8s.io images import {output.name}")


if __name__ == "__main__":
    main()
