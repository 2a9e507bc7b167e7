"""Every step of an ADD fails once, or is the moment at which the runtime gives up: nothing may be left.

The server runs in this process, on the real kernel; only what it asks of the agent is played.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from felixpy.cni import journal, pair, transfer
from felixpy.cni.attachments import LocalAttachments
from felixpy.cni.calls import Calls
from felixpy.cni.journal import Journal, parse
from felixpy.cni.programming import Node, NodeState, NotProgrammed
from felixpy.cni.server import CniServer
from felixpy.demo.patience import limit
from felixpy.ipam.assignment import NoAddress, Wanted
from felixpy.ipam.local import LocalAddresses
from felixpy.model.net import Family, Net
from felixpy.model.resources import ResourceKey, Update, WorkloadEndpoint
from felixpy.netlink.lookup import Leads
from felixpy.netlink.message import Message
from felixpy.netlink.rtnetlink import RTN_UNICAST
from felixpy.netlink.transport import NETLINK_ROUTE, NetlinkError, NetlinkSocket
from felixpy.netlink.veth import End, NamedLink, veth_request
from tests.kernel import ip, ip_json, run

RANGES = {Family.V4: [Net.parse("10.48.7.0/29")], Family.V6: [Net.parse("fd00:48::740/125")]}


class Played:
    """The agent: an endpoint is up as soon as it is told of, unless a test says otherwise."""

    def __init__(self) -> None:
        self.endpoints: dict[ResourceKey, WorkloadEndpoint] = {}
        self.refuses = ""
        self.silent = False
        self.step: Callable[[str], None] = lambda name: None

    def update(self, update: Update) -> None:
        if isinstance(update.resource, WorkloadEndpoint):
            self.endpoints[update.key] = update.resource
        else:
            self.endpoints.pop(update.key, None)

    async def ready(self) -> None:
        self.step("ready")

    @contextlib.contextmanager
    def until_up(self, key: ResourceKey, is_it: Callable[[WorkloadEndpoint], bool]) -> Iterator[Awaitable[None]]:
        async def up() -> None:
            self.step("up")
            if self.refuses:
                raise NotProgrammed(self.refuses, later=False)
            if self.silent:
                await asyncio.Event().wait()
            assert is_it(self.endpoints[key])

        task = asyncio.ensure_future(up())
        try:
            yield task
        finally:
            task.cancel()

    def state(self) -> NodeState:
        return NodeState()

    def is_up(self, key: ResourceKey) -> tuple[bool, str]:
        return key in self.endpoints, ""


class Addresses(LocalAddresses):
    step: Callable[[str], None] = staticmethod(lambda name: None)

    async def assign(self, wanted: Wanted) -> tuple[Net, ...]:
        self.step("assign")
        found = await super().assign(wanted)
        await asyncio.sleep(0)
        return found


class Bench:
    """A server and what it keeps, in this process."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cni.sock"
        self.journal = Journal(folder / "state" / "attachments")
        self.played = Played()
        self.addresses = Addresses(lambda family: RANGES[family], "give it one")
        self.open_before = _open_namespaces()  # of other tests of this process
        self.attachments = LocalAttachments()
        node = Node("n1", lambda: "cali")
        self.calls = Calls(node, self.attachments, self.journal, self.addresses, self.played)
        self.server = CniServer(self.path, self.calls)

    async def call(self, command: str, container: str = "c1", netns: str = "/run/netns/pod") -> tuple[int, Any]:
        reader, writer = await self.begin(command, container, netns)
        line = await reader.readline()
        assert line, "the agent gave no answer"
        code, length = map(int, line.split())
        body = await reader.readexactly(length)
        writer.close()
        return code, json.loads(body) if body else None

    async def begin(
        self, command: str, container: str = "c1", netns: str = "/run/netns/pod"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        variables = {"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_IFNAME": "eth0", "CNI_NETNS": netns}
        environment = b"".join(f"{name}={value}\0".encode() for name, value in variables.items())
        ipam = {"type": "felixpy-ipam", "assign_ipv6": True}
        conf = json.dumps({"cniVersion": "1.1.0", "name": "net", "type": "felixpy-cni", "ipam": ipam}).encode()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(str(self.path))
        descriptor = os.open(netns, os.O_RDONLY)
        header = struct.pack("=8sII", transfer.MAGIC, len(environment), len(conf))
        socket.send_fds(connection, [header], [descriptor])
        os.close(descriptor)
        connection.sendall(environment + conf)
        connection.setblocking(False)
        return await asyncio.open_unix_connection(sock=connection)

    def left(self) -> dict[str, Any]:
        """Everything that an attachment is made of."""
        return {
            "links": [link["ifname"] for link in ip_json("link") if link["ifname"] != "lo"],
            "in the container": [link["ifname"] for link in ip_json("-n", "pod", "link") if link["ifname"] != "lo"],
            "addresses": len(self.addresses),
            "attachments": len(self.attachments),
            "endpoints": len(self.played.endpoints),
            "journal": list(parse(self.journal.path.read_bytes()).attachments),
            "descriptors of namespaces": _open_namespaces() - self.open_before,
        }


NOTHING = {
    "links": [], "in the container": [], "addresses": 0, "attachments": 0, "endpoints": 0, "journal": [],
    "descriptors of namespaces": 0,
}  # fmt: skip


def _open_namespaces() -> int:
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += entry.readlink().name.startswith("net:[")
    return found


async def until(condition: Callable[[], bool]) -> None:
    async with limit(60):
        while not condition():  # noqa: ASYNC110  the kernel sets no event
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Bench]:
    bench = Bench(folder)
    await bench.calls.open()
    task = asyncio.create_task(bench.server.serve())
    await until(bench.path.exists)
    try:
        yield bench
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def container(network: None) -> Iterator[None]:
    ip("netns add pod")
    yield
    ip("netns del pod")


class Steps:
    """Counts the steps of an ADD, and does something at one of them. To ask until an answer is right is one step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bench: Bench, at: int, does: Callable[[str], None]) -> None:
        self.count = 0
        self.at = at
        self.does = does
        self.armed = True
        self.happened = ""
        self._asked: tuple[Any, ...] = ()
        bench.played.step = self
        bench.addresses.step = self
        self._wrap(monkeypatch, NetlinkSocket, "transact")
        self._wrap(monkeypatch, NetlinkSocket, "ask")
        self._wrap(monkeypatch, pair, "enter")
        self._wrap(monkeypatch, pair, "write_sysctl")
        self._wrap(monkeypatch, journal.os, "fdatasync")

    def _wrap(self, monkeypatch: pytest.MonkeyPatch, where: Any, name: str) -> None:
        real = getattr(where, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            if name != "ask" or arguments != self._asked:
                self(name)
            if name == "ask":
                self._asked = arguments
            return real(*arguments, **named)

        monkeypatch.setattr(where, name, wrapped)

    def __call__(self, name: str) -> None:
        self.count += 1
        if self.armed and self.count == self.at:
            self.armed = False
            self.happened = name
            self.does(name)


def _tell(loop: asyncio.AbstractEventLoop, event: asyncio.Event, name: str) -> None:
    """From whatever thread."""
    loop.call_soon_threadsafe(event.set)


def fail(name: str) -> None:
    if name == "assign":
        raise NoAddress("none today")
    if name == "up":
        raise NotProgrammed("not today", later=False)
    if name == "ready":
        raise TimeoutError
    raise OSError(5, "not today")


def steps_of_an_add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    async def scenario() -> int:
        async with serving(tmp_path / "count") as bench:
            with monkeypatch.context() as patch:
                steps = Steps(patch, bench, 0, fail)
                assert (await bench.call("ADD"))[0] == 0
            count = steps.count
            assert (await bench.call("DEL"))[0] == 0
            return count

    return asyncio.run(scenario())


def test_a_failure_at_any_step_leaves_nothing(container: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = steps_of_an_add(tmp_path, monkeypatch)
    assert count >= 12

    async def scenario() -> None:
        happened = set()
        async with serving(tmp_path / "run") as bench:
            for at in range(1, count + 1):
                with monkeypatch.context() as patch:
                    steps = Steps(patch, bench, at, fail)
                    code, said = await bench.call("ADD")
                    steps.armed = False
                assert steps.happened, f"step {at} of {count} was not reached"
                assert code == 1, (at, steps.happened, said)
                assert said["msg"] and said["code"] in (5, 11, 100, 101, 102), (steps.happened, said)
                assert bench.left() == NOTHING, (at, steps.happened)
                happened.add(steps.happened)
            assert (await bench.call("ADD"))[0] == 0, "and after all of that one works"
            assert (await bench.call("DEL"))[0] == 0
            assert bench.left() == NOTHING
        assert {"ready", "assign", "transact", "enter", "write_sysctl", "fdatasync", "up"} <= happened

    asyncio.run(scenario())


def test_a_runtime_that_gives_up_at_any_step_leaves_nothing(
    container: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = steps_of_an_add(tmp_path, monkeypatch)

    async def scenario() -> None:
        async with serving(tmp_path / "run") as bench:
            for at in range(1, count + 1):
                bench.played.silent = True  # an ADD that nobody waits for must not end well meanwhile
                reached = asyncio.Event()
                loop = asyncio.get_running_loop()
                with monkeypatch.context() as patch:
                    Steps(patch, bench, at, partial(_tell, loop, reached))
                    _, writer = await bench.begin("ADD")
                    await reached.wait()
                    writer.close()
                    await until(lambda: bench.left() == NOTHING)
            bench.played.silent = False
            assert (await bench.call("ADD"))[0] == 0

    asyncio.run(scenario())


def test_a_del_ends_an_add_of_the_same_container(container: None, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as bench:
            bench.played.silent = True
            adding = asyncio.create_task(bench.call("ADD"))
            await until(lambda: len(bench.played.endpoints) == 1)
            assert await bench.call("DEL") == (0, None)
            code, said = await adding
            assert (code, said["code"]) == (1, 11)
            assert bench.left() == NOTHING

    asyncio.run(scenario())


def test_stopping_undoes_what_is_under_way_and_keeps_what_is_done(container: None, tmp_path: Path) -> None:
    ip("netns add other")

    async def scenario() -> None:
        async with serving(tmp_path) as bench:
            assert (await bench.call("ADD", "c2", "/run/netns/other"))[0] == 0
            bench.played.silent = True
            adding = asyncio.create_task(bench.call("ADD"))
            await until(lambda: len(bench.played.endpoints) == 2)
        with pytest.raises(AssertionError, match="no answer"):
            await adding
        assert len([link for link in ip_json("link") if link["ifname"].startswith("cali")]) == 1
        async with serving(tmp_path) as again:
            assert [one.container_id for one in again.attachments] == ["c2"]
            assert len(again.addresses) == 2
            assert (await again.call("DEL", "c2", "/run/netns/other"))[0] == 0
            assert again.left() == NOTHING

    asyncio.run(scenario())
    ip("netns del other")


def test_what_a_killed_agent_left_is_cleared_at_the_next_start(container: None, tmp_path: Path) -> None:
    """A pair that was never written down, and an attachment whose pair has gone."""
    ip("netns add other")

    async def scenario() -> None:
        async with serving(tmp_path) as bench:
            assert (await bench.call("ADD"))[0] == 0
            assert (await bench.call("ADD", "c2", "/run/netns/other"))[0] == 0
        ip("netns del other")
        await until(lambda: len([one for one in ip_json("link") if one["ifname"].startswith("cali")]) == 1)
        ip("link add cali0unfinished type veth peer name p0", "link set cali0unfinished alias felixpy:c3/eth0")
        ip("link add cali0foreign type veth peer name p1", "link set cali0foreign alias somebody")
        _make_half_a_pair("cali0half")
        async with serving(tmp_path) as again:
            assert "cali0half" not in {link["ifname"] for link in ip_json("link")}
            await until(lambda: "cali0unfinished" not in {link["ifname"] for link in ip_json("link")})
            assert [one.container_id for one in again.attachments] == ["c1"]
            assert len(again.addresses) == 2
            assert (await again.call("DEL"))[0] == 0
            assert "cali0foreign" in {link["ifname"] for link in ip_json("link")}

    asyncio.run(scenario())


def _make_half_a_pair(name: str) -> None:
    """As an agent leaves it that is killed between two messages."""
    with contextlib.closing(NetlinkSocket(NETLINK_ROUTE)) as netlink:
        namespace = os.open("/run/netns/pod", os.O_RDONLY)
        ends = End(name, b"\xee" * 6), End("half", b"\x02\0\0\0\0\1")
        assert netlink.transact([veth_request(*ends, namespace)]) == {}
        os.close(namespace)


def test_a_pod_of_a_cluster_that_is_followed_no_more_keeps_its_network(container: None, tmp_path: Path) -> None:
    """An agent that starts with another source tells of the pods that the journal has by itself."""

    async def scenario() -> None:
        async with serving(tmp_path) as bench:
            assert (await bench.call("ADD"))[0] == 0
            (attachment,) = bench.attachments
            await bench.journal.add(replace(attachment, namespace="default", pod="web-0"))
        async with serving(tmp_path) as again:
            (key,) = again.played.endpoints
            assert (key.name, key.namespace) == ("n1-k8s-web--0-eth0", "default")
            assert (await again.call("DEL"))[0] == 0
            assert again.left() == NOTHING

    asyncio.run(scenario())


def test_half_a_pair_under_the_name_that_is_needed(container: None, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as bench:
            assert (await bench.call("ADD"))[0] == 0
            (name,) = (link["ifname"] for link in ip_json("link") if link["ifname"].startswith("cali"))
            assert (await bench.call("DEL"))[0] == 0
            _make_half_a_pair(name)
            assert (await bench.call("ADD"))[0] == 0
            assert (await bench.call("DEL"))[0] == 0
            assert bench.left() == NOTHING

    asyncio.run(scenario())


def test_an_add_waits_until_the_nodes_end_sends(
    container: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel drops what goes by an end whose carrier it has not worked off yet: the first packet to a container."""
    seen = []
    decode = pair.decode_named_link

    def late(message: Message) -> NamedLink:
        """The kernel's work is behind: it has done it when asked for the third time."""
        seen.append(decode(message))
        return seen[-1]._replace(sends=len(seen) >= 3 and seen[-1].sends)

    async def scenario() -> None:
        async with serving(tmp_path) as bench:
            monkeypatch.setattr(pair, "decode_named_link", late)
            assert (await bench.call("ADD"))[0] == 0
            assert len(seen) >= 3
            assert seen[-1].sends
            monkeypatch.setattr(pair, "decode_named_link", lambda message: decode(message)._replace(sends=False))
            monkeypatch.setattr(pair, "_is_local", lambda socket, address: True)
            monkeypatch.setattr(pair, "READY_WITHIN", 0.0)
            assert (await bench.call("DEL"))[0] == 0
            code, said = await bench.call("ADD")
            assert code == 1
            assert "no carrier" in said["msg"]
            assert bench.left() == NOTHING

    asyncio.run(scenario())


def test_an_add_waits_until_the_containers_addresses_are_its_own(
    container: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel drops what comes for an IPv6 address that it has not worked off yet."""
    asked = []
    look_up = pair.leading_route

    def late(socket: NetlinkSocket, address: bytes) -> Leads:
        """The kernel's work is behind: it has done it when asked for the third time."""
        asked.append(address)
        if len(asked) < 3:
            raise NetlinkError(errno.ENETUNREACH, "no route")
        return look_up(socket, address)

    def never(socket: NetlinkSocket, address: bytes) -> Leads:
        return look_up(socket, address)._replace(kind=RTN_UNICAST)

    async def scenario() -> None:
        async with serving(tmp_path) as bench:
            monkeypatch.setattr(pair, "leading_route", late)
            assert (await bench.call("ADD"))[0] == 0
            assert len(asked) >= 3
            assert {len(address) for address in asked} == {16}
            monkeypatch.setattr(pair, "leading_route", never)
            monkeypatch.setattr(pair, "READY_WITHIN", 0.0)
            assert (await bench.call("DEL"))[0] == 0
            code, said = await bench.call("ADD")
            assert code == 1
            assert "is not local" in said["msg"]
            assert bench.left() == NOTHING

    asyncio.run(scenario())


def test_an_interface_of_somebody_else_is_left_alone(container: None, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as bench:
            assert (await bench.call("ADD"))[0] == 0
            (name,) = (link["ifname"] for link in ip_json("link") if link["ifname"].startswith("cali"))
            assert (await bench.call("DEL"))[0] == 0
            ip(f"link add {name} type veth peer name theirs", f"link set {name} alias theirs")
            code, said = await bench.call("ADD")
            assert (code, said["code"]) == (1, 101)
            assert name in said["msg"]
            assert await bench.call("DEL") == (0, None)
            (link,) = (one for one in ip_json("link") if one["ifname"] == name)
            assert link["ifalias"] == "theirs"
            ip(f"link del {name}")
            run("ip", "-n", "pod", "link", "add", "eth0", "type", "veth", "peer", "name", "theirs")
            code, said = await bench.call("ADD")
            assert (code, said["code"]) == (1, 101)
            assert "eth0" in said["msg"]
            assert [one["ifname"] for one in ip_json("link") if one["ifname"] != "lo"] == []

    asyncio.run(scenario())


def test_both_families_or_none(container: None, tmp_path: Path) -> None:
    """With the last IPv4 address gone, an IPv6 address that was free stays free."""

    async def scenario() -> None:
        async with serving(tmp_path) as bench:
            v4 = tuple(Net.host(bytes((10, 48, 7, number))) for number in range(8))
            bench.addresses.adopt("others", v4)
            code, said = await bench.call("ADD")
            assert (code, said["code"]) == (1, 100)
            assert "no IPv4 address is free" in said["msg"]
            assert len(bench.addresses) == len(v4)
            await bench.addresses.release("others", v4)
            assert bench.left() == NOTHING

    asyncio.run(scenario())
