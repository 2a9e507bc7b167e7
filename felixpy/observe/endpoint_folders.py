"""Which folders of endpoint-status files are ours, over restarts and changes of EndpointStatusPathPrefix.

    <prefix>/endpoint-status/.felixpy    every file in this folder is felixpy's, and of which boot they are
    /run/felixpy/felixpy.endpoint-status a line per such folder, beside the control socket

Felix's format names no owner, so the folder does. Felix removes what it does not know from a folder that it takes over:
then it is not ours any more. Invariant: what is in a folder without our mark is never removed as something left over.
Must never decide whether the agent runs: a record that cannot be written costs the way back to unusual folders only.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import structlog

from felixpy.config import Settings

FOLDER = "endpoint-status"
MARK = ".felixpy"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Folders:
    """Folders of ours: those in the record, and ``places`` where one may be without a record."""

    def __init__(self, record: Path | None = None, places: Iterable[Path] = ()) -> None:
        self._record = record
        self._places = tuple(places)

    @classmethod
    def of(cls, settings: Settings) -> Folders:
        """By a node's settings; also looks where the files are by default, for whom the record is gone."""
        socket = settings.control_socket
        prefixes = {Settings().endpoint_status_path_prefix, settings.endpoint_status_path_prefix}
        return cls(
            socket and socket.with_suffix(f".{FOLDER}"), sorted(prefix / FOLDER for prefix in prefixes if prefix)
        )

    def ours(self, besides: Path | None = None) -> list[Path]:
        """Every folder that bears our mark, but for one; each once, whatever links lead to it."""
        found: list[Path] = []
        for folder in (*self._recorded(), *self._places):
            known = found if besides is None else [*found, besides]
            if is_ours(folder) and not any(is_same(folder, one) for one in known):
                found.append(folder)
        return found

    def claim(self, folder: Path) -> None:
        """Mark a folder as ours; it is recorded first, so that none is ever ours and unknown.

        Raises:
            OSError: it cannot be marked.
        """
        if _boot_of(folder) == _boot() and (self._record is None or folder in self._recorded()):
            return
        self._remember([*filter(is_ours, self._recorded()), folder])
        # JSON, for programs that read every file of the folder.
        text = {"felixpy": "every file in this folder is made and removed by felixpy", "boot": _boot()}
        write_whole(folder / MARK, json.dumps(text).encode() + b"\n")

    def release(self, folder: Path) -> None:
        """Remove the mark of a folder without files, and the folder unless others use it.

        Raises:
            OSError: the mark cannot be removed.
        """
        (folder / MARK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()
        self._remember(filter(is_ours, self._recorded()))

    def _recorded(self) -> list[Path]:
        try:
            text = self._record.read_text() if self._record else ""
        except (OSError, ValueError):
            return []
        return [Path(line) for line in text.splitlines() if line.startswith("/")]

    def _remember(self, folders: Iterable[Path]) -> None:
        if self._record is None:
            return
        lines = [f"{folder}\n" for folder in dict.fromkeys(folders)]
        try:
            if lines:
                with contextlib.suppress(FileExistsError):
                    self._record.parent.mkdir(mode=0o755)
                write_whole(self._record, "".join(lines).encode())
            else:
                self._record.unlink(missing_ok=True)
        except OSError as error:
            reason = f"{self._record}: {error.strerror or error}"
            structlog.get_logger("felixpy").warning("folders of endpoint-status files are not recorded", reason=reason)


def is_ours(folder: Path) -> bool:
    try:
        return (folder / MARK).is_file()
    except OSError:
        return False  # it cannot be looked into, so it is none that we write


def is_of_earlier_boot(folder: Path) -> bool:
    """Whether a folder of ours tells of endpoints that were up before the machine started anew."""
    return is_ours(folder) and _boot_of(folder) != _boot()


def _boot() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _boot_of(folder: Path) -> str | None:
    try:
        found = json.loads((folder / MARK).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return str(found.get("boot")) if isinstance(found, dict) else None


def is_same(one: Path, other: Path) -> bool:
    """Whether two paths lead to one folder: /var/run is mostly a link to /run."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def files_in(folder: Path) -> list[Path]:
    """The files in a folder, without our mark; none if there is no such folder.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return [folder / one.name for one in entries if one.name != MARK and one.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def write_whole(path: Path, text: bytes) -> None:
    """Write a file that is seen with its whole content or not at all.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".felixpy-{os.getpid()}")
    try:
        _write_new(temporary, text)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _write_new(path: Path, text: bytes) -> None:
    """Make a file that was not there. Whoever may write in the folder must not lead us elsewhere by a symbolic link."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC), "wb") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(text)


def describe(folder: Path) -> str:
    """A folder with what is in it, for people."""
    number = len(files_in(folder))
    return f"{folder}: {number} file{'' if number == 1 else 's'}"


def empty(folders: Folders, folder: Path) -> None:
    """Remove everything of ours in a folder, the mark last: what fails is found again.

    Raises:
        OSError: something cannot be removed.
    """
    for path in files_in(folder):
        path.unlink(missing_ok=True)
    folders.release(folder)
