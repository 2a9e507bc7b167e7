"""Many endpoints go at once: the conntrack table is gone through once for all of them."""

from __future__ import annotations

import asyncio

import pytest

from felixpy.model.resources import Update
from tests.drift.world import endpoint, put, running, sh
from tests.netns import enter_new_network, enter_private_namespaces

REMOVED, KEPT = 50, 3


@pytest.fixture(autouse=True)
def network() -> None:
    enter_private_namespaces()
    enter_new_network()


def tracked(numbers: range) -> int:
    """Entries of endpoints: one in each family is made for each."""
    count = 0
    for family, prefix in (("ipv4", "10.48.0."), ("ipv6", "fd00:48::")):
        text = sh(f"conntrack -L -f {family} 2>/dev/null")
        count += sum(f"src={prefix}{number} " in text for number in numbers)
    return count


def track(number: int) -> str:
    options = "-p udp --sport 4000 --dport 5000 --timeout 600"
    return (
        f"conntrack -I -s 10.48.0.{number} -d 198.51.100.1 {options}\n"
        f"conntrack -I -s fd00:48::{number} -d 2001:db8::1 {options}\n"
    )


async def remove_many(backend: str) -> None:
    kept, removed = range(1, KEPT + 1), range(KEPT + 1, KEPT + REMOVED + 1)
    async with running(backend, endpoints=KEPT + REMOVED) as world:
        sh("".join(track(number) for number in (*kept, *removed)))
        assert (tracked(kept), tracked(removed)) == (2 * KEPT, 2 * REMOVED)
        for number in removed:
            world.agent.update(Update(endpoint(number).key, None))
        while tracked(removed):  # noqa: ASYNC110 - asks the kernel
            await asyncio.sleep(0.05)
        assert tracked(kept) == 2 * KEPT
        cleaner = world.agent.dataplane.release._cleaner
        assert cleaner is not None
        assert 1 <= cleaner.passes <= 2, "one pass, or one for each family"
        for number in removed:
            world.agent.update(put(endpoint(number)))
        await world.quiet()
        assert not any(cleaner.is_releasing(net.packed) for number in removed for net in endpoint(number).addresses)


@pytest.mark.parametrize("backend", ["nftables", "legacy", "nft"])
def test_one_pass_for_many_addresses(backend: str) -> None:
    asyncio.run(remove_many(backend))
