"""ip-masq-agent's file, beyond the shared cases."""

from __future__ import annotations

import pytest

from felixpy.config.masq_agent import MasqFileError, parse
from felixpy.model.net import Family


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nonMasqueradeCIDRs: [10.48.0.1/16]", "host bits"),
        ("nonMasqueradeCIDRs: [10.48.0.1]", "no CIDR"),
        ("nonMasqueradeCIDRs: 10.48.0.0/16", "must be a list"),
        ("nonMasqueradeCIDRs: ['fd00::/64']", "IPv6, which is off"),
        ("cidrLimit: 1\nnonMasqueradeCIDRs: [10.0.0.0/8, 11.0.0.0/8]", "cidrLimit is 1"),
        ("resyncInterval: 60", "not a duration"),
        ('resyncInterval: "60"', "not a duration"),
        ("masqLinkLocal: 'yes'", "true or false"),
        ("[1, 2]", "keys with values"),
        ("{", "neither YAML nor JSON"),
    ],
)
def test_bad_file_is_refused_as_a_whole(text: str, reason: str) -> None:
    with pytest.raises(MasqFileError, match=reason):
        parse(text, ipv6=False)


def test_json_and_yaml_mean_the_same() -> None:
    yaml = parse("nonMasqueradeCIDRs: [10.48.0.0/16]\nresyncInterval: 1m30s", ipv6=False)
    assert yaml == parse('{"nonMasqueradeCIDRs": ["10.48.0.0/16"], "resyncInterval": "1m30s"}', ipv6=False)
    assert yaml.resync_interval == 90.0


def test_more_than_the_limit_is_refused() -> None:
    cidrs = ", ".join(f"10.{number}.0.0/16" for number in range(65))
    with pytest.raises(MasqFileError, match="65 prefixes"):
        parse(f"nonMasqueradeCIDRs: [{cidrs}]", ipv6=False)
    assert len(parse(f"cidrLimit: 65\nnonMasqueradeCIDRs: [{cidrs}]", ipv6=False).non_masquerade_cidrs) == 65


def test_all_reserved_ranges() -> None:
    assert len(parse(None, ipv6=False, all_reserved=True).not_masqueraded(Family.V4)) == 12


def test_empty_file_has_the_defaults() -> None:
    assert parse("", ipv6=True) == parse(None, ipv6=True)


@pytest.mark.parametrize(
    ("text", "six"),
    [
        (None, ["::/0"]),
        ("nonMasqueradeCIDRs: [10.0.0.0/8]", ["::/0"]),
        ("masqLinkLocalIPv6: true", ["::/0"]),
        ("nonMasqueradeCIDRs: ['fd00::/8']", ["fe80::/10", "fd00::/8"]),
        ("nonMasqueradeCIDRs: ['fd00::/8']\nmasqLinkLocalIPv6: true", ["fd00::/8"]),
        ("nonMasqueradeCIDRs: []", ["fe80::/10"]),
    ],
)
def test_ipv6_is_left_alone_unless_the_file_speaks_of_it(text: str | None, six: list[str]) -> None:
    alone = parse(text, ipv6=True).left_alone()
    assert [str(net) for net in alone if net.family is Family.V6] == six
    assert any(net.family is Family.V4 for net in alone)
