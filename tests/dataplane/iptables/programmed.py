"""A node's usual rules, for tests that are about something else."""

from __future__ import annotations

from collections.abc import Mapping

from felixpy.calc.entries import ElementKey, SetName
from felixpy.calc.rule import ChainKey
from felixpy.calc.rules import RuleSettings, desired_chains
from felixpy.config import Settings
from felixpy.dataplane.iptables.filter import IptablesFilter
from felixpy.dataplane.packet_filter import FilterChange
from felixpy.model.net import Family, Net, parse_address

WORKLOAD = {Family.V4: "10.65.0.{}", Family.V6: "fd00:65::{}"}


def workload(family: Family, number: int) -> list[ElementKey]:
    """Both members of workload ``number`` behind ``cali<number>``."""
    net = Net.host(parse_address(WORKLOAD[family].format(number)))
    return [ElementKey(name, net, f"cali{number}") for name in (SetName.FROM_WORKLOAD, SetName.TO_WORKLOAD)]


async def program(packet_filter: IptablesFilter, *numbers: int) -> None:
    """Sets, rules of the default settings, and workloads; nothing may be refused."""
    assert await try_to_program(packet_filter, *numbers) == {}


async def try_to_program(packet_filter: IptablesFilter, *numbers: int) -> Mapping[ChainKey | ElementKey, str]:
    """The same. Returns the words for what was refused."""
    await packet_filter.create_containers()
    family = packet_filter.family
    chains = packet_filter.render(desired_chains(RuleSettings.of(Settings(), family, nftables=False)))
    members = [key for number in numbers for key in workload(family, number)]
    return await packet_filter.write(FilterChange(chains=dict(chains), add=members))
