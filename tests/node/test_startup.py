"""Every line about a node's start in Calico's pages on IPv6, as it is written there: what a node does with it. Pure."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from felixpy.agent.cluster import INSTALLATION, ClusterNode, View
from felixpy.config import load_environment, resolve
from felixpy.kubernetes.client import ApiError
from felixpy.model.net import FAMILIES, Family, Net
from felixpy.node.detection import Address, DetectionError, Interface, Surroundings
from felixpy.node.document import own_node
from felixpy.node.own_addresses import OwnAddresses, read_variables
from felixpy.node.pools import PoolSettingError, default_pools

NAME = "nodeTest"
ETH0 = Interface("eth0", (Address(Net.parse_interface("10.9.0.1/24")), Address(Net.parse_interface("fd09::1/64"))))
AROUND = Surroundings([Interface("lo", (Address(Net.parse_interface("127.0.0.1/8")),)), ETH0])
V4, V6 = "10.9.0.1/24", "fd09::1/64"
POOL6 = {"CALICO_IPV6POOL_CIDR": "fd20::0/112"}
USUAL4 = {"default-ipv4-ippool": ("192.168.0.0/16", 26, True)}
SEED6 = {"default-ipv6-ippool": ("fd20::/112", 122, False)}
"""Name, then CIDR, block size, natOutgoing."""


@pytest.mark.parametrize(
    ("environment", "addresses", "router_id"),
    [
        ({"IP6": "autodetect"}, {4: V4, 6: V6}, "10.9.0.1"),
        ({"IP6": "autodetect", **POOL6}, {4: V4, 6: V6}, "10.9.0.1"),
        ({"IP": "autodetect", "IP6": "autodetect"}, {4: V4, 6: V6}, "10.9.0.1"),
        ({"IP": "none", "IP6": "autodetect", "CALICO_ROUTER_ID": "hash"}, {6: V6}, "109.174.215.226"),
        ({"IP": "none", "IP6": "autodetect", "CALICO_ROUTER_ID": "10.0.0.7"}, {6: V6}, "10.0.0.7"),
        ({"IP": "none", "IP6": "autodetect"}, {6: V6}, ""),
        ({"IP": "autodetect", "IP6": "none"}, {4: V4}, "10.9.0.1"),
        ({"CALICO_ROUTER_ID": "hash"}, {4: V4, 6: V6}, "109.174.215.226"),
    ],
    ids=str,
)
def test_addresses_and_router_id(environment: dict[str, str], addresses: dict[int, str], router_id: str) -> None:
    """By the agent as it runs, and by ``felixpy node``."""
    decides = OwnAddresses(NAME, read_variables(environment))
    found, problems, _ = decides.find(FAMILIES, None, None, AROUND, 0.0)
    assert {family.version: str(net) for family, net in found.items()} == addresses and problems == []
    shown = own_node(NAME, environment, AROUND)
    assert {f.version: str(one.net) for f, one in shown.addresses.items() if one.net} == addresses
    assert shown.router_id == router_id


def test_no_address_at_all_is_told() -> None:
    with pytest.raises(DetectionError, match="set IP or IP6"):
        own_node(NAME, {"IP": "none", "IP6": "none"}, AROUND)


@pytest.mark.parametrize("text", ["true", "TRUE", "1", "yes"])
def test_felix_ipv6support_true(text: str) -> None:
    settings, problems = resolve([load_environment({"FELIX_IPV6SUPPORT": text})])
    assert settings.ipv6_support and not problems


@pytest.mark.parametrize(
    ("environment", "existing", "pools"),
    [
        (POOL6, (), USUAL4 | SEED6),
        (POOL6, (Family.V4,), SEED6),
        (POOL6, (Family.V6,), USUAL4),
        ({"CALICO_IPV4POOL_CIDR": "none", **POOL6}, (), SEED6),
        (
            {
                "CALICO_IPV4POOL_CIDR": "10.48.0.0/21",
                "CALICO_IPV6POOL_CIDR": "2001::00/64",
                "CALICO_IPV6POOL_NAT_OUTGOING": "true",
            },
            (),
            {"default-ipv4-ippool": ("10.48.0.0/21", 26, True), "default-ipv6-ippool": ("2001::/64", 122, True)},
        ),
        ({"NO_DEFAULT_POOLS": "true"}, (), {}),
    ],
    ids=str,
)  # fmt: skip
def test_default_pools(
    environment: dict[str, str], existing: tuple[Family, ...], pools: dict[str, tuple[str, int, bool]]
) -> None:
    made = default_pools(environment, existing=existing, random_bytes=b"12345")
    specs = {one["metadata"]["name"]: one["spec"] for one in made}
    assert {name: (spec["cidr"], spec["blockSize"], spec["natOutgoing"]) for name, spec in specs.items()} == pools


@pytest.mark.parametrize(
    "environment",
    [
        {"NO_DEFAULT_POOLS": "true", **POOL6},
        {"CALICO_IPV6POOL_CIDR": "10.0.0.0/8"},
        {"CALICO_IPV6POOL_CIDR": "fd20::1"},
        {"CALICO_IPV6POOL_BLOCK_SIZE": "64"},
        {"CALICO_IPV6POOL_VXLAN": "sometimes"},
    ],
    ids=str,
)
def test_a_pool_variable_that_cannot_be_used_makes_no_pool(environment: dict[str, str]) -> None:
    with pytest.raises(PoolSettingError, match=r"CALICO_IPV|NO_DEFAULT_POOLS"):
        default_pools(environment)


class Api:
    """Answers with what kubeadm wrote and with an Installation, and keeps what is created."""

    def __init__(self, pod_subnet: str, installation: dict[str, Any] | None = None) -> None:
        self._pod_subnet = pod_subnet
        self._installation = installation
        self.made: dict[str, str] = {}

    async def get(self, path: str) -> Any:
        if path != INSTALLATION:
            return {"data": {"ClusterConfiguration": f"networking:\n  podSubnet: {self._pod_subnet}\n"}}
        if self._installation is None:
            raise ApiError(404, "there is none")
        return {"metadata": {"name": "default"}, "spec": {"calicoNetwork": self._installation}}

    async def request(self, method: str, path: str, body: Any = None, **more: Any) -> bytes:
        self.made[body["metadata"]["name"]] = body["spec"]["cidr"]
        return b"{}"


def made(api: Api, existing: tuple[Family, ...] = (), **environment: str) -> dict[str, str]:
    view = View(lambda: True, lambda: True, lambda: [], lambda: FAMILIES, lambda: existing)
    node = ClusterNode(NAME, api, view, any_pool=False, environment=environment)  # type: ignore[arg-type]
    asyncio.run(node.make_pools())
    return api.made


DUAL = "10.244.0.0/16,fd00:10:244::/56"


@pytest.mark.parametrize("subnets", [DUAL, "10.244.0.0/16, fd00:10:244::/56"])
def test_clusters_of_kubeadm_need_no_pool_variable(subnets: str) -> None:
    """Calico splits without trimming, and loses the second range where somebody put a space before it."""
    assert made(Api(subnets)) == {"default-ipv4-ippool": "10.244.0.0/16", "default-ipv6-ippool": "fd00:10:244::/56"}


@pytest.mark.parametrize("installation", [None, {"ipPools": [{"cidr": "2001::00/64"}]}], ids=("kubeadm", "operator"))
def test_pools_that_are_others_to_make_are_left_to_them(installation: dict[str, Any] | None) -> None:
    """As in a cluster of Calico's with one family, on nodes that have both."""
    assert made(Api(DUAL, installation), (Family.V4,), NO_DEFAULT_POOLS="true") == {}


@pytest.mark.parametrize(
    ("network", "existing", "pools"),
    [
        ({"ipPools": [{"cidr": "2001::00/64"}]}, (), {"default-ipv6-ippool": "2001::/64"}),
        (
            {"ipPools": [{"cidr": "10.48.0.0/21"}, {"cidr": "10.49.0.0/21"}, {"cidr": "2001::00/64", "name": "six"}]},
            (Family.V6,),
            {"10.48.0.0-21": "10.48.0.0/21", "10.49.0.0-21": "10.49.0.0/21"},
        ),
        ({"ipPools": []}, (), {}),
        ({"bgp": "Disabled"}, (), {"default-ipv4-ippool": "10.244.0.0/16", "default-ipv6-ippool": "fd00:10:244::/56"}),
    ],
    ids=("one family", "one family is there", "none", "nothing said of pools"),
)
def test_an_installation_says_which_pools_are_made(
    network: dict[str, Any], existing: tuple[Family, ...], pools: dict[str, str]
) -> None:
    assert made(Api(DUAL, network), existing) == pools


@pytest.mark.parametrize(("addresses", "pools"), [((V4, V6), USUAL4), ((V6,), {})], ids=("with IPv4", "without"))
def test_where_blocks_are_taken_out_of_pools_ipv4_needs_no_word_of_a_range(
    addresses: tuple[str, ...], pools: dict[str, tuple[str, int, bool]]
) -> None:
    api = Api("")
    own = [Net.parse_interface(one) for one in addresses]
    view = View(lambda: True, lambda: True, lambda: own, lambda: FAMILIES, lambda: ())
    asyncio.run(ClusterNode(NAME, api, view, any_pool=True, environment=POOL6).make_pools())  # type: ignore[arg-type]
    wanted = {name: cidr for name, (cidr, _, _) in (pools | SEED6).items()}
    assert api.made == wanted


def test_an_installation_with_a_wrong_pool_makes_none_and_says_which() -> None:
    api = Api(DUAL, {"ipPools": [{"cidr": "10.48.0.0/21"}, {"cidr": "2001::1/64"}]})
    with pytest.raises(PoolSettingError, match=r"Installation.*ipPools\[1\]\.cidr"):
        made(api)
    assert api.made == {}
