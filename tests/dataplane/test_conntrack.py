"""Released addresses lose their conntrack entries: real flows through a router, which is this test's own network."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import subprocess
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from felixpy.dataplane.conntrack import ConntrackCleaner
from felixpy.demo.host import PORT, Host
from felixpy.model.net import FAMILIES, Family, parse_address
from felixpy.netlink.transport import NetlinkError, NetlinkSocket, nested
from tests.netlink.conntrack_lab import CountingSocket, OtherSubsystem, create, create_all, listed, numbered, without
from tests.netns import enter_new_network, enter_private_namespaces

PATIENCE_S = 20.0
UNUSED_PROTOCOL = 31
HOSTS = ("a", "b", "out")
V4 = {name: f"10.{number}.0.2" for number, name in enumerate(HOSTS, 1)}
V6 = {name: f"fd00:{number}::2" for number, name in enumerate(HOSTS, 1)}
ADDRESSES = {name: {Family.V4: V4[name], Family.V6: V6[name]} for name in HOSTS}
ROUTER_OUT = {Family.V4: "10.3.0.1", Family.V6: "fd00:3::1"}
RULES = f"""
table inet t {{
  set gone4 {{ type ipv4_addr; }}
  set gone6 {{ type ipv6_addr; }}
  chain forward {{
    type filter hook forward priority 0; policy drop;
    ct state established accept
    ip saddr @gone4 drop
    ip6 saddr @gone6 drop
    accept
  }}
  chain to_a {{
    type nat hook prerouting priority -100;
    iifname "out" tcp dport 8080 dnat ip to {V4["a"]}:{PORT}
    iifname "out" tcp dport 8080 dnat ip6 to [{V6["a"]}]:{PORT}
  }}
  chain nat_out {{
    type nat hook postrouting priority 100;
  }}
}}
"""


@pytest.fixture(scope="module")
def private_namespaces() -> None:
    enter_private_namespaces()


@pytest.fixture
def network(private_namespaces: None) -> None:
    enter_new_network()


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test, 60)

    asyncio.run(bounded())


def nft(rules: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=rules, check=True, text=True)


def ip(commands: Sequence[str]) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), check=True, text=True)


def masquerade(on: bool) -> None:
    nft("flush chain inet t nat_out\n" + ('add rule inet t nat_out oifname "out" masquerade\n' if on else ""))


def sysctl(name: str, value: int) -> None:
    Path(f"/proc/sys/net/{name}").write_text(f"{value}\n")


@contextlib.asynccontextmanager
async def router() -> AsyncIterator[dict[str, Host]]:
    """Hosts a, b and out, each on a cable of its own to this test's network, which forwards and masquerades to out."""
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        sysctl(name, 1)
    for name in ("ipv4/conf/all/rp_filter", "ipv4/conf/default/rp_filter"):
        sysctl(name, 0)
    hosts = {name: await Host.start(name, ADDRESSES[name]) for name in HOSTS}
    try:
        await asyncio.gather(*(_plug(host) for host in hosts.values()))
        nft(RULES)
        masquerade(True)
        yield hosts
    finally:
        await asyncio.gather(*(host.close() for host in hosts.values()))


async def _plug(host: Host) -> None:
    gateways = {Family.V4: V4[host.name][:-1] + "1", Family.V6: V6[host.name][:-1] + "1"}
    commands = [
        f"link add name {host.name} type veth peer name eth0 netns {host.pid}",
        f"addr add {gateways[Family.V4]}/24 dev {host.name}",
        f"addr add {gateways[Family.V6]}/64 dev {host.name} nodad",
        f"link set dev {host.name} up",
    ]
    ip(commands)
    inside = [
        f"addr add {V4[host.name]}/24 dev eth0",
        f"addr add {V6[host.name]}/64 dev eth0 nodad",
        "link set eth0 up",
    ]
    await host.ip([*inside, *(f"route add default via {gateway}" for gateway in gateways.values())])
    for family in FAMILIES:
        await host.listen(host.address(family))


class Watched:
    """A cleaner with what it said."""

    def __init__(self, socket: NetlinkSocket | None = None) -> None:
        self.socket = socket or CountingSocket()
        self.released: list[frozenset[bytes]] = []
        self.warnings: list[str] = []
        self.cleaner = ConntrackCleaner(self.socket, self.released.append, self.warnings.append)

    def release(self, *addresses: str) -> None:
        self.cleaner.release(map(parse_address, addresses))

    async def freed(self, *addresses: str) -> None:
        """Wait until none of the addresses is being released."""
        await until(lambda: not any(self.cleaner.is_releasing(parse_address(address)) for address in addresses))


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def watched(socket: NetlinkSocket | None = None) -> AsyncIterator[Watched]:
    one = Watched(socket)
    try:
        yield one
    finally:
        one.cleaner.close()


def packed(*addresses: str) -> frozenset[bytes]:
    return frozenset(map(parse_address, addresses))


# --- real flows ------------------------------------------------------------------------------------------------------


async def talk(hosts: dict[str, Host], family: Family) -> None:
    """TCP, UDP and ping: a and b to the outside (masqueraded) and to each other, and the outside to a by DNAT."""
    a, b, out = (hosts[name] for name in HOSTS)
    for one, other in ((a, out), (b, out), (a, b), (b, a)):
        address = other.address(family)
        for protocol in ("tcp", "udp"):
            await one.open_flow(protocol, address)
        assert await one.ping(address)
    seen = await out.tcp(ROUTER_OUT[family], 8080)
    assert seen is not None


@pytest.mark.parametrize("name", ["a", "b"])
def test_only_the_released_workload_loses_its_flows(network: None, name: str) -> None:
    async def scenario() -> None:
        async with router() as hosts, watched() as one:
            for family in FAMILIES:
                await talk(hosts, family)
            before, addresses = listed(), (V4[name], V6[name])
            assert {entry.protocol for entry in before} == {"tcp", "udp", "icmp", "icmpv6"}
            one.release(*addresses)
            await one.freed(*addresses)
            assert listed() == without(before, *addresses)
            lost = len(before - listed())
            assert lost == 2 * (9 + (name == "a"))  # three protocols to out, to the other and from it, and the DNAT
            assert isinstance(one.socket, CountingSocket)
            assert (one.socket.dumps(), one.socket.deletes()) == (1, [lost])
            assert (one.released, one.warnings) == ([packed(*addresses)], [])

    run(scenario())


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_one_family_may_go_alone(network: None, family: Family) -> None:
    async def scenario() -> None:
        async with router() as hosts, watched() as one:
            for version in FAMILIES:
                await talk(hosts, version)
            before = listed()
            one.release(ADDRESSES["a"][family])
            await one.freed(ADDRESSES["a"][family])
            assert listed() == without(before, ADDRESSES["a"][family]) != before

    run(scenario())


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_flow_of_a_removed_workload_stops(network: None, family: Family) -> None:
    async def scenario() -> None:
        async with router() as hosts, watched() as one:
            flows = [await hosts["a"].open_flow(kind, hosts["out"].address(family)) for kind in ("tcp", "udp")]
            other = await hosts["b"].open_flow("tcp", hosts["out"].address(family))
            address = ADDRESSES["a"][family]
            nft(f"add element inet t gone{family.version} {{ {address} }}")
            assert all([await flow.ask() for flow in flows])  # rules alone do not stop what is established
            one.release(address)
            await one.freed(address)
            assert [await flow.ask(timeout=0.4) for flow in flows] == [None, None]
            assert await other.ask() == other.first
            nft(f"delete element inet t gone{family.version} {{ {address} }}")
            assert await hosts["a"].tcp(hosts["out"].address(family), timeout=5.0)

    run(scenario())


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_nat_is_decided_anew(network: None, family: Family) -> None:
    async def scenario() -> None:
        async with router() as hosts, watched() as one:
            mine = await hosts["a"].open_flow("udp", hosts["out"].address(family))
            other = await hosts["b"].open_flow("udp", hosts["out"].address(family))
            masquerade(False)
            for flow in (mine, other):
                seen = await flow.ask()
                assert seen and seen.address == ROUTER_OUT[family]
            one.release(ADDRESSES["a"][family])
            await one.freed(ADDRESSES["a"][family])
            seen = await mine.ask(timeout=5.0)
            assert seen and seen.address == ADDRESSES["a"][family]
            assert await other.ask() == other.first

    run(scenario())


# --- many ------------------------------------------------------------------------------------------------------------


def test_many_addresses_go_in_one_pass(network: None) -> None:
    """100 workloads of both families with 20 entries each, among 4,000 of others."""

    async def scenario() -> None:
        gone = [numbered(family, number) for family in FAMILIES for number in range(1, 101)]
        for family in FAMILIES:
            outside = numbered(family, 0xFF00)
            numbers = (number for number in range(1, 201) for _ in range(20))
            create_all(
                create(numbered(family, number), outside, ports=(1 + index, 53)) for index, number in enumerate(numbers)
            )
        before = listed()
        async with watched() as one:
            for address in gone:
                one.release(address)
            await one.freed(*gone)
            assert isinstance(one.socket, CountingSocket)
            assert (one.cleaner.passes, one.socket.dumps()) == (1, 1)
            assert one.socket.deletes() == [200] * 20
            assert one.released == [packed(*gone)]
        assert len(before) == 8000
        assert listed() == without(before, *gone)
        assert len(listed()) == 4000

    run(scenario())


def test_the_event_loop_runs_on_during_a_pass(network: None) -> None:
    async def scenario() -> None:
        create_all(create(numbered(Family.V4, number), "10.2.0.1") for number in range(1, 20001))
        async with watched() as one:
            one.release(numbered(Family.V4, 7))
            turns = 0
            while one.cleaner.is_releasing(parse_address(numbered(Family.V4, 7))):
                await asyncio.sleep(0.0005)
                turns += 1
            assert isinstance(one.socket, CountingSocket)
            assert (one.cleaner.passes, one.socket.deletes()) == (1, [1])
            assert turns > 10

    run(scenario())


# --- waiting, failing, stopping --------------------------------------------------------------------------------------


class Gate(CountingSocket):
    """A socket whose dumps wait for ``open``, like those of a kernel that is slow."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.open = threading.Event()

    def dump(self, request: Any) -> Any:
        is_table = request.type & 0xFF == 1
        for messages in super().dump(request):
            yield messages
            if is_table:
                self.reached.set()
                assert self.open.wait(PATIENCE_S)


def test_an_address_that_comes_during_a_pass_goes_into_the_next(network: None) -> None:
    async def scenario() -> None:
        one_address, other, free = (numbered(Family.V4, number) for number in (1, 2, 3))
        create_all(create(address, "10.2.0.1") for address in (one_address, other, free))
        gate = Gate()
        async with watched(gate) as one:
            one.release(one_address)
            await until(gate.reached.is_set)
            one.release(other, one_address)  # the pass that runs has read the table already
            states = [one.cleaner.is_releasing(parse_address(address)) for address in (one_address, other, free)]
            assert states == [True, True, False]
            assert one.released == []
            create_all([create(one_address, "10.2.0.2")])
            gate.open.set()
            await one.freed(one_address, other)
            assert one.released == [packed(one_address, other)]
            assert (one.cleaner.passes, gate.dumps()) == (2, 2)
        assert listed() == without(listed(), one_address, other)
        assert len(listed()) == 1

    run(scenario())


class FailsFirst(CountingSocket):
    """A socket on which the first ``times`` reads of the table fail half-way."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def dump(self, request: Any) -> Any:
        for messages in super().dump(request):
            if request.type & 0xFF == 1 and self.times > 0:
                self.times -= 1
                raise NetlinkError(errno.ENOMEM, "Cannot allocate memory")
            yield messages


def test_a_failure_is_said_once_and_tried_again(network: None) -> None:
    async def scenario() -> None:
        address = numbered(Family.V6, 1)
        create_all([create(address, numbered(Family.V6, 2)), create(numbered(Family.V6, 3), numbered(Family.V6, 2))])
        socket = FailsFirst(3)
        async with watched(socket) as one:
            one.release(address)
            assert one.cleaner.reason(parse_address(address)) == ""
            await until(lambda: socket.times == 0)
            await until(lambda: one.warnings)
            assert one.cleaner.reason(parse_address(address)) == "Cannot allocate memory"
            assert len(listed()) == 2
            await one.freed(address)
            assert (one.cleaner.passes, socket.dumps()) == (4, 4)
            assert one.released == [packed(address)]
            (warning,) = one.warnings
            assert warning.startswith(f"The kernel does not delete the conntrack entries of {address}: Cannot allocate")
            assert one.cleaner.reason(parse_address(address)) == ""
        assert len(listed()) == 1

    run(scenario())


class RefusedDeletes(CountingSocket):
    """Spoils the deletes of entries with one address, so that the kernel refuses them and no others.

    Kernels refuse so what a flowtable forwards past the rules (EBUSY).
    """

    def __init__(self, address: bytes) -> None:
        super().__init__()
        self.address: bytes | None = address

    def transact(self, requests: Any, *, batch: bool = False) -> Any:
        spoilt = [
            request._replace(payload=request.payload[:4] + nested(1, b""))
            if self.address and self.address in request.payload
            else request
            for request in requests
        ]
        return super().transact(spoilt, batch=batch)


def test_only_an_address_that_the_kernel_refuses_waits(network: None) -> None:
    async def scenario() -> None:
        bad, good, new = (numbered(Family.V6, number) for number in (1, 2, 3))
        create_all(create(address, numbered(Family.V6, 4)) for address in (bad, good, new))
        socket = RefusedDeletes(parse_address(bad))
        async with watched(socket) as one:
            one.release(bad, good)
            await one.freed(good)
            assert one.released == [packed(good)]
            assert one.cleaner.reason(parse_address(bad)) == "Invalid argument"
            one.release(new)
            await one.freed(new)
            assert one.released == [packed(good), packed(new)]
            assert one.cleaner.is_releasing(parse_address(bad))
            assert {entry.addresses[0] for entry in listed()} == {bad}
            socket.address = None
            await one.freed(bad)
            assert one.released == [packed(good), packed(new), packed(bad)]
            assert listed() == set()
            (warning,) = one.warnings
            assert f"{bad}: Invalid argument" in warning

    run(scenario())


@pytest.fixture(params=[OtherSubsystem, lambda: NetlinkSocket(UNUSED_PROTOCOL)], ids=["subsystem", "protocol"])
def no_ctnetlink(request: pytest.FixtureRequest, network: None) -> Iterator[NetlinkSocket]:
    """What a kernel answers that lacks ctnetlink, or nfnetlink as a whole."""
    socket = request.param()
    yield socket
    socket.close()


def test_without_ctnetlink_nobody_waits(no_ctnetlink: NetlinkSocket) -> None:
    async def scenario() -> None:
        async with watched(no_ctnetlink) as one:
            for number in (1, 2):
                one.release(numbered(Family.V4, number))
                await one.freed(numbered(Family.V4, number))
            assert one.released == [packed(numbered(Family.V4, number)) for number in (1, 2)]
            (warning,) = one.warnings
            assert "nf_conntrack_netlink" in warning

    run(scenario())


def test_close_stops_in_the_middle(network: None) -> None:
    async def scenario() -> None:
        create_all(create("10.1.0.1", "10.2.0.1", ports=(port, 53)) for port in range(1, 3001))
        gate = Gate()
        async with watched(gate) as one:
            one.release("10.1.0.1")
            await until(gate.reached.is_set)
            one.cleaner.close()
            gate.open.set()
            await until(lambda: not any(thread.name.startswith("conntrack") for thread in threading.enumerate()))
            assert (one.released, one.warnings, gate.deletes(), gate.dumps()) == ([], [], [], 1)
        assert len(listed()) == 3000

    run(scenario())


def test_nothing_to_release_asks_nothing(network: None) -> None:
    async def scenario() -> None:
        async with watched() as one:
            one.release()
            await asyncio.sleep(0)
            assert one.socket.sends == 0
            one.release("10.1.0.1")
            await one.freed("10.1.0.1")
            assert isinstance(one.socket, CountingSocket)
            assert (one.released, one.socket.dumps(), one.socket.sends) == ([packed("10.1.0.1")], 0, 1)

    run(scenario())
