"""IP set messages against the kernel, with the ipset tool as the other opinion."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from felixpy.model.net import FAMILIES, Family, Net
from felixpy.netlink import ipset
from felixpy.netlink.ipset import HASH_NET, HASH_NET_IFACE, Member, SetHeader
from felixpy.netlink.message import Request
from felixpy.netlink.transport import NETLINK_NETFILTER, NetlinkError, NetlinkSocket, Refusal


@pytest.fixture
def netlink(network: None) -> Iterator[NetlinkSocket]:
    socket = NetlinkSocket(NETLINK_NETFILTER)
    yield socket
    socket.close()


def tool(*arguments: str) -> list[str]:
    return subprocess.run(["ipset", *arguments], check=True, capture_output=True, text=True).stdout.splitlines()


def send(netlink: NetlinkSocket, *requests: Request) -> dict[int, str]:
    return {index: ipset.words(refusal) for index, refusal in netlink.transact(requests).items()}


def members(netlink: NetlinkSocket, name: str) -> set[Member]:
    return {m for message in netlink.dump_all(ipset.list_members(name)) for m in ipset.decode_members(message)}


def headers(netlink: NetlinkSocket) -> dict[str, SetHeader]:
    found = (ipset.decode_header(message) for message in netlink.dump_all(ipset.list_headers()))
    return {header.name: header for header in found if header}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [HASH_NET, HASH_NET_IFACE])
def test_the_tool_sees_what_was_sent_and_the_other_way_round(netlink: NetlinkSocket, family: Family, kind: str) -> None:
    texts = ["10.0.0.0/8", "192.0.2.1"] if family is Family.V4 else ["fd00::/8", "2001:db8::1"]
    interface = "cali0123456789a" if kind == HASH_NET_IFACE else ""
    ours = [Member(Net.parse(text), interface) for text in texts]
    revision = ipset.decode_revision(netlink.dump_all(ipset.type_revisions(kind, family))[0], kind)
    assert revision > 0
    assert send(netlink, ipset.create("a", kind, family, revision, 1000), *(ipset.add("a", m) for m in ours)) == {}
    suffix = f",{interface}" if interface else ""
    listed = tool("list", "a", "-output", "save")
    assert f"create a {kind} family {'inet' if family is Family.V4 else 'inet6'}" in listed[0]
    assert "maxelem 1000 " in listed[0]
    assert sorted(listed[1:]) == sorted(f"add a {text}{suffix}" for text in texts)
    assert members(netlink, "a") == set(ours)
    assert headers(netlink)["a"] == SetHeader("a", kind, revision, family, 1000, 0, 0)

    tool("del", "a", f"{texts[0]}{suffix}")
    extra = "198.51.100.0/24" if family is Family.V4 else "2001:db8:1::/48"
    tool("add", "a", f"{extra}{suffix}")
    assert members(netlink, "a") == {ours[1], Member(Net.parse(extra), interface)}


def test_many_members_come_back_over_many_datagrams(netlink: NetlinkSocket) -> None:
    many = {Member(Net.host((10 << 24 | number).to_bytes(4, "big")), f"cali{number}") for number in range(5000)}
    sends = netlink.sends
    refused = send(netlink, ipset.create("a", HASH_NET_IFACE, Family.V4, 0, 65536), *(ipset.add("a", m) for m in many))
    assert (refused, netlink.sends) == ({}, sends + 1)
    assert members(netlink, "a") == many


def test_each_bad_member_is_named_and_the_others_are_taken(netlink: NetlinkSocket) -> None:
    good, other = Member(Net.parse("10.0.0.0/8")), Member(Net.parse("fd00::/8"))
    wide = Member(Net.parse("0.0.0.0/0"))
    refused = send(
        netlink,
        ipset.create("a", HASH_NET, Family.V4, 0, 10),
        ipset.add("a", other),
        ipset.add("a", good),
        ipset.add("a", wide),
        ipset.add("nowhere", good),
        ipset.add("a", good),
        ipset.delete("a", Member(Net.parse("11.0.0.0/8"))),
    )
    assert refused.keys() == {1, 3, 4}
    assert refused[3] == "invalid prefix length"
    assert refused[4] == "the set does not exist"
    assert members(netlink, "a") == {good}


def test_exceptions_that_others_add_are_told_apart(netlink: NetlinkSocket) -> None:
    tool("create", "a", "hash:net")
    tool("add", "a", "10.0.0.0/8", "nomatch")
    assert members(netlink, "a") == {Member(Net.parse("10.0.0.0/8"), "nomatch ")}


@pytest.mark.parametrize("extension", ["timeout 600", "counters", "comment"])
def test_members_of_which_the_kernel_tells_more(netlink: NetlinkSocket, extension: str) -> None:
    tool("create", "a", "hash:net,iface", *extension.split())
    tool("create", "b", "hash:net", "family", "inet6", *extension.split())
    more = ["comment", "x"] if extension == "comment" else []
    tool("add", "a", "10.0.0.0/8,cali1", *more)
    tool("add", "b", "fd00::1", *more)
    assert members(netlink, "a") == {Member(Net.parse("10.0.0.0/8"), "cali1")}
    assert members(netlink, "b") == {Member(Net.parse("fd00::1"))}


def test_swap_rename_and_destroy(netlink: NetlinkSocket) -> None:
    one, two = Member(Net.parse("10.0.0.0/8")), Member(Net.parse("11.0.0.0/8"))
    assert (
        send(
            netlink,
            *(ipset.create(name, HASH_NET, Family.V4, 0, 10) for name in "ab"),
            ipset.add("a", one),
            ipset.add("b", two),
            ipset.swap("a", "b"),
            ipset.rename("b", "c"),
        )
        == {}
    )
    assert (members(netlink, "a"), members(netlink, "c")) == ({two}, {one})
    assert send(netlink, ipset.create("d", HASH_NET_IFACE, Family.V4, 0, 10), ipset.swap("a", "d")) == {
        1: "the sets are of different types"
    }
    subprocess.run(["iptables-nft", "-A", "OUTPUT", "-m", "set", "--match-set", "a", "dst"], check=True)
    assert send(netlink, *(ipset.destroy(name) for name in "acd")) == {0: "the set is in use by rules"}
    assert headers(netlink).keys() == {"a"}
    assert headers(netlink)["a"].references == 1


def test_listing_a_missing_set_is_an_error(netlink: NetlinkSocket) -> None:
    with pytest.raises(NetlinkError):
        netlink.dump_all(ipset.list_members("nowhere"))
    assert headers(netlink) == {}


def test_words_of_numbers_that_are_not_ipset_s_own() -> None:
    assert ipset.words(Refusal(1)) == "Operation not permitted"
    assert ipset.words(Refusal(22, "the kernel's own words")) == "the kernel's own words"
