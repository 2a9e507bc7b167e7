"""A node as Calico's Felix leaves it becomes felixpy's, under flows that go on."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest

from felixpy.dataplane.felix import removal
from tests.agent.bench import GOOD, POOLS
from tests.cli.command import Done, felixpy, sentence
from tests.kernel import ip, run

SAVED = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [5:300]
:OUTPUT ACCEPT [0:0]
:cali-FORWARD - [0:0]
:cali-tw-cali1 - [0:0]
:mine - [0:0]
-A FORWARD -m comment --comment "cali:wUHhoiAYhphO9Mso" -j cali-FORWARD
-A FORWARD -s 192.0.2.0/24 -m comment --comment "of somebody else, not cali: at all" -j ACCEPT
-A FORWARD -m comment --comment "cali:S93hcgKJrXEqnTfs" -m mark --mark 0x10000/0x10000 -j ACCEPT
-A cali-FORWARD -o cali+ -g cali-tw-cali1
-A cali-tw-cali1 -m comment --comment "cali:abc" -j MARK --set-xmark 0x10000/0x10000
-A mine -j RETURN
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -s 192.0.2.0/24 -j MASQUERADE
COMMIT
"""


def test_what_is_removed_is_felix_s_and_nothing_else() -> None:
    text, words = removal(SAVED)
    assert text == (
        "*filter\n"
        '-D FORWARD -m comment --comment "cali:wUHhoiAYhphO9Mso" -j cali-FORWARD\n'
        '-D FORWARD -m comment --comment "cali:S93hcgKJrXEqnTfs" -m mark --mark 0x10000/0x10000 -j ACCEPT\n'
        ":cali-FORWARD - [0:0]\n:cali-tw-cali1 - [0:0]\n-X cali-FORWARD\n-X cali-tw-cali1\nCOMMIT\n"
    )
    assert words[:2] == ["filter chain cali-FORWARD", "filter chain cali-tw-cali1"]
    assert removal("*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n") == ("", [])


def felix_was_here(variant: str) -> None:
    """Routes, rules and sets in Felix's layout for one workload; and what others have."""
    run("ipset", "create", "cali40this-host", "hash:ip")
    run("ipset", "create", "others", "hash:ip")
    for family in ("ip", "ip6"):
        run("nft", "add", "table", family, "calico")
    run("nft", "add", "table", "arp", "calico-arp")
    run("nft", "add", "table", "arp", "others")
    for tool in ("iptables", "ip6tables"):
        saved = SAVED if tool == "iptables" else SAVED.replace("192.0.2.0/24", "2001:db8::/64")
        run(f"{tool}-{variant}-restore", stdin=saved)
    uses = ("-m", "set", "--match-set", "cali40this-host", "src")
    run(f"iptables-{variant}", "-I", "cali-FORWARD", *uses, "-j", "RETURN")
    ip("route add 10.48.0.1/32 dev cali1 scope link proto 80", "route add blackhole 10.48.0.64/26 proto 80")
    ip("route add fd00:48::1/128 dev cali1 proto 80 metric 1024")
    ip("route add 203.0.113.0/24 dev eth0 proto static")


def others(variant: str) -> list[str]:
    """Rules of others, whole, and their set and route."""
    text = run(f"iptables-{variant}-save") + run(f"ip6tables-{variant}-save")
    kept = [line for line in text.splitlines() if line.startswith("-A") and "cali" not in line.replace("not cali:", "")]
    return [line for line in kept if "fpy-" not in line] + [run("ip", "route", "show", "203.0.113.0/24")]


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_a_node_of_felix_becomes_ours(node: None, tmp_path: Path, variant: str) -> None:
    felix_was_here(variant)
    (tmp_path / "objects.json").write_text(json.dumps({"kind": "List", "items": [*POOLS, GOOD]}))
    env = {"FELIX_RESOURCEDIRECTORY": str(tmp_path), "FELIX_IPTABLESBACKEND": {"nft": "NFT"}.get(variant, "Legacy")}
    env["FELIX_NFTABLESMODE"] = "Disabled"
    before = others(variant)
    assert "felixpy takeover" in sentence(felixpy("plan", env=env))
    dry = felixpy("takeover", "--dry-run", env=env)
    assert (dry.code, dry.err) == (0, "")
    assert "would adopt route 10.48.0.1/32 dev cali1" in dry.out
    assert "would remove IP set cali40this-host" in dry.out
    assert "cali-FORWARD" in run(f"iptables-{variant}-save")
    done, gaps = asyncio.run(watched(env))
    assert (done.code, done.err) == (0, ""), done
    assert gaps == [], "at every moment there is a route to the workload"
    left = run(f"iptables-{variant}-save") + run(f"ip6tables-{variant}-save") + run("ipset", "list", "-n")
    assert "cali" not in left.replace("not cali:", "").replace("cali+", "").replace("cali1", "")
    assert "others" in left
    tables = run("nft", "list", "tables")
    assert "calico" not in tables
    assert "table arp others" in tables
    assert others(variant) == before
    assert "proto 222" in run("ip", "route", "show", "10.48.0.1")
    assert "proto 222" in run("ip", "-6", "route", "show", "fd00:48::1")
    assert felixpy("plan", env=env).out == "nothing to change\n"
    again = felixpy("takeover", env=env)
    assert (again.code, again.out) == (0, "nothing of a Felix is on this node\n")


def test_a_felix_in_another_container_is_seen_by_its_health_port(node: None, tmp_path: Path) -> None:
    """In a pod /proc has only its own processes; felixpy itself, which serves the same port, does not run yet."""
    felix_was_here("nft")
    env = {"FELIX_RESOURCEDIRECTORY": str(tmp_path), "FELIX_HEALTHENABLED": "true", "FELIX_HEALTHHOST": "127.0.0.1"}
    with socket.create_server(("127.0.0.1", 9099)):
        refused = felixpy("takeover", env=env)
    assert refused.code == 1
    assert "127.0.0.1:9099 is answered" in sentence(refused)
    assert "cali-FORWARD" in run("iptables-nft-save")
    assert "would remove" in felixpy("takeover", "--dry-run", env=env).out


async def watched(env: dict[str, str]) -> tuple[Done, list[str]]:
    """Take over, and note every moment without a route to the workload."""
    gaps: list[str] = []
    work = asyncio.create_task(asyncio.to_thread(felixpy, "takeover", env=env))
    while not work.done():
        for address in ("10.48.0.1", "fd00:48::1"):
            found = await asyncio.to_thread(run, "ip", "route", "get", address)
            if "dev cali1" not in found:
                gaps.append(found)
    return await work, gaps
