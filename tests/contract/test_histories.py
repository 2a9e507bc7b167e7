"""Random histories of the dataplane over the fakes, with refusals and breaks at any write: in the end it is right.

The fakes keep the contract of the kernel, so thousands of writes cost what a few cost on the real one.
"""

from __future__ import annotations

import asyncio
import errno
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from felixpy.calc.entries import ElementKey, NeighbourKey, Route, RouteKey, RouteType, SetName
from felixpy.calc.graph import ABSENT
from felixpy.calc.rules import RuleSettings, desired_chains
from felixpy.config import Settings
from felixpy.dataplane.apply import Dataplane
from felixpy.dataplane.fake import FakePacketFilter
from felixpy.dataplane.links import Links
from felixpy.model.net import Family, Net
from felixpy.netlink.fake import FakeKernel, FakeSocket
from tests.kernel import Clock

PROTOCOL = Settings().device_route_protocol
INTERFACES = ("cali1", "cali2", "cali3")
LONG = 1000.0
STEPS = ("want", "want", "want", "drop", "flap", "steal", "refuse", "break", "mend", "apply", "apply", "read")


class History:
    """A dataplane whose kernel is the fake, and what it was told to want."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = Clock()
        self.kernel = FakeKernel()
        for name in INTERFACES:
            self.kernel.add_link(name)
        self.filters = {family: FakePacketFilter(family) for family in Family}
        self.dataplane = Dataplane(Settings(), Links(self.clock), self.filters, self.clock)
        self.dataplane.socket = self.dataplane.routing.socket = FakeSocket(self.kernel)
        self.dataplane.want_rules(nftables=True)

    async def step(self, what: str) -> None:
        await getattr(self, f"do_{what}")()

    def keys(self) -> list[RouteKey | NeighbourKey | ElementKey]:
        number, interface = self.random.randrange(1, 5), self.random.choice(INTERFACES)
        nets = (Net.parse(f"10.65.0.{number}"), Net.parse(f"fd00:65::{number}"))
        keys: list[RouteKey | NeighbourKey | ElementKey] = []
        for net in nets:
            metric = 0 if net.family is Family.V4 else 1024
            keys += [RouteKey(net.family, net, metric), NeighbourKey(interface, net.packed)]
            keys.append(ElementKey(SetName.FROM_WORKLOAD, net, interface))
        return keys

    async def do_want(self) -> None:
        keys = self.keys()
        interface = next(key.interface for key in keys if isinstance(key, NeighbourKey))
        for key in keys:
            if isinstance(key, RouteKey):
                scope = 253 if key.family is Family.V4 else 0
                self.dataplane.want({key: Route(RouteType.UNICAST, interface, scope=scope, protocol=PROTOCOL)})
            else:
                self.dataplane.want({key: b"\2\0\0\0\0\1" if isinstance(key, NeighbourKey) else None})

    async def do_drop(self) -> None:
        self.dataplane.want(dict.fromkeys(self.keys(), ABSENT))

    async def do_flap(self) -> None:
        """The dataplane hears of both ends of it, as notifications tell."""
        name = self.random.choice(INTERFACES)
        for up in (False, True):
            self.kernel.set_link(name, up=up)
            await self.do_read()

    async def do_steal(self) -> None:
        """Somebody deletes a route, and members of a set."""
        if self.kernel.routes:
            del self.kernel.routes[self.random.choice(list(self.kernel.routes))]
        self.filters[Family.V6].elements.clear()

    async def do_refuse(self) -> None:
        number = self.random.choice((errno.EBUSY, errno.ENOMEM, errno.EINVAL))
        odds, choose = self.random.random(), self.random
        self.kernel.refuses = lambda request: number if choose.random() < odds else 0
        self.filters[Family.V4].refuses = lambda key: "refused" if choose.random() < odds else ""

    async def do_break(self) -> None:
        choose, broken = self.random, self.filters[self.random.choice(list(Family))]
        broken.breaks = lambda: OSError(errno.ENOBUFS, "broken") if choose.random() < 0.5 else None
        self.kernel.interruptions = choose.randrange(3)

    async def do_mend(self) -> None:
        self.kernel.refuses = lambda request: 0
        self.kernel.interruptions = 0
        for one in self.filters.values():
            one.refuses, one.breaks = lambda key: "", lambda: None

    async def do_apply(self) -> None:
        self.clock.now += self.random.random()
        await self.dataplane.apply(complete=True)

    async def do_read(self) -> None:
        await self.dataplane.read()


async def live(seed: int, steps: list[str]) -> None:
    history = History(seed)
    await history.do_read()
    for step in steps:
        await history.step(step)
    await history.do_mend()
    history.clock.now += LONG
    await history.do_read()
    await history.do_apply()
    await history.do_read()
    assert [tuple(one) for one in history.dataplane.plan()] == []
    dataplane, kernel = history.dataplane, history.kernel
    routes = {RouteKey(*key): (kernel.links[route.interface].name) for key, route in kernel.routes.items()}
    assert routes == {key: route.interface for key, route in dataplane.routing.routes.table.desired.items()}
    neighbours = {NeighbourKey(kernel.links[index].name, address) for index, address in kernel.neighbours}
    assert neighbours == set(dataplane.routing.neighbours.table.desired)
    for family, one in history.filters.items():
        assert one.elements == set(dataplane.filters[family].elements.desired)
        assert one.chains == desired_chains(RuleSettings.of(Settings(), family, nftables=True))
    dataplane.close()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.lists(st.sampled_from(STEPS), max_size=30))
def test_any_history_with_any_refusals_ends_right(seed: int, steps: list[str]) -> None:
    asyncio.run(live(seed, steps))
