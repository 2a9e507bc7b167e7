"""``felixpy demo``, run as a user does, without a terminal: its verdict, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path

import pytest

from felixpy.demo.agent import FELIXPY, environment
from felixpy.demo.patience import limit

QUICK = "--no-latency"
RUNS = [("auto",), ("nftables", "--ipv6-only", QUICK), ("legacy", QUICK), ("nft", "--ipv6-only", QUICK)]
"""Every back-end and both shapes of the lab; ``world`` covers the rest of the combinations."""


async def run_demo(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *FELIXPY,
        "demo",
        *arguments,
        env=environment({"TMPDIR": str(tmp_path), "CI": "true"}),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    stdout, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, stdout.decode()


@pytest.mark.parametrize("arguments", RUNS, ids=" ".join)
async def test_every_claim_of_the_demo_holds(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    links = {path.name for path in Path("/sys/class/net").iterdir()}
    code, said = await run_demo(tmp_path, "--backend", *arguments)
    found = re.search(r"(\d+) of (\d+) claims hold", said)
    assert found and found[1] == found[2], said
    assert int(found[2]) >= (40 if "--ipv6-only" in arguments else 80)
    assert re.search(r"vxlanMode switched 6 times under a ping every 5 ms  [1-9]\d+ pings, 0 lost", said)
    assert "without an agent 0 of" in said
    assert ("publish → programmed, one endpoint" in said) == (QUICK not in arguments)
    assert code == 0
    assert list(tmp_path.iterdir()) == []
    assert {path.name for path in Path("/sys/class/net").iterdir()} == links


async def test_an_unknown_back_end_is_one_sentence(tmp_path: Path) -> None:
    code, said = await run_demo(tmp_path, "--backend", "pf")
    assert code == 2
    assert "nftables" in said and "Traceback" not in said


async def test_keep_holds_the_lab_until_it_is_told_to_end(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *FELIXPY,
        "demo",
        "--ipv6-only",
        "--keep",
        QUICK,
        env=environment({"TMPDIR": str(tmp_path)}),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout
    async with limit(90):
        while (line := await process.stdout.readline()) and b"nsenter" not in line:
            pass
    assert b"nsenter -t" in line
    assert os.path.exists(f"/proc/{line.split()[2].decode()}/ns/net")  # noqa: PTH110 - a magic link
    process.send_signal(signal.SIGTERM)
    rest, _ = await process.communicate()
    assert process.returncode == 130
    assert b"the lab is gone" in rest
    assert list(tmp_path.iterdir()) == []
