"""The private keys of this node's WireGuard devices, one file of each family, as ``wg`` writes keys.

A key is made once and survives a reboot, so that no other node has to learn another one. Invariant: nobody but root
reads a file that was made here, and a file that is there is never written over.
"""

from __future__ import annotations

import os
from pathlib import Path

from felixpy.model.net import Family
from felixpy.model.wireguard import KEY_BYTES, clamped, format_key, parse_key

NAMES = {Family.V4: "wireguard.key", Family.V6: "wireguard-v6.key"}


class KeyFiles:
    """Keys by family, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, family: Family) -> Path:
        return self._folder / NAMES[family]

    def read(self, family: Family) -> bytes:
        """The key of a family, empty if there is none yet.

        Raises:
            OSError: the file cannot be read, or holds no key; one sentence.
        """
        path = self.path(family)
        try:
            return clamped(parse_key(path.read_text()))
        except FileNotFoundError:
            return b""
        except (ValueError, UnicodeDecodeError):
            raise OSError(f"the key file {path} holds no WireGuard key; remove it, and a new one is made") from None
        except OSError as error:
            raise OSError(f"the key file {path} cannot be read: {error.strerror}") from None

    def ensure(self, family: Family, present: bytes) -> bytes:
        """The key of a family. Without a file it is the device's ``present`` one, or a new one, and gets its file.

        Raises:
            OSError: there is no file, and none can be made; one sentence.
        """
        if key := self.read(family):
            return key
        key = clamped(present or os.urandom(KEY_BYTES))
        path = self.path(family)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _write_anew(path, format_key(key) + "\n")
        except OSError as error:
            raise OSError(
                f"the key file {path} cannot be written: {error.strerror}; set WireguardKeyDirectory to a folder that "
                "survives a reboot"
            ) from None
        return self.read(family)


def _write_anew(path: Path, text: str) -> None:
    """Make a file for root alone, all of it or nothing; one that somebody else has made meanwhile stays.

    Raises:
        OSError
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        draft.unlink()
