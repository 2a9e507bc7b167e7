#!/usr/bin/python3
"""Writes an image that `ctr images import` takes, out of files of this machine; needs no engine.

usage: image.py OUT.tar NAME[,NAME...] [--entrypoint PROGRAM] [--cmd ARGUMENT]... FILE=/PATH... [--tool PROGRAM]...

FILE=/PATH puts one file there; a tool is a program of this machine with the libraries that ldd names;
/PATH->/TARGET makes a symbolic link.
"""

import argparse
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path


def main() -> None:
    ask = argparse.ArgumentParser()
    ask.add_argument("out")
    ask.add_argument("names")
    ask.add_argument("files", nargs="*")
    ask.add_argument("--entrypoint", action="append", default=[])
    ask.add_argument("--cmd", action="append", default=[])
    ask.add_argument("--tool", action="append", default=[])
    want = ask.parse_intermixed_args()

    contents: dict[str, str] = {}
    links: dict[str, str] = {}
    for item in want.files:
        if "->" in item:
            link, target = item.split("->")
            links[link] = target
        else:
            file, path = item.split("=")
            contents[path] = file
    for tool in want.tool:
        program = shutil.which(tool)
        if program is None:
            raise SystemExit(f"no {tool} on this machine")
        if "/" not in tool:
            contents.setdefault(f"/usr/bin/{tool}", os.path.realpath(program))
        listed = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
        for library in re.findall(r"(/\S+) \(", listed):
            name = Path(library).name
            place = library if library.startswith(("/lib", "/usr/lib")) else f"/lib/x86_64-linux-gnu/{name}"
            contents.setdefault(place, os.path.realpath(library))

    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        made = set()
        for path in sorted([*contents, *links, "/tmp/.", "/etc/.", "/run/.", "/var/run/.", "/uploads/."]):
            for depth in range(1, path.count("/")):
                folder = "/".join(path.split("/")[1 : depth + 1])
                if folder and folder not in made:
                    made.add(folder)
                    entry = tarfile.TarInfo(folder)
                    entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
                    tar.addfile(entry)
            entry = tarfile.TarInfo(path.lstrip("/"))
            if path in links:
                entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, links[path], 0o777
                tar.addfile(entry)
            elif path in contents:
                with Path(contents[path]).open("rb") as file:
                    entry.size, entry.mode = os.fstat(file.fileno()).st_size, 0o755
                    tar.addfile(entry, file)
    layer_bytes = layer.getvalue()
    layer_hash = hashlib.sha256(layer_bytes).hexdigest()
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Entrypoint": want.entrypoint or None,
                "Cmd": want.cmd or None,
                "Env": ["PATH=/usr/local/bin:/usr/bin:/bin:/sbin:/usr/sbin"],
            },
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + layer_hash]},
        }
    ).encode()
    manifest = json.dumps(
        [{"Config": "config.json", "RepoTags": want.names.split(","), "Layers": ["layer.tar"]}]
    ).encode()
    with tarfile.open(want.out, "w") as tar:
        for name, data in (("config.json", config), ("layer.tar", layer_bytes), ("manifest.json", manifest)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


main()
