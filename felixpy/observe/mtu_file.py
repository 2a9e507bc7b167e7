"""The MTU that workloads may use, as Calico writes it for CNI plugins: one number in a file.

Written when it changes and where the folder is there, which whoever wants the file makes. It must never stop the agent.
"""

from __future__ import annotations

from pathlib import Path

from felixpy.standing import Standing

WHAT = "the file with the MTU of workloads cannot be written"


class MTUFile:
    """Follows one number."""

    def __init__(self, path: Path | None, standing: Standing | None = None) -> None:
        self._path = path
        self._written = 0
        self._standing = standing or Standing(level="warning")

    def set(self, mtu: int) -> None:
        """Say the MTU; 0 is one that is not known yet."""
        if not mtu or mtu == self._written or self._path is None or not self._path.parent.is_dir():
            return
        draft = self._path.with_name(f".{self._path.name}.felixpy")
        try:
            draft.write_text(str(mtu))
            draft.replace(self._path)
        except OSError as error:
            self._standing.fails(WHAT, f"{self._path}: {error.strerror}")
            return
        self._standing.works(WHAT)
        self._written = mtu
