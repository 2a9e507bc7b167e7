#!/usr/bin/python3
"""Writes an image that ``ctr images import`` takes, out of files of this machine; needs no engine and no registry.

usage: image.py OUT.tar NAME[,NAME...] [--entrypoint PROGRAM] [--cmd ARGUMENT]... [--env NAME=VALUE]... WHAT... \
[--tool PROGRAM]...

WHAT is FILE=/PATH, which puts a file there, or a folder with all that is in it, or LINK->TARGET, a symbolic link.
A tool is a program of this machine. Programs and libraries bring the libraries that ldd names.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

LIBRARIES = "/lib/x86_64-linux-gnu/"
EMPTY_FOLDERS = ("/tmp", "/etc", "/run", "/var/run", "/uploads")


def files_of(source: Path, path: str) -> Iterator[tuple[str, Path]]:
    """What stands where in the image; a folder with all that is in it."""
    if not source.is_dir():
        yield path, source
        return
    for folder, _, names in os.walk(source):
        inside = f"{path}/{Path(folder).relative_to(source)}".removesuffix("/.")
        yield from ((f"{inside}/{name}", Path(folder, name)) for name in names)


def libraries_of(program: Path) -> Iterator[tuple[str, Path]]:
    """The shared libraries of an ELF file."""
    with program.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            return
    listed = subprocess.run(("ldd", str(program)), capture_output=True, text=True, check=False).stdout
    for library in re.findall(r"(/\S+) \(", listed):
        place = library if library.startswith(("/lib", "/usr/lib")) else LIBRARIES + Path(library).name
        yield place, Path(library).resolve()


def gathered(args: argparse.Namespace) -> tuple[dict[str, Path], dict[str, str]]:
    """Files and links of the image by path."""
    contents: dict[str, Path] = {}
    links: dict[str, str] = {}
    for item in args.what:
        if "->" in item:
            link, target = item.split("->")
            links[link] = target
            continue
        source, path = item.rsplit("=", 1)
        for place, file in files_of(Path(source), path):
            if file.is_symlink() and not file.exists():
                continue
            if file.is_symlink() and Path(source).is_dir():
                links[place] = str(file.readlink())
            else:
                contents[place] = file.resolve()
    for tool in args.tool:
        program = shutil.which(tool)
        if program is None:
            raise SystemExit(f"image.py: there is no {tool} on this machine")
        contents.setdefault(f"/usr/bin/{tool}" if "/" not in tool else program, Path(program).resolve())
    for file in list(contents.values()):
        for place, library in libraries_of(file):
            contents.setdefault(place, library)
    return contents, links


def layer(contents: dict[str, Path], links: dict[str, str]) -> bytes:
    out = io.BytesIO()
    made: set[str] = set()
    with tarfile.open(fileobj=out, mode="w") as tar:

        def folders(path: str) -> None:
            for depth in range(2, path.count("/") + 2):
                folder = "/".join(path.split("/")[1:depth])
                if folder and folder not in made:
                    made.add(folder)
                    entry = tarfile.TarInfo(folder)
                    entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
                    tar.addfile(entry)

        for folder in EMPTY_FOLDERS:
            folders(folder)
        for path in sorted({*contents, *links}):
            folders(path.rpartition("/")[0])
            entry = tarfile.TarInfo(path.lstrip("/"))
            if path in links:
                entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, links[path], 0o777
                tar.addfile(entry)
            else:
                with contents[path].open("rb") as file:
                    entry.size, entry.mode = os.fstat(file.fileno()).st_size, 0o755
                    tar.addfile(entry, file)
    return out.getvalue()


def main() -> None:
    ask = argparse.ArgumentParser()
    ask.add_argument("out")
    ask.add_argument("names")
    ask.add_argument("what", nargs="*")
    for option in ("entrypoint", "cmd", "env", "tool"):
        ask.add_argument(f"--{option}", action="append", default=[])
    args = ask.parse_intermixed_args()
    data = layer(*gathered(args))
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": args.entrypoint or None,
            "Cmd": args.cmd or None,
            "Env": args.env or ["PATH=/usr/local/bin:/usr/bin:/bin:/sbin:/usr/sbin"],
        },
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(data).hexdigest()]},
    }
    manifest = [{"Config": "config.json", "RepoTags": args.names.split(","), "Layers": ["layer.tar"]}]
    unfinished = Path(f"{args.out}.new")
    with tarfile.open(unfinished, "w") as tar:
        parts = (("config.json", config), ("layer.tar", data), ("manifest.json", manifest))
        for name, part in parts:
            content = part if isinstance(part, bytes) else json.dumps(part).encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    unfinished.rename(args.out)


main()
