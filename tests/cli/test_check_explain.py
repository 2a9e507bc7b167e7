"""check and explain as a person runs them: exit codes, JSON, errors as one sentence; and neither changes anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.agent.bench import GOOD, NFT, NFTABLES, POOLS, dump
from tests.cli.command import agent, felixpy
from tests.kernel import ip, run


def resources(folder: Path) -> dict[str, str]:
    (folder / "all.json").write_text(json.dumps(POOLS))
    return {**NFTABLES, "FELIX_RESOURCEDIRECTORY": str(folder)}


def test_check_without_an_agent(node: None, tmp_path: Path) -> None:
    before = dump()
    done = felixpy("check", env=resources(tmp_path))
    assert (done.code, done.err) == (0, ""), done
    assert "0 failures, 0 warnings" in done.out
    ip("route del default via 192.0.2.254")
    done = felixpy("check", "--json", env=resources(tmp_path))
    assert done.code == 1
    warned = {finding["id"]: finding for finding in done.json if finding["level"] == "warn"}
    assert set(warned) == {"route.default4", "route.gateway4"}
    assert all(finding["fix"] and finding["why"] for finding in warned.values())
    assert felixpy("check", "--family", "6", env=resources(tmp_path)).code == 0
    done = felixpy("check", env={**NFTABLES, "FELIX_RESOURCEDIRECTORY": str(tmp_path / "none")})
    assert done.code == 2
    assert "create it" in done.out
    ip("route add default via 192.0.2.254")
    assert dump() == before


def test_check_without_rights_says_so_and_goes_on(node: None, tmp_path: Path) -> None:
    without = ("setpriv", "--inh-caps=-all", "--bounding-set=-all")
    done = felixpy("check", "--json", env=resources(tmp_path), before=without)
    assert (done.code, done.err) == (2, "")
    levels = {finding["id"]: finding["level"] for finding in done.json}
    assert levels["caps"] == "fail"
    assert "kmod" not in levels
    assert levels["addr.v4"] == "info"


def test_check_that_cannot_be_done_is_a_failure() -> None:
    done = felixpy("check", "--config", "nowhere.toml")
    assert done.code == 2
    assert done.err.count("\n") == 1


def test_explain_beside_an_agent(node: None, tmp_path: Path) -> None:
    with agent(resources(tmp_path), tmp_path / "log"):
        before = dump()
        done = felixpy("explain", "10.48.0.1", "198.51.100.1", "tcp", "443", "--in", "cali1")
        assert done.code == 2, done
        assert "dropped by nftables table ip felixpy chain raw-from-workload of felixpy" in done.out
        done = felixpy("explain", "192.0.2.1", "192.0.2.7", "--json")
        assert (done.code, done.json["outcome"], done.json["out"]) == (0, "passes", "eth0")
        assert dump() == before


@pytest.mark.parametrize("environ", [NFTABLES, NFT], ids=["nftables", "nft"])
def test_explain_says_that_an_interface_does_not_exist(node: None, tmp_path: Path, environ: dict[str, str]) -> None:
    env = {**resources(tmp_path), **environ}
    (tmp_path / "good.json").write_text(json.dumps([GOOD]))
    with agent(env, tmp_path / "log"):
        ip("link del cali1")
        for packet in (("10.48.0.1", "198.51.100.1"), ("192.0.2.1", "10.48.0.1"), ("fd00:48::1", "2001:db8::7")):
            done = felixpy("explain", *packet, "tcp", "443")
            assert done.code == 3, done
            assert "is the address of a workload on cali1, an interface that does not exist" in done.out


def test_explain_is_honest_about_what_it_cannot_judge(node: None) -> None:
    run("nft", "-f", "-", stdin="table ip o { chain c { type filter hook output priority 0; meta skuid 0 drop; }; }")
    done = felixpy("explain", "192.0.2.1", "192.0.2.7")
    assert done.code == 3
    assert "not certain  nftables table ip o chain c: meta skuid 0 drop" in done.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("here", "10.0.0.1"), "'here' is no IPv4 or IPv6 address"),
        (("10.0.0.1", "fd00::1"), "of different families"),
        (("10.0.0.1", "10.0.0.2", "pigeon"), "'pigeon' is no protocol"),
        (("10.0.0.1", "10.0.0.2", "tcp", "70000"), "port 70000 is out of range"),
        (("10.0.0.1", "10.0.0.2", "--in", "cali9"), "there is no interface cali9"),
        (("169.254.9.9", "10.0.0.2", "--in", "lo0"), "`ip link` lists them"),
    ],
)
def test_explain_says_what_is_wrong_with_a_question(node: None, arguments: tuple[str, ...], words: str) -> None:
    done = felixpy("explain", *arguments)
    assert done.code == (1 if "--in" in arguments else 64)
    assert words in done.err
    assert done.err.count("\n") == 1
