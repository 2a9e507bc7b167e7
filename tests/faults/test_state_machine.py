"""Any history of updates, drift, faults, kills and restarts on the real kernel: in the end the kernel is right.

After each quiet time an agent started from scratch finds nothing to change in what is ours, and what others own is
byte-identical to what they made it. The agent is killed at any call of the kernel or at any await, without a word.
"""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from felixpy.model.net import Net
from tests.drift.world import build_links, sh
from tests.faults.injection import Fault, Injector, injecting
from tests.faults.node import Node, add_foreign_state, foreign_state
from tests.faults.scenarios import configuration
from tests.netns import enter_new_network

EXAMPLES = int(os.environ.get("FELIXPY_EXAMPLES", "0"))
INTERFACES = st.integers(1, 5).map("cali{}".format)
NUMBERS = st.integers(1, 4)
EARLY = st.integers(1, 12)
FAULTS = st.sampled_from(
    [
        Fault("send", errno.ENOBUFS),
        Fault("send", errno.ENOMEM, times=3),
        Fault("answer", errno.ENOBUFS),
        Fault("message", errno.EBUSY),
        Fault("message", errno.EINVAL, times=3),
        Fault("dump", errno.EAGAIN),
        Fault("cut", times=5),
        Fault("sysctl", errno.EBUSY, times=2),
        Fault("monitor"),
        Fault("write"),
        Fault("filter", errno.ENOBUFS),
        Fault("tool"),
        Fault("legacy", errno.EAGAIN),
        Fault("conntrack", errno.EINTR),
    ]
)


def addresses(numbers: set[int]) -> tuple[Net, ...]:
    """Any of four addresses of each family; two workloads may well ask for the same."""
    return tuple(
        Net.parse(f"10.48.0.{number}") if number < 5 else Net.parse(f"fd00:48::{number - 4}") for number in numbers
    )


class NodeMachine(RuleBasedStateMachine):
    """``stirred`` says that something happened since the kernel was last compared."""

    backend = ""

    def __init__(self) -> None:
        super().__init__()
        enter_new_network()
        build_links(5)
        add_foreign_state()
        self.foreign = foreign_state()
        self.loop = asyncio.Runner()
        self.injection = injecting()
        self.injector: Injector = self.injection.__enter__()
        self.node = Node(self.backend)
        self.stirred = False

    def do(self, action: Any) -> Any:
        async def carry_out() -> Any:
            result = action()
            return await result if asyncio.iscoroutine(result) else result

        return self.loop.run(carry_out())

    def teardown(self) -> None:
        try:
            self.injector.disarm()
            self.quiet()
        finally:
            self.do(self.node.stop)
            self.injection.__exit__(None, None, None)
            self.loop.close()

    # --- the stream ----------------------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        self.do(self.node.start)
        self.stirred = True

    @rule(number=NUMBERS, interface=INTERFACES, own=st.sets(st.integers(1, 8), min_size=1, max_size=4))
    def publish(self, number: int, interface: str, own: set[int]) -> None:
        self.do(lambda: self.node.put_endpoint(number, interface=interface, addresses=addresses(own)))
        self.stirred = True

    @rule(number=NUMBERS)
    def delete(self, number: int) -> None:
        self.do(lambda: self.node.delete_endpoint(number))
        self.stirred = True

    @rule(length=st.integers(19, 24), nat_outgoing=st.booleans())
    def change_pools(self, length: int, nat_outgoing: bool) -> None:
        def change() -> None:
            self.node.put_pool("v4", str(Net.parse(f"10.48.0.0/{length}")), nat_outgoing=nat_outgoing)
            self.node.put_pool("v6", f"fd00:48::/{length + 26}", nat_outgoing=not nat_outgoing)

        self.do(change)
        self.stirred = True

    @rule(action=st.sampled_from(["Accept", "Drop", "Return"]))
    def change_rules(self, action: str) -> None:
        self.do(lambda: self.node.publish(configuration(action)))
        self.stirred = True

    # --- the kernel ----------------------------------------------------------------------------------------------

    @rule(interface=INTERFACES)
    def flap(self, interface: str) -> None:
        sh(f"ip link set {interface} down; ip link set {interface} up")
        self.stirred = True

    @rule(interface=INTERFACES)
    def replace_interface(self, interface: str) -> None:
        sh(f"ip link del {interface}; ip link add {interface} type veth peer name p-{interface}")
        sh(f"ip link set {interface} up; ip link set p-{interface} up")
        self.stirred = True

    @rule(
        what=st.sampled_from(
            [
                "ip route flush proto 222",
                "ip -6 route flush proto 222",
                "ip route replace 10.48.0.1/32 dev cali3 proto static",
                "ip -6 route replace fd00:48::1/128 dev cali3 proto static metric 1024",
                "ip route add 10.77.0.0/16 via 172.31.0.9 proto 222",
                "ip neigh flush dev cali1 nud permanent",
                "echo 0 > /proc/sys/net/ipv4/conf/cali2/proxy_arp",
                "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
                "nft delete table ip6 felixpy || ip6tables-nft -t raw -F PREROUTING",
                "nft flush chain ip felixpy filter-FORWARD",
                "iptables-nft -F fpy-FORWARD || iptables-legacy -F fpy-FORWARD",
                "nft flush set ip felixpy to-workload || ipset flush fpy4-to-workload",
                "nft add element ip felixpy pools '{ 10.99.0.0/16 }' || ipset add fpy4-pools 10.99.0.0/16",
            ]
        )
    )
    def drift(self, what: str) -> None:
        """Not all of it is told by the kernel, so that the comparison of everything is due."""
        sh(f"({what}) || true")
        self.do(lambda: self.node.compare_everything() if self.node.agent else None)
        self.stirred = True

    @rule(number=st.integers(3, 250))
    def foreign_change(self, number: int) -> None:
        """Another program changes what is its own."""
        iptables = "iptables-legacy" if self.backend == "legacy" else "iptables-nft"
        sh(f"nft add element inet foreign s '{{ 192.0.2.{number} }}'; ipset -exist add foreign 192.0.2.{number}")
        sh(f"ip route replace unreachable 198.19.{number}.0/24 proto 80; {iptables} -A FOREIGN -s 192.0.2.{number}")
        self.foreign = foreign_state()

    # --- faults --------------------------------------------------------------------------------------------------

    @rule(fault=FAULTS, call=EARLY)
    def arm(self, fault: Fault, call: int) -> None:
        self.injector.arm(fault, call)

    @rule(call=EARLY)
    def will_be_killed(self, call: int) -> None:
        """The agent dies at one of its next calls of the kernel."""
        self.injector.arm(Fault("kill"), call)

    @precondition(lambda self: self.node.task is not None)
    @rule(turns=st.integers(0, 40))
    def kill(self, turns: int) -> None:
        """The agent dies at whatever it awaits after some turns of the loop."""

        async def die() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            await self.node.stop()

        self.do(die)
        self.stirred = True

    @rule(turns=st.integers(1, 60))
    def go_on(self, turns: int) -> None:
        """Let the agent work for a while, not to the end."""

        async def turn() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.do(turn)

    @precondition(lambda self: self.node.task is not None)
    @rule()
    def restart(self) -> None:
        self.do(self.node.stop)
        self.do(self.node.start)
        self.stirred = True

    # --- what must hold --------------------------------------------------------------------------------------------

    @precondition(lambda self: self.stirred)
    @rule()
    def quiet(self) -> None:
        """After any of it, and with an agent alive, the kernel becomes right."""

        async def settle() -> None:
            if self.node.task is None:
                self.node.start()
            await self.node.settled()

        self.do(settle)
        self.stirred = False

    @invariant()
    def foreign_state_is_untouched(self) -> None:
        assert foreign_state() == self.foreign


@pytest.mark.parametrize("backend", ["nftables", "legacy", "nft"])
def test_any_history_ends_with_the_right_kernel(backend: str) -> None:
    machine = type(f"{backend.capitalize()}Machine", (NodeMachine,), {"backend": backend})
    examples = EXAMPLES or {"nftables": 8, "legacy": 5, "nft": 4}[backend]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=15,
            deadline=None,
            derandomize=not EXAMPLES,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
