"""Findings about blocks: leaks, double owners, claims that contradict each other; and nothing about what is well."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from felixpy.ipam.block import Attribute, Block, assign_address, block_spec, new_block
from felixpy.ipam.survey import Facts, findings, rows, who_has
from felixpy.model.net import Net

POOL = Net.parse("10.48.0.0/16")
FIRST, SECOND = Net.parse("10.48.0.0/29"), Net.parse("10.48.0.8/29")


def with_pod(block: Block, ordinal: int, pod: str, node: str = "n1") -> Block:
    attribute = Attribute(f"net.{pod}", {"node": node, "namespace": "default", "pod": pod})
    return assign_address(block, attribute, block.address(ordinal))


def affinity(cidr: Net, node: str, **fields: Any) -> dict[str, Any]:
    return {"cidr": str(cidr), "node": node, "state": "confirmed", "type": "host", "deleted": False, **fields}


ONE, TWO = with_pod(new_block(FIRST, "n1"), 1, "a"), new_block(SECOND, "n2")
WELL = Facts(
    [block_spec(ONE), block_spec(TWO)],
    [affinity(FIRST, "n1"), affinity(SECOND, "n2"), affinity(FIRST, "n2", state="pending")],
    [POOL],
    frozenset({"n1", "n2"}),
    {("default", "a"): frozenset({ONE.address(1)}), ("default", "host"): frozenset()},
    {"net.a": "net.a"},
)


def test_nothing_is_wrong() -> None:
    assert findings(WELL) == []
    assert findings(Facts()) == []
    assert findings(replace(WELL, pods=None, nodes=None, pools=[])) == []


def test_rows() -> None:
    lent = with_pod(ONE, 3, "b", node="n2")
    assert rows(replace(WELL, blocks=[block_spec(TWO), block_spec(lent)])) == [
        (FIRST, "n1", 2, 8, 1),
        (SECOND, "n2", 0, 8, 0),
    ]


def test_each_kind_of_finding() -> None:
    cases: dict[str, Facts] = {
        "the handle Net.Old has no address in any block; kubectl delete ipamhandle net.old": replace(
            WELL, handles={"net.a": "net.a", "Net.Old": "net.old"}
        ),
        "the handle net.a has addresses and no IPAMHandle": replace(WELL, handles={}),
        "10.48.0.1 is in use by pod default/a, which is not there": replace(WELL, pods={}),
        "10.48.0.1 is in use by net.a of n1, no node any more": replace(WELL, nodes=frozenset({"n2"})),
        "block 10.48.0.0/29 belongs to n1, which is no node any more": replace(WELL, nodes=frozenset({"n2"})),
        "block 10.48.0.0/29 is in no pool": replace(WELL, pools=[SECOND]),
        "block 10.48.0.4/30 of n2 lies in block 10.48.0.0/29 of n1": replace(
            WELL, blocks=[*WELL.blocks, block_spec(new_block(Net.parse("10.48.0.4/30"), "n2"))]
        ),
        "block 10.48.0.0/29 has two confirmed affinities: n1 and n2": replace(
            WELL, affinities=[affinity(FIRST, "n1"), affinity(FIRST, "n2")]
        ),
        "n2 has a confirmed affinity to block 10.48.0.0/29, which belongs to n1": replace(
            WELL, affinities=[affinity(FIRST, "n2")]
        ),
        "n1 has a confirmed affinity to block 10.48.9.0/29, which is not there": replace(
            WELL, affinities=[affinity(Net.parse("10.48.9.0/29"), "n1")]
        ),
        "10.48.0.1 is the address of two pods: default/a and default/b": replace(
            WELL, pods={("default", name): frozenset({ONE.address(1)}) for name in "ab"}
        ),
        "10.48.0.5 of pod default/c is free in its block": replace(
            WELL, pods={**(WELL.pods or {}), ("default", "c"): frozenset({ONE.address(5)})}
        ),
        "10.48.0.0/29 lists an address as free twice": replace(
            WELL, blocks=[{**block_spec(ONE), "unallocated": [0, 0, 2, 3, 4, 5, 6, 7]}]
        ),
        "a BlockAffinity cannot be read": replace(WELL, affinities=[{"cidr": "nonsense"}]),
    }
    for expected, facts in cases.items():
        found = findings(facts)
        assert any(one.startswith(expected) for one in found), (expected, found)


def test_a_deleted_affinity_and_a_block_of_an_operator_say_nothing() -> None:
    assigned = {"cidr": "10.48.0.64/26", "affinity": "host:n1", "allocations": [], "unallocated": [], "attributes": []}
    facts = replace(
        WELL, blocks=[*WELL.blocks, assigned], affinities=[*WELL.affinities, affinity(FIRST, "n2", deleted="true")]
    )
    assert findings(facts) == []
    assert rows(facts)[-1] == (Net.parse("10.48.0.64/26"), "n1", 0, 64, 0)


def test_who_has_an_address() -> None:
    assert who_has(WELL, ONE.address(1)) == (
        "10.48.0.1 is in use by net.a (namespace default, node n1, pod a), in block 10.48.0.0/29 of n1"
    )
    assert who_has(WELL, ONE.address(2)) == "10.48.0.2 is free, in block 10.48.0.0/29 of n1"
    assert who_has(WELL, b"\x0a\x30\x05\x05") == "10.48.5.5 is in no block, but in the pool 10.48.0.0/16"
    assert who_has(WELL, b"\x0b\0\0\1") == "11.0.0.1 is in no block and in no pool"
