"""What the agent tells systemd, on a real socket. What systemd does of it: ``test_service.py``."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from felixpy.agent.supervisor import Supervisor


def told(path: str, *, live: bool, ready: bool, listen: bool = True) -> list[list[str]]:
    """Datagrams of a moment with an agent in this state, then of its end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        if listen:
            end.bind(path.replace("@", "\0", 1) if path.startswith("@") else path)
        end.setblocking(False)

        async def moment() -> None:
            supervisor = Supervisor({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "400000"})
            probes = (lambda: (live, "no progress for 99 s")), (lambda: (ready, ""))
            task = asyncio.create_task(supervisor.follow(*probes, lambda: "ready;\nand well"))
            await asyncio.sleep(0.3)
            supervisor.reload(lambda: None)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(moment())
        datagrams = []
        while listen:
            try:
                datagrams.append(end.recv(4096).decode().split("\n"))
            except BlockingIOError:
                break
    return datagrams


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_ready_is_said_once_and_the_watchdog_is_fed(kind: str, tmp_path: Path) -> None:
    path = str(tmp_path / "notify") if kind == "path" else f"@{tmp_path}/notify"
    datagrams = told(path, live=True, ready=True)
    assert datagrams[0] == ["READY=1", "WATCHDOG=1", "STATUS=ready; and well"]
    assert datagrams[1] == ["WATCHDOG=1"]
    reloading, again, stopping = datagrams[-3:]
    assert reloading[0] == "RELOADING=1"
    assert again == ["READY=1"]
    assert stopping[0] == "STOPPING=1"


def test_before_the_first_complete_apply_it_asks_for_time_and_a_reload_does_not_make_it_ready(tmp_path: Path) -> None:
    datagrams = told(str(tmp_path / "notify"), live=True, ready=False)
    assert "EXTEND_TIMEOUT_USEC=60000000" in datagrams[0]
    assert not any("READY=1" in facts for facts in datagrams)


def test_without_progress_the_watchdog_starves(tmp_path: Path) -> None:
    facts = [fact for datagram in told(str(tmp_path / "notify"), live=False, ready=False) for fact in datagram]
    assert "STATUS=no progress for 99 s" in facts
    assert not any(fact.startswith(("WATCHDOG", "EXTEND", "READY")) for fact in facts)


def test_nobody_listens(tmp_path: Path) -> None:
    assert told(str(tmp_path / "nobody"), live=True, ready=True, listen=False) == []


def full(end: socket.socket, path: str) -> None:
    """Fill the queue of a receiver that does not read."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as other:
        while True:
            try:
                other.sendto(b"other", path)
            except BlockingIOError:
                return


def emptied(end: socket.socket) -> list[str]:
    facts: list[str] = []
    while True:
        try:
            facts += end.recv(4096).decode().split("\n")
        except BlockingIOError:
            return facts


@pytest.mark.parametrize("during", ["start", "reload"])
def test_what_a_full_queue_does_not_take_is_said_again(during: str, tmp_path: Path) -> None:
    path = str(tmp_path / "notify")

    async def moment(end: socket.socket) -> None:
        supervisor = Supervisor({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "100000"})
        if during == "start":
            full(end, path)
        task = asyncio.create_task(supervisor.follow(lambda: (True, ""), lambda: (True, ""), lambda: "ready"))
        await asyncio.sleep(0.2)
        if during == "reload":
            assert "READY=1" in emptied(end)
            supervisor.reload(lambda: full(end, path))
            assert "RELOADING=1" in emptied(end)
        else:
            assert "READY=1" not in emptied(end)
        await asyncio.sleep(0.2)
        said = emptied(end)
        assert said.count("READY=1") == 1
        assert during == "reload" or "STATUS=ready" in said
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(path)
        end.setblocking(False)
        asyncio.run(moment(end))
