"""Each test of the iptables back-ends has an empty network of its own, with the real kernel."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import pytest

from felixpy.config import ChainInsertMode
from felixpy.dataplane.iptables import LegacyFilter, NftVariantFilter
from felixpy.dataplane.iptables.filter import IptablesFilter
from felixpy.model.net import FAMILIES, Family
from tests.netns import enter_new_network, enter_private_namespaces

MakeFilter = Callable[..., IptablesFilter]
VARIANTS = {"legacy": LegacyFilter, "nft": NftVariantFilter}


@pytest.fixture(scope="session")
def private_namespaces() -> None:
    enter_private_namespaces()


@pytest.fixture
def network(private_namespaces: None) -> None:
    """An empty network namespace."""
    enter_new_network()


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=FAMILIES, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    return Family(request.param)


@pytest.fixture
def make_filter(network: None, variant: str) -> Iterator[MakeFilter]:
    """Makes filters of the variant under test in the test's network, and closes them."""
    made: list[IptablesFilter] = []

    def make(
        family: Family, *, insert_mode: ChainInsertMode = ChainInsertMode.INSERT, max_ipset_size: int = 65536
    ) -> IptablesFilter:
        made.append(VARIANTS[variant](family, insert_mode=insert_mode, max_ipset_size=max_ipset_size))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def packet_filter(make_filter: MakeFilter, family: Family) -> IptablesFilter:
    return make_filter(family)


@pytest.fixture
def tool(variant: str, family: Family) -> str:
    """Name of the variant's iptables command."""
    return f"{'iptables' if family is Family.V4 else 'ip6tables'}-{variant}"


def output(*command: str, stdin: str = "") -> str:
    """Standard output of a command that must succeed."""
    return subprocess.run(command, input=stdin, check=True, capture_output=True, text=True).stdout


def saved(tool: str, *options: str) -> list[str]:
    """Lines of ``<tool>-save`` without its dated comments."""
    return [line for line in output(f"{tool}-save", *options).splitlines() if not line.startswith("#")]
