"""What attaching containers leaves on a node once no agent runs there any more: for ``felixpy cleanup``.

Invariant: only what carries our mark, or names our plugin, is ours. The runtime's configuration goes first, so that no
container comes meanwhile, and the journal last, so that a removal that was cut short can be done again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from felixpy.cni.conflist import PLUGIN
from felixpy.cni.pair import MARK, remove_links
from felixpy.config import Settings
from felixpy.netlink.rtnetlink import link_dump_request
from felixpy.netlink.transport import NETLINK_ROUTE, NetlinkSocket
from felixpy.netlink.veth import NamedLink, decode_named_link

JOURNAL = ("attachments", ".attachments.new", "attachments.damaged")


class Remains(NamedTuple):
    """``links`` are the node's ends of containers' interfaces, and those whose making was cut short."""

    configuration: Path | None
    links: tuple[NamedLink, ...]
    journal: tuple[Path, ...]

    @classmethod
    def of(cls, settings: Settings) -> Remains:
        """Look, and change nothing. Blocking.

        Raises:
            OSError: the kernel or a file cannot be read.
        """
        conflist = settings.cni_config_file
        journal = (settings.cni_state_directory / name for name in JOURNAL)
        with contextlib.closing(NetlinkSocket(NETLINK_ROUTE)) as host:
            links = map(decode_named_link, host.dump_all(link_dump_request()))
            ours = tuple(link for link in links if link.alias.startswith(MARK) or link.is_unfinished)
        return cls(conflist if conflist and _is_ours(conflist) else None, ours, tuple(filter(Path.exists, journal)))

    @property
    def attached(self) -> list[str]:
        """Interfaces of containers that are in use."""
        return [link.name for link in self.links if not link.is_unfinished]

    def told(self) -> Iterator[str]:
        """What there is, in words."""
        if self.configuration:
            yield f"network configuration {self.configuration}"
        for link in self.links:
            yield f"interface {link.name} of container {link.alias.removeprefix(MARK) or 'that was never attached'}"
        for path in self.journal:
            yield f"journal of attachments {path}"

    def remove_before_rules(self) -> None:
        """The configuration and the interfaces: rules guard a container as long as it has one.

        Raises:
            OSError: the kernel refused, or a file cannot be removed.
        """
        if self.configuration:
            self.configuration.unlink(missing_ok=True)
        remove_links(self.links)

    def remove_journal(self) -> None:
        """The last of all, with the folder that was made for it, if nothing else is there.

        Raises:
            OSError: a file cannot be removed.
        """
        for path in self.journal:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                path.parent.rmdir()


def _is_ours(conflist: Path) -> bool:
    try:
        written = msgspec.json.decode(conflist.read_bytes())
    except (FileNotFoundError, msgspec.DecodeError, RecursionError):
        return False
    plugins = written.get("plugins") if isinstance(written, dict) else None
    return isinstance(plugins, list) and any(isinstance(one, dict) and one.get("type") == PLUGIN for one in plugins)
