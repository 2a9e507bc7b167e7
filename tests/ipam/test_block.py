"""The allocator of blocks: random histories keep its invariant, and Calico's rules hold one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felixpy.ipam.block import (
    Attribute,
    BadHandle,
    BadSequenceNumber,
    Block,
    BlockError,
    NotAffine,
    Release,
    Taken,
    assign,
    assign_address,
    block_spec,
    check,
    new_block,
    read_block,
    release,
    release_handle,
)
from felixpy.model.net import Net

CIDRS = [Net.parse("10.48.0.64/28"), Net.parse("fd00:48::40/124")]
A, B = Attribute("a", {"node": "n1"}), Attribute("b", {"node": "n1"})

OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["assign", "address", "release", "handle"]), st.integers(0, 15), st.integers(0, 4)),
    max_size=60,
)


@given(st.sampled_from(CIDRS), OPERATIONS)
def test_random_histories(cidr: Net, operations: list[tuple[str, int, int]]) -> None:
    """One owner per address, as a model of a dictionary says; the wire form gives the same block back."""
    block = new_block(cidr, "n1", sequence=100)
    owners: dict[bytes, str] = {}
    for operation, number, owner in operations:
        before, attribute = block, Attribute(f"h{owner}", {"node": "n1"})
        if operation == "assign":
            count = number % 4
            block, given_now = assign(block, attribute, count, node="n1")
            assert len(given_now) == min(count, 16 - len(owners))
            assert not owners.keys() & set(given_now)
            owners |= dict.fromkeys(given_now, f"h{owner}")
        elif operation == "address":
            address = block.address(number)
            if address in owners:
                with pytest.raises(Taken, match=owners[address]):
                    assign_address(block, attribute, address)
            else:
                block = assign_address(block, attribute, address)
                owners[address] = f"h{owner}"
        elif operation == "release":
            address = block.address(number)
            if owners.get(address, f"h{owner}") != f"h{owner}":
                with pytest.raises(BadHandle):
                    release(block, [Release(address, f"h{owner}")])
            else:
                block, freed = release(block, [Release(address, f"h{owner}")])
                assert freed == ((address,) if address in owners else ())
                owners.pop(address, None)
        else:
            block, freed = release_handle(block, f"h{owner}")
            assert set(freed) == {address for address, name in owners.items() if name == f"h{owner}"}
            for address in freed:
                del owners[address]
        check(block)
        assert {one: name for name, some in block.by_handle().items() for one in some} == owners
        assert (block.sequence > before.sequence) == (block != before)
        assert read_block(block_spec(block)) == block
    assert block.is_empty == (not owners)
    assert block.free == 16 - len(owners)


def test_what_was_free_longest_is_given_first() -> None:
    block, first = assign(new_block(CIDRS[0], "n1"), A, 16)
    assert [address[-1] for address in first] == list(range(64, 80))
    for ordinal in (5, 2, 9):
        block, _ = release(block, [Release(block.address(ordinal))])
    block, again = assign(block, B, 2)
    assert [block.ordinal(address) for address in again] == [5, 2]


def test_a_late_release_frees_nothing_of_the_next_owner() -> None:
    block, (address,) = assign(new_block(CIDRS[0], "n1", sequence=4), A)
    old = block.sequences[block.ordinal(address)]
    assert old == 5
    block, _ = release(block, [Release(address, "a", old)])
    block = assign_address(block, A, address)
    assert block.sequences[block.ordinal(address)] == 7
    with pytest.raises(BadSequenceNumber, match="was given anew: sequence number 7, not 5"):
        release(block, [Release(address, "a", old)])
    assert block.owner(address) == A


def test_a_release_of_several_is_all_or_none() -> None:
    block, (one, two) = assign(new_block(CIDRS[0], "n1"), A, 2)
    block, (three,) = assign(block, B)
    with pytest.raises(BadHandle):
        release(block, [Release(one, "a"), Release(three, "a")])
    block, freed = release(block, [Release(one, "a"), Release(two, "a"), Release(one, "a")])
    assert freed == (one, two)
    assert release(block, [Release(one, "a")]) == (block, ())


def test_affinity_is_looked_at_if_it_is_asked_for() -> None:
    block = new_block(CIDRS[0], "n1")
    with pytest.raises(NotAffine, match="belongs to n1, not to n2"):
        assign(block, A, node="n2")
    borrowed, _ = assign(block, A)
    assert borrowed.free == 15
    with pytest.raises(NotAffine, match="belongs to no node"):
        assign(new_block(CIDRS[0], None), A, node="n2")


def test_what_is_blocked_is_passed_over_and_keeps_its_place() -> None:
    block = new_block(CIDRS[0], "n1")
    reserved = {block.address(0), block.address(2)}
    block, found = assign(block, A, 2, blocked=reserved.__contains__)
    assert [block.ordinal(address) for address in found] == [1, 3]
    block, found = assign(block, A, 2)
    assert [block.ordinal(address) for address in found] == [0, 2]


def test_attributes_are_shared_and_go_with_their_last_address() -> None:
    block, (one, two) = assign(new_block(CIDRS[0], "n1"), A, 2)
    block, _ = assign(block, B)
    assert block.attributes == (A, B)
    block, _ = release(block, [Release(one)])
    assert block.attributes == (A, B)
    block, _ = release(block, [Release(two)])
    assert block.attributes == (B,)
    check(block)


def test_a_block_as_calico_writes_it() -> None:
    """Fields that may be null or absent, a deletion mark as text, and an address of a block that is not whole."""
    spec = {
        "cidr": "10.48.0.0/30", "affinity": "host:n1", "strictAffinity": False, "allocations": [0, None, None, None],
        "unallocated": [1, 2, 3], "attributes": [{"handle_id": "k8s-pod-network.abc", "secondary": None}],
        "sequenceNumber": 1699000000000000000, "sequenceNumberForAllocation": {"0": 1699000000000000000},
        "deleted": False,
    }  # fmt: skip
    block = read_block(spec)
    assert block.by_handle() == {"k8s-pod-network.abc": [b"\x0a\x30\0\0"]}
    assert (block.affinity, block.free) == ("n1", 3)
    assert read_block({**spec, "affinity": None}).affinity is None
    assert read_block({**spec, "affinity": "virtual:load-balancer"}).affinity is None
    for wrong in (
        {"allocations": [0, None]},
        {"unallocated": [0, 1, 2, 3]},
        {"unallocated": [1, 2]},
        {"unallocated": [1, 2, 3, 3]},
        {"attributes": []},
        {"cidr": "nonsense"},
        {"allocations": 3},
        {"sequenceNumber": "x"},
    ):
        with pytest.raises(BlockError):
            read_block({**spec, **wrong})


def test_an_address_of_another_block() -> None:
    block: Block = new_block(CIDRS[0], "n1")
    with pytest.raises(BlockError, match="is not in"):
        assign_address(block, A, b"\x0a\0\0\1")
