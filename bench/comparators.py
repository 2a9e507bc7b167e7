"""Other ways to program one workload, run in the node without an agent: ``python -m bench.comparators``.

Each writes the rules and routes that most agents write: per workload and family a chain for traffic from it and one for
traffic to it, reached by a dispatch, a /32 or /128 route and a permanent neighbour. They are as fast as the technique
allows: one restore per family, one ``nft`` for both families, one ``ip -batch`` for all routes and neighbours, started
directly from this process, which lives in the namespace and is told what to do by one JSON line per change. Where
agents compute nothing here, felixpy's figure includes its stream and its calculation.

    exec-iptables-legacy, exec-iptables-nft   iptables-restore --noflush per family, then ip -batch
    exec-nft                                  nft -f - (verdict maps), then ip -batch
    libnftables                               the rules of exec-nft by one call in process; no routes
    pyroute2                                  the routes and neighbours by one pyroute2 call each; no rules

Answers are ``{"begin": ns, "end": ns, "processes": n}`` on the monotonic clock. Must never run outside a namespace of
the benchmark.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from bench.workloads import SPARE, SPARES, Workload
from felixpy.model.net import FAMILIES, Family

PROTOCOL = 99
"""Of the routes; not felixpy's, not the kernel's."""
PART = 500
"""Workloads per transaction while a crowd is loaded."""
CROWD_INTERFACE = Workload(SPARE + SPARES - 1).interface
"""All routes of the crowd go here: their interfaces do not matter to the cost of one more."""


class Comparator(Protocol):
    """One technique."""

    processes: int

    def prepare(self, count: int) -> None:
        """Load what ``count`` workloads need, into an empty kernel."""

    def add(self, one: Workload) -> None: ...

    def delete(self, one: Workload) -> None: ...

    def clear(self) -> None:
        """Remove everything."""


def run(*command: str, text: str = "") -> None:
    """Run a program to its end.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()[:300]}")


# --- routes ------------------------------------------------------------------------------------------------------


def route_lines(one: Workload, families: Iterable[Family], verb: str, interface: str = "") -> list[str]:
    """``ip -batch`` lines: neighbours, then routes, so that the last one seen is a route."""
    device = interface or one.interface
    lines = []
    for family in families:
        mac = f" lladdr {one.mac} nud permanent" if verb == "replace" else ""
        lines.append(f"neigh {verb} {one.address(family)} dev {device}{mac}")
    for family in families:
        lines.append(f"route {verb} {one.address(family)}/{family.bits} dev {device} proto {PROTOCOL}")
    return lines


def load_routes(families: Sequence[Family], first: int, count: int) -> None:
    lines = []
    for number in range(first, count):
        lines += route_lines(Workload(number), families, "replace", CROWD_INTERFACE)
    run("ip", "-batch", "-", text="\n".join(lines) + "\n")


def drop_routes(families: Sequence[Family]) -> None:
    for family in families:
        run("ip", f"-{family.version}", "route", "flush", "proto", str(PROTOCOL))
        run("ip", f"-{family.version}", "neigh", "flush", "dev", CROWD_INTERFACE, "nud", "permanent")


# --- iptables ----------------------------------------------------------------------------------------------------

_DISPATCH = {"from": "bench-from-wl", "to": "bench-to-wl"}
_MATCH = {"from": "-i", "to": "-o"}


def _chain(direction: str, one: Workload) -> str:
    return f"bench-{direction}-{one.interface}"


def iptables_rules(one: Workload) -> list[str]:
    """The rules of a workload's two chains: state, mark, what may not leave, profile, drop."""
    lines = []
    for direction in ("from", "to"):
        rule = f"-A {_chain(direction, one)} -m comment --comment bench:{one.name} "
        lines += [
            rule + "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            rule + "-m conntrack --ctstate INVALID -j DROP",
            rule + "-j MARK --set-xmark 0x0/0x10000",
        ]
        if direction == "from":
            lines += [rule + "-p udp -m multiport --dports 4789 -j DROP", rule + "-p ipencap -j DROP"]
        lines += [
            rule + "-j bench-profile",
            rule + "-m mark --mark 0x10000/0x10000 -j RETURN",
            rule + "-j DROP",
        ]
    return lines


def iptables_addition(workloads: Iterable[Workload], *, insert: bool) -> str:
    """Restore text that adds workloads; ``insert`` puts each dispatch in front, as for one that comes later."""
    chains, rules = [], []
    for one in workloads:
        chains += [f":{_chain(direction, one)} - [0:0]" for direction in ("from", "to")]
        rules += iptables_rules(one)
        for direction, dispatch in _DISPATCH.items():
            head = f"-I {dispatch} 1" if insert else f"-A {dispatch}"
            rules.append(f"{head} {_MATCH[direction]} {one.interface} -g {_chain(direction, one)}")
    return "\n".join(["*filter", *chains, *rules, "COMMIT", ""])


def iptables_removal(one: Workload) -> str:
    lines = []
    for direction, dispatch in _DISPATCH.items():
        lines.append(f"-D {dispatch} {_MATCH[direction]} {one.interface} -g {_chain(direction, one)}")
    for direction in _DISPATCH:
        lines += [f"-F {_chain(direction, one)}", f"-X {_chain(direction, one)}"]
    return "\n".join(["*filter", *lines, "COMMIT", ""])


_IPTABLES_BASE = """*filter
:bench-from-wl - [0:0]
:bench-to-wl - [0:0]
:bench-profile - [0:0]
-A bench-profile -j MARK --set-xmark 0x10000/0x10000
-A FORWARD -i cali+ -j bench-from-wl
-A FORWARD -o cali+ -j bench-to-wl
COMMIT
"""


class ExecIptables:
    """``iptables-restore --noflush`` per family, then ``ip -batch``."""

    def __init__(self, variant: str, families: Sequence[Family]) -> None:
        self._families = families
        self._restores = [
            f"{'iptables' if family is Family.V4 else 'ip6tables'}-{variant}-restore" for family in families
        ]
        self.processes = len(families) + 1

    def _restore(self, text: str) -> None:
        for restore in self._restores:
            run(restore, "--noflush", text=text)

    def prepare(self, count: int) -> None:
        self._restore(_IPTABLES_BASE)
        self._restore(iptables_addition(map(Workload, range(count)), insert=False))
        load_routes(self._families, 0, count)

    def add(self, one: Workload) -> None:
        self._restore(iptables_addition([one], insert=True))
        run("ip", "-batch", "-", text="\n".join(route_lines(one, self._families, "replace")) + "\n")

    def delete(self, one: Workload) -> None:
        self._restore(iptables_removal(one))
        run("ip", "-batch", "-", text="\n".join(route_lines(one, self._families, "del")) + "\n")

    def clear(self) -> None:
        for restore in self._restores:
            run(restore, text="*filter\nCOMMIT\n")  # without --noflush: chains of the table go
        drop_routes(self._families)


# --- nftables ----------------------------------------------------------------------------------------------------

_NFT = {Family.V4: "ip", Family.V6: "ip6"}


def nft_base(families: Iterable[Family]) -> str:
    """The table with its dispatch by verdict maps."""
    return "".join(
        f"""table {_NFT[family]} bench {{
  map from_workload {{ type ifname : verdict; }}
  map to_workload {{ type ifname : verdict; }}
  chain profile {{ meta mark set meta mark | 0x10000; }}
  chain forward {{
    type filter hook forward priority 0; policy accept;
    iifname vmap @from_workload
    oifname vmap @to_workload
  }}
}}
"""
        for family in families
    )


def nft_addition(one: Workload, families: Iterable[Family]) -> str:
    """Chains of one workload, and their places in the dispatch."""
    lines = []
    for family in families:
        table = f"{_NFT[family]} bench"
        for direction in ("from", "to"):
            chain = f"{direction}-{one.interface}"
            rule = f"add rule {table} {chain} "
            lines += [
                f"add chain {table} {chain}",
                rule + "ct state established,related accept",
                rule + "ct state invalid drop",
                rule + "meta mark set meta mark & 0xfffeffff",
            ]
            if direction == "from":
                lines += [rule + "udp dport 4789 drop", rule + "meta l4proto ipip drop"]
            lines += [
                rule + "jump profile",
                rule + "meta mark & 0x10000 == 0x10000 return",
                rule + "drop",
                f'add element {table} {direction}_workload {{ "{one.interface}" : goto {chain} }}',
            ]
    return "\n".join(lines) + "\n"


def nft_removal(one: Workload, families: Iterable[Family]) -> str:
    lines = []
    for family in families:
        table = f"{_NFT[family]} bench"
        for direction in ("from", "to"):
            chain = f"{direction}-{one.interface}"
            lines.append(f'delete element {table} {direction}_workload {{ "{one.interface}" : goto {chain} }}')
            lines += [f"flush chain {table} {chain}", f"delete chain {table} {chain}"]
    return "\n".join(lines) + "\n"


class ExecNft:
    """``nft -f -`` for both families, then ``ip -batch``."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families
        self.processes = 2

    def prepare(self, count: int) -> None:
        run("nft", "-f", "-", text=nft_base(self._families))
        for first in range(0, count, PART):
            crowd = map(Workload, range(first, min(first + PART, count)))
            run("nft", "-f", "-", text="".join(nft_addition(one, self._families) for one in crowd))
        load_routes(self._families, 0, count)

    def add(self, one: Workload) -> None:
        run("nft", "-f", "-", text=nft_addition(one, self._families))
        run("ip", "-batch", "-", text="\n".join(route_lines(one, self._families, "replace")) + "\n")

    def delete(self, one: Workload) -> None:
        run("nft", "-f", "-", text=nft_removal(one, self._families))
        run("ip", "-batch", "-", text="\n".join(route_lines(one, self._families, "del")) + "\n")

    def clear(self) -> None:
        for family in self._families:
            run("nft", "delete", "table", _NFT[family], "bench")
        drop_routes(self._families)


class LibNftables:
    """The rules of ``ExecNft`` by one call of libnftables; expects its crowd to be loaded, and writes no routes.

    Raises:
        OSError: libnftables.so.1 is not installed.
    """

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families
        self.processes = 0
        library = ctypes.CDLL("libnftables.so.1")
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        library.nft_ctx_buffer_error.argtypes = [ctypes.c_void_p]
        library.nft_ctx_get_error_buffer.argtypes = [ctypes.c_void_p]
        library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        self._library = library
        self._context = library.nft_ctx_new(0)
        library.nft_ctx_buffer_error(self._context)

    def _run(self, text: str) -> None:
        if self._library.nft_run_cmd_from_buffer(self._context, text.encode()):
            said = self._library.nft_ctx_get_error_buffer(self._context) or b""
            raise RuntimeError(f"libnftables refused: {said.decode(errors='replace').strip()[:300]}")

    def prepare(self, count: int) -> None:
        pass

    def add(self, one: Workload) -> None:
        self._run(nft_addition(one, self._families))

    def delete(self, one: Workload) -> None:
        self._run(nft_removal(one, self._families))

    def clear(self) -> None:
        pass


class Pyroute2Routes:
    """Routes and neighbours by one pyroute2 call each; expects the crowd's routes to be loaded."""

    def __init__(self, families: Sequence[Family]) -> None:
        from pyroute2 import IPRoute

        self._families = families
        self._netlink = IPRoute()
        self._indexes: dict[str, int] = {}
        self.processes = 0

    def _index(self, interface: str) -> int:
        if interface not in self._indexes:
            self._indexes[interface] = int(Path(f"/sys/class/net/{interface}/ifindex").read_text())
        return self._indexes[interface]

    def prepare(self, count: int) -> None:
        for number in range(SPARE, SPARE + SPARES):
            self._index(Workload(number).interface)

    def add(self, one: Workload) -> None:
        index = self._index(one.interface)
        for family in self._families:
            address = one.address(family)
            self._netlink.neigh(
                "replace", dst=address, lladdr=one.mac, ifindex=index, family=int(family), state="permanent"
            )
            self._netlink.route("replace", dst=f"{address}/{family.bits}", oif=index, proto=PROTOCOL)

    def delete(self, one: Workload) -> None:
        index = self._index(one.interface)
        for family in self._families:
            address = one.address(family)
            self._netlink.neigh("del", dst=address, ifindex=index, family=int(family))
            self._netlink.route("del", dst=f"{address}/{family.bits}", oif=index, proto=PROTOCOL)

    def clear(self) -> None:
        pass


COMPARATORS: dict[str, Callable[[Sequence[Family]], Comparator]] = {
    "exec-iptables-legacy": lambda families: ExecIptables("legacy", families),
    "exec-iptables-nft": lambda families: ExecIptables("nft", families),
    "exec-nft": ExecNft,
    "libnftables": LibNftables,
    "pyroute2": Pyroute2Routes,
}
FOR_BACKEND = {
    "nftables": ("exec-nft", "libnftables", "pyroute2"),
    "legacy": ("exec-iptables-legacy",),
    "nft": ("exec-iptables-nft",),
}
"""Comparator (a) of each back-end first; those that need its crowd behind it."""
RULES_ONLY = frozenset({"libnftables"})


# --- the process -------------------------------------------------------------------------------------------------


class Server:
    """Carries out JSON lines: ``{"op", "name", …}``."""

    def __init__(self) -> None:
        self._made: dict[str, Comparator] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        operation, name = request["op"], request["name"]
        try:
            if operation == "prepare":
                families = [family for family in FAMILIES if family.version in request["versions"]]
                self._made[name] = COMPARATORS[name](families)
                self._made[name].prepare(request["count"])
                return {}
            one = self._made[name]
            if operation == "clear":
                one.clear()
                return {}
            workload = Workload(request["number"])
            begin = time.monotonic_ns()
            (one.add if operation == "add" else one.delete)(workload)
            return {"begin": begin, "end": time.monotonic_ns(), "processes": one.processes}
        except (OSError, RuntimeError, ImportError) as error:
            return {"failed": str(error)}


def main() -> None:
    server = Server()
    for line in sys.stdin:
        print(json.dumps(server.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
