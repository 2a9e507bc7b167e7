"""Which blocks of which pools a node tries, and in which order."""

from __future__ import annotations

from itertools import islice
from typing import Any

from felixpy.ipam.candidates import blocks_of, fnv32, pools_for
from felixpy.model.net import Family, Net
from felixpy.model.resources import IPPool, Kind, ResourceKey
from felixpy.model.selectors import parse_selector


def pool(name: str, cidr: str, **fields: Any) -> IPPool:
    return IPPool(ResourceKey(Kind.IP_POOL, name), Net.parse(cidr), 26, **fields)


def test_fnv_as_go_has_it() -> None:
    """Values of FNV-1 with 32 bits from its authors' test vectors."""
    assert fnv32("") == 0x811C9DC5
    assert fnv32("a") == 0x050C5D7E
    assert fnv32("foobar") == 0x31F0B262


def test_every_block_once_from_the_nodes_own_place() -> None:
    orders = {}
    for node in ("node1", "node2", "node3"):
        found = list(blocks_of(Net.parse("10.48.0.0/21"), 26, node))
        assert len(found) == len(set(found)) == 32
        start = found.index(Net.parse("10.48.0.0/26"))
        assert found[start:] + found[:start] == sorted(found)
        orders[node] = found[0]
    assert len(set(orders.values())) > 1, "nodes begin at different places"


def test_a_pool_of_any_size_is_not_walked_in_advance() -> None:
    found = list(islice(blocks_of(Net.parse("fd00::/48"), 122, "node1"), 3))
    assert len(set(found)) == 3


def test_pools_by_selectors_and_by_request() -> None:
    pools = [
        pool("four", "10.48.0.0/16"),
        pool("rack", "10.49.0.0/16", node_selector=parse_selector("rack == 'a'")),
        pool("team", "10.50.0.0/16", namespace_selector=parse_selector("team == 'x'")),
        pool("off", "10.51.0.0/16", disabled=True),
        pool("tunnels", "10.52.0.0/16", allowed_uses=frozenset({"Tunnel"})),
        pool("manual", "10.53.0.0/16", manual=True),
        pool("six", "fd00:48::/64"),
    ]

    def names(asked: list[str], node: dict[str, str], namespace: dict[str, str]) -> list[str]:
        return [one.key.name for one in pools_for(pools, Family.V4, asked, node, namespace)[0]]

    assert names([], {}, {}) == ["four"]
    assert names([], {"rack": "a"}, {"team": "x"}) == ["four", "rack", "team"]
    assert names(["rack", "10.53.0.0/16"], {}, {}) == ["rack", "manual"]
    found, unknown = pools_for(pools, Family.V4, ["off", "six", "nowhere", "four"], {}, {})
    assert ([one.key.name for one in found], unknown) == (["four"], ["off", "six", "nowhere"])
