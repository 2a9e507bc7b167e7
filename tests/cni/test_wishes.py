"""Annotations of pods and namespaces: what is understood, what comes first, what is refused."""

from __future__ import annotations

import pytest

from felixpy.cni.wishes import PREFIX, PodWishes, wishes_of
from felixpy.model.net import Family, Net


def annotated(**values: str) -> dict[str, str]:
    return {f"{PREFIX}{name}": value for name, value in values.items()}


def test_nothing_is_asked_for() -> None:
    assert wishes_of({}, {}) == PodWishes()
    assert wishes_of({"other": "x"}, annotated(podIP="10.0.0.1/32")) == PodWishes()


def test_what_is_understood() -> None:
    pod = annotated(ipAddrs='["10.48.7.9", "fd00:48::749"]', hwAddr="0a:00:00:00:00:01", ipFamilies='["IPv6","IPv4"]')
    wishes = wishes_of(pod, {}, {"team": "a"})
    assert wishes.addresses == (Net.parse("10.48.7.9"), Net.parse("fd00:48::749"))
    assert wishes.mac == b"\x0a\0\0\0\0\1"
    assert wishes.families == (Family.V4, Family.V6)
    assert wishes.namespace_labels == {"team": "a"}


def test_floating_addresses_are_the_pods_own_wish_and_may_be_several_of_a_family() -> None:
    asked = annotated(floatingIPs='["203.0.113.9", "203.0.113.10", "2001:db8::9"]')
    assert wishes_of(asked, {}).floating == tuple(map(Net.parse, ("203.0.113.9", "203.0.113.10", "2001:db8::9")))
    assert wishes_of({}, asked).floating == ()


def test_the_pod_comes_before_its_namespace() -> None:
    namespace = annotated(ipv4pools='["pool-b"]', ipv6pools='["six"]')
    assert wishes_of({}, namespace).pools == {Family.V4: ("pool-b",), Family.V6: ("six",)}
    pod = annotated(ipv4pools='["10.50.0.0/16"]')
    assert wishes_of(pod, namespace).pools == {Family.V4: ("10.50.0.0/16",), Family.V6: ("six",)}


@pytest.mark.parametrize(
    ("annotations", "reason"),
    [
        (annotated(ipAddrs="10.48.7.9"), "ipAddrs: '10.48.7.9' is not a list"),
        (annotated(ipAddrs='["10.48.7.0/24"]'), "not a single address"),
        (annotated(ipAddrs='["10.48.7.9", "10.48.7.10"]'), "two addresses of one family"),
        (annotated(ipAddrs='["nonsense"]'), "'nonsense'"),
        (annotated(ipAddrsNoIpam='["10.48.7.9"]'), "could be given twice"),
        (annotated(floatingIPs="10.0.0.1"), "floatingIPs: '10.0.0.1' is not a list"),
        (annotated(floatingIPs='["10.0.0.0/24"]'), "not a single address"),
        (annotated(hwAddr="01:00:00:00:00:01"), "hwAddr"),
        (annotated(ipFamilies='["IPv5"]'), "'IPv5'"),
        (annotated(ipv4pools='{"a": 1}'), "ipv4pools"),
    ],
)
def test_what_is_refused(annotations: dict[str, str], reason: str) -> None:
    assert reason in wishes_of(annotations, {}).refused


def test_an_empty_list_asks_for_nothing() -> None:
    assert wishes_of(annotated(floatingIPs="[]", ipAddrsNoIpam="[]", ipAddrs="[]"), {}) == PodWishes()
