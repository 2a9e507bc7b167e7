"""Who wrote what a notification tells, as far as the kernel names him: for people who look for the other program.

nf_tables names the process at the end of each transaction. Routing messages carry the port of the socket that asked,
which is its process id as long as the process uses one socket. Invariant: no name is better than a wrong one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from felixpy.netlink import nftables as nft
from felixpy.netlink.message import Message

NFTA_GEN_PROC_PID, NFTA_GEN_PROC_NAME = 2, 3  # linux/netfilter/nf_tables.h


def nftables_writers(messages: Sequence[Message]) -> list[str]:
    """Words for the writer of each message of a batch; empty where the end of its transaction has not come yet."""
    writers: list[str] = []
    writer = ""
    for message in reversed(messages):
        if message.type & 0xFF == nft.NEWGEN:
            writer = _of_generation(message)
        writers.append(writer)
    return writers[::-1]


def _of_generation(message: Message) -> str:
    found = nft.message_attributes(message)
    name = found.get(NFTA_GEN_PROC_NAME, b"").rstrip(b"\0").decode(errors="replace")
    pid = int.from_bytes(found.get(NFTA_GEN_PROC_PID, b""), "big")
    return f"by {name} (process {pid})" if name else ""


def routing_writer(message: Message) -> str:
    """Words for the process behind a route or neighbour; empty if the kernel acted by itself."""
    if not message.port:
        return ""
    try:
        name = Path(f"/proc/{message.port}/comm").read_text(errors="replace").strip()
    except OSError:
        return f"by a program that has ended or has several netlink sockets (port {message.port})"
    return f"probably by {name} (process {message.port})"
