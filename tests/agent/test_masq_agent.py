"""A node that runs felixpy for ip-masq-agent's sake alone: no objects, no workloads, real packets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from felixpy.agent.masq_agent import MasqAgentFile
from felixpy.demo.patience import Patience
from tests.agent.bench import LEGACY, NFT, NFTABLES, Running, running
from tests.broker import Broker
from tests.kernel import ip, run

OUTSIDE = {socket.AF_INET: "203.0.113.2", socket.AF_INET6: "2001:db8:9::2"}
NODE_ADDRESS = {socket.AF_INET: "203.0.113.1", socket.AF_INET6: "2001:db8:9::1"}
OWN = {socket.AF_INET: "10.77.0.1", socket.AF_INET6: "fd00:77::1"}
"""Further addresses of the node, which a process is bound to: that program masquerades the node's own packets, too."""
SERVER = """
import socket, sys
server = socket.create_server(("::", 7777), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
while True:
    connection, peer = server.accept()
    connection.sendall(peer[0].removeprefix("::ffff:").encode())
    connection.close()
"""


@pytest.fixture
def outside(node: None) -> Iterator[None]:
    """A host beyond the node's uplink that answers with the address it sees."""
    ip("netns add outside", "link add up0 type veth peer name eth0 netns outside", "link set up0 up")
    ip("addr add 203.0.113.1/24 dev up0", "addr add 2001:db8:9::1/64 dev up0 nodad")
    ip("addr add 10.77.0.1/32 dev lo", "addr add fd00:77::1/128 dev lo")
    inside = ("ip", "-n", "outside")
    run(*inside, "link", "set", "eth0", "up")
    for address in ("203.0.113.2/24", "2001:db8:9::2/64"):
        run(*inside, "addr", "add", address, "dev", "eth0", *(("nodad",) if ":" in address else ()))
    run(*inside, "route", "add", "10.77.0.0/24", "via", "203.0.113.1")
    run(*inside, "-6", "route", "add", "fd00:77::/64", "via", "2001:db8:9::1")
    command = ("ip", "netns", "exec", "outside", "python3", "-c", SERVER)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None and server.stdout.readline() == b"ready\n"
        try:
            yield
        finally:
            server.kill()
    run("ip", "netns", "del", "outside")


def seen(family: socket.AddressFamily) -> str:
    """Under which address the host outside sees a connection from the node's further address.

    A host that is slow to say who it is, on a busy machine, is unreachable after three seconds, and asked again.
    """
    patience = Patience(30)
    while True:
        with socket.socket(family) as client:
            client.settimeout(30)
            client.bind((OWN[family], 0))
            try:
                client.connect((OUTSIDE[family], 7777))
            except OSError as error:
                if error.errno != errno.EHOSTUNREACH or patience.over():
                    raise
            else:
                return client.recv(100).decode()


async def becomes(found: Running, family: socket.AddressFamily, wanted: str) -> None:
    patience = Patience(30)
    while (got := await asyncio.to_thread(seen, family)) != wanted:
        assert not patience.over(), f"for {patience} {got}, not {wanted}: {found.log[-5:]}"


@pytest.mark.parametrize("environ", [NFTABLES, LEGACY, NFT], ids=["nftables", "legacy", "nft"])
def test_a_node_without_objects_masquerades_by_the_file(
    broker: Broker, outside: None, environ: dict[str, str], tmp_path: Path
) -> None:
    objects, file = tmp_path / "objects", tmp_path / "ip-masq-agent"
    objects.mkdir()
    variables = {**environ, "FELIX_IPMASQAGENTCONFIG": str(file)}

    async def scenario() -> None:
        async with running(broker, variables, directory=objects) as found:
            agent = found.agent
            follower = MasqAgentFile(file, agent.leave_alone, agent.recent, ipv6=True, all_reserved=False)
            task = asyncio.create_task(follower.run())
            try:
                await becomes(found, socket.AF_INET, NODE_ADDRESS[socket.AF_INET])
                assert await asyncio.to_thread(seen, socket.AF_INET6) == OWN[socket.AF_INET6], "the trap"
                file.write_text("nonMasqueradeCIDRs: [203.0.113.0/24, 'fd00::/8']")
                await becomes(found, socket.AF_INET, OWN[socket.AF_INET])
                await becomes(found, socket.AF_INET6, NODE_ADDRESS[socket.AF_INET6])
                await found.until(lambda: all(agent.ready.values()) and agent.complete, "ready")
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        async with running(broker, variables, directory=objects) as found:  # what stands is no leftover of objects
            found.agent.leave_alone(found.agent.configuration.not_masqueraded)
            await found.until(lambda: all(found.agent.ready.values()) and found.agent.complete, "ready again")
            assert found.agent.doubt() == ""

    asyncio.run(scenario())
