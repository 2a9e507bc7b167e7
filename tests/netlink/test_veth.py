"""Messages that make a workload's interface: the same bytes as pyroute2's, and what the kernel makes of them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from felixpy.model.net import Net
from felixpy.netlink.message import Request
from felixpy.netlink.namespaces import enter, is_network_namespace, is_own_namespace
from felixpy.netlink.rtnetlink import address_dump_request
from felixpy.netlink.transport import NETLINK_ROUTE, NetlinkSocket
from felixpy.netlink.veth import (
    End,
    address_request,
    addresses_of,
    decode_named_link,
    link_delete_request,
    link_get_request,
    link_mark_request,
    link_no_own_address_request,
    link_up_request,
    veth_request,
)
from tests.kernel import ip, ip_json

HOST, INSIDE = End("cali1", b"\xee" * 6), End("eth0", b"\x02\0\0\0\0\1")


def decoded(message: type, request: Request) -> dict[str, object]:
    """Attributes as pyroute2 reads them."""
    header = (16 + len(request.payload)).to_bytes(4, "little") + request.type.to_bytes(2, "little") + bytes(10)
    read = message(header + request.payload)
    read.decode()
    return dict(read["attrs"])


def test_a_pair_as_pyroute2_reads_it() -> None:
    found = decoded(ifinfmsg, veth_request(HOST, INSIDE, 7, mtu=1450))
    assert (found["IFLA_IFNAME"], found["IFLA_ADDRESS"], found["IFLA_MTU"]) == ("cali1", "ee:ee:ee:ee:ee:ee", 1450)
    info = dict(found["IFLA_LINKINFO"]["attrs"])  # type: ignore[index]
    assert info["IFLA_INFO_KIND"] == "veth"
    peer = dict(dict(info["IFLA_INFO_DATA"]["attrs"])["VETH_INFO_PEER"]["attrs"])
    assert peer["IFLA_IFNAME"] == "eth0"
    assert peer["IFLA_ADDRESS"] == "02:00:00:00:00:01"
    assert peer["IFLA_NET_NS_FD"] == 7
    assert peer["IFLA_MTU"] == 1450
    assert "IFLA_MTU" not in decoded(ifinfmsg, veth_request(HOST, INSIDE, 7))


def test_addresses_as_pyroute2_reads_them() -> None:
    four = decoded(ifaddrmsg, address_request(3, Net.parse_interface("10.48.0.1/32")))
    assert four == {"IFA_LOCAL": "10.48.0.1", "IFA_ADDRESS": "10.48.0.1"}
    six = decoded(ifaddrmsg, address_request(3, Net.parse_interface("fd00:48::1/128")))
    assert (six["IFA_LOCAL"], six["IFA_FLAGS"]) == ("fd00:48::1", 2)


def test_what_the_kernel_makes_of_it(network: None) -> None:
    ip("netns add inside")
    socket = NetlinkSocket(NETLINK_ROUTE)
    namespace = os.open("/run/netns/inside", os.O_RDONLY)
    assert is_network_namespace(namespace)
    assert not is_own_namespace(namespace)
    requests = [
        veth_request(HOST, INSIDE, namespace, mtu=1400),
        link_mark_request("cali1", "felixpy:c1/eth0"),
        link_no_own_address_request("cali1"),
        link_up_request("cali1"),
    ]
    assert socket.transact(requests) == {}
    link = decode_named_link(socket.ask(link_get_request("cali1")))
    assert (link.alias, link.up, link.mac, link.mtu) == ("felixpy:c1/eth0", True, HOST.mac, 1400)
    (inside,) = (one for one in ip_json("-n", "inside", "link") if one["ifname"] != "lo")
    assert (inside["ifname"], inside["address"], inside["mtu"]) == ("eth0", "02:00:00:00:00:01", 1400)
    nets = {Net.parse_interface("10.48.0.1/24"), Net.parse_interface("fe80::ecee:eeff:feee:eeee/64")}
    assert socket.transact([address_request(link.ifindex, net) for net in sorted(nets)]) == {}
    assert addresses_of(socket.dump_all(address_dump_request(link.ifindex)), link.ifindex) == nets
    assert socket.transact([veth_request(HOST, INSIDE, namespace)])[0].errno == 17
    assert socket.transact([link_delete_request(link.ifindex)]) == {}
    assert [one["ifname"] for one in ip_json("-n", "inside", "link")] == ["lo"]
    socket.close()
    os.close(namespace)
    ip("netns del inside")


def test_a_thread_that_enters_leaves_the_others_where_they_are(network: None) -> None:
    ip("netns add inside")
    namespace = os.open("/run/netns/inside", os.O_RDONLY)
    own = os.stat("/proc/thread-self/ns/net").st_ino  # noqa: PTH116
    found: list[int] = []

    def work() -> None:
        enter(namespace)
        found.append(os.stat("/proc/thread-self/ns/net").st_ino)  # noqa: PTH116

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [os.fstat(namespace).st_ino]
    assert os.stat("/proc/thread-self/ns/net").st_ino == own  # noqa: PTH116
    os.close(namespace)
    ip("netns del inside")


def test_what_is_no_network_namespace() -> None:
    for path in ("/proc/self/ns/mnt", "/etc/passwd"):
        descriptor = os.open(path, os.O_RDONLY)
        assert not is_network_namespace(descriptor)
        os.close(descriptor)
    assert Path("/proc/self/ns/net").exists()
