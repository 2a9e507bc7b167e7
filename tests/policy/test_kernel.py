"""Classes, policies and sets in the kernel: written and read back without a difference, taken over, taken away."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from felixpy.calc.entries import Key
from felixpy.calc.graph import ABSENT, Changes
from felixpy.calc.policy.classes import ClassKey, Direction, EndpointClasses, EndpointClassKey, PolicyRule, Use
from felixpy.config import EndpointToHostAction, Rate, Settings
from felixpy.demo.patience import Patience
from felixpy.model.net import Family
from tests.kernel import run
from tests.policy.conftest import Node
from tests.policy.handmade import ALLOW, Entries, endpoint_class, everything, host_endpoints, policy, workload

MakeNode = Callable[..., Node]


def gone(entries: Entries) -> Changes:
    return dict.fromkeys(entries, ABSENT)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(
            default_endpoint_to_host_action=EndpointToHostAction.RETURN,
            log_action_rate_limit=Rate(100, 60),
            log_action_rate_limit_burst=7,
            iptables_mark_mask=0x0FF_FF00,
            nftables_mark_mask=0x0FF_FF00,
        ),
    ],
    ids=["default", "other"],
)
def test_written_and_read_back_without_a_difference(make_node: MakeNode, family: Family, settings: Settings) -> None:
    first = make_node(settings)
    first.want(everything(family) | host_endpoints(family))
    first.read()
    assert first.apply() > 0
    assert first.differences() == []

    second = make_node(settings)
    second.want(everything(family) | host_endpoints(family))
    assert second.differences() == []
    assert second.apply() == 0, "a restart writes nothing"


def test_what_nobody_wants_any_more_goes(make_node: MakeNode, family: Family, backend: str) -> None:
    node = make_node()
    node.read()
    node.apply()
    without = listing(backend, family)
    node.want(everything(family) | host_endpoints(family))
    assert node.apply() > 0
    assert listing(backend, family) != without
    node.want(gone(everything(family) | host_endpoints(family)))
    settle(node)
    assert listing(backend, family) == without
    assert node.differences() == []


def test_what_an_earlier_run_left_goes(make_node: MakeNode, family: Family, backend: str) -> None:
    node = make_node()
    node.read()
    node.apply()
    without = listing(backend, family)
    node.want(everything(family))
    node.apply()
    later = make_node()
    later.read()
    settle(later)
    assert later.differences() == []
    assert listing(backend, family) == without


def test_a_class_takes_another_content_in_place(make_node: MakeNode, family: Family) -> None:
    node = make_node()
    node.want(everything(family))
    node.read()
    node.apply()
    key = ClassKey(family, Direction.INGRESS, 2)
    node.want({key: endpoint_class(Direction.INGRESS, end=ALLOW)})  # open: its workloads need no bits any more
    node.apply()
    assert node.differences() == []
    node.want({key: everything(family)[key]})
    node.apply()
    assert node.differences() == []


def test_a_workload_changes_class(make_node: MakeNode, family: Family, backend: str) -> None:
    node = make_node()
    node.want(everything(family))
    node.read()
    node.apply()
    node.want({EndpointClassKey(family, "cali2"): EndpointClasses(4, 1)})
    assert node.apply() <= 2 + 6
    assert node.differences() == []
    node.want(dict(workload(family, 20, 4, 4)))
    written = node.apply()
    assert written == (2 if backend != "nftables" else 2 + 2 * 2), "pairs, and with nftables one bit per direction"


def test_what_goes_while_a_workload_changes_class_goes_with_one_apply(make_node: MakeNode, family: Family) -> None:
    """Chains that nobody needs any more, too, though no class is gone whose members had to move first."""
    node = make_node()
    node.want(everything(family) | host_endpoints(family))
    node.read()
    node.apply()
    node.want({**gone(host_endpoints(family)), EndpointClassKey(family, "cali2"): EndpointClasses(4, 1)})
    node.apply()
    assert not node.tables.chains.dirty
    assert node.differences() == []


def test_without_policy_an_endpoint_is_its_pairs(make_node: MakeNode, family: Family) -> None:
    node = make_node()
    node.read()
    node.apply()
    chains = dict(node.tables.chains.committed)
    open_class: dict[Key, object] = {
        ClassKey(family, direction, 1): endpoint_class(direction, end=ALLOW) for direction in Direction
    }
    node.want({**open_class, **workload(family, 1, 1, 1)})  # type: ignore[dict-item]
    assert node.apply() == 2
    assert node.tables.chains.committed == chains


def test_a_policy_changes_alone(make_node: MakeNode, family: Family) -> None:
    node = make_node()
    node.want(everything(family))
    node.read()
    node.apply()
    node.want(policy(family, Use.WORKLOAD_INGRESS, "b", PolicyRule(ALLOW, protocol=17), PolicyRule(ALLOW, protocol=6)))
    assert node.apply() == 1
    assert node.differences() == []


def test_the_tools_list_all_of_it_and_name_the_policies(make_node: MakeNode, family: Family, backend: str) -> None:
    node = make_node()
    node.want(everything(family) | host_endpoints(family))
    node.read()
    node.apply()
    text = run("nft", "list", "ruleset") if backend == "nftables" else listing(backend, family)
    assert "class of 2 tiers" in text
    assert "policy a" in text


def settle(node: Node) -> None:
    """Apply until nothing is left to do: an IP set is in use for a moment after the rules that asked it are gone."""
    import asyncio
    import time

    patience = Patience(60)
    while True:
        asyncio.run(node.dataplane.apply(complete=True))
        if node.dataplane.is_settled:
            return
        assert not patience.over(), node.dataplane.plan()
        time.sleep(0.05)


def listing(backend: str, family: Family) -> str:
    if backend == "nftables":
        return run("nft", "-s", "list", "ruleset")
    name = "iptables" if family is Family.V4 else "ip6tables"
    rules = [line for line in run(f"{name}-{backend}-save").splitlines() if "fpy" in line]
    return "\n".join(sorted(rules)) + run("ipset", "list", "-n")
