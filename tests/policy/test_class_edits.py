"""With nftables, a class that takes another content has the rules that differ written, in the chain where it stands."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable

import pytest

from felixpy.calc.entries import Key
from felixpy.calc.policy.classes import ClassKey, EndOfTier, EndpointClass, EndpointClasses, EndpointClassKey, Use
from felixpy.model.net import Family
from tests.kernel import run
from tests.policy.conftest import Node
from tests.policy.handmade import ALLOW, Entries, PolicyRule, endpoint_class, policy, tier, workload

MakeNode = Callable[..., Node]

pytestmark = pytest.mark.parametrize("backend", ["nftables"], indirect=True)

USE = Use.WORKLOAD_INGRESS
MANY = [f"p{number}" for number in range(40)]
MESSAGES = 10
"""A rule that comes or goes, the first one with another comment, the last one with a new counter, the chain's name, and
what frames a transaction.
"""


def asking(names: Iterable[str], passing: Iterable[str] = ()) -> EndpointClass:
    tiers = [tier("default", EndOfTier.DENY, USE, *names)]
    if passing:
        tiers.insert(0, tier("first", EndOfTier.PASS, USE, *passing, passes=True))
    return endpoint_class(USE.direction, *tiers)._replace(comment=f"class of {' '.join(names)}"[:100])


def key_of(family: Family, number: int) -> ClassKey:
    return ClassKey(family, USE.direction, number)


def started(make_node: MakeNode, family: Family, classes: dict[int, EndpointClass]) -> Node:
    """A node with these classes, and a workload in each but the usual one."""
    entries: Entries = {}
    for name in [*MANY, "new"]:
        entries |= policy(family, USE, name, PolicyRule(ALLOW, protocol=17))
    for number, value in classes.items():
        entries[key_of(family, number)] = value
        entries |= workload(family, number, number, 1)
    entries[ClassKey(family, Use.WORKLOAD_EGRESS.direction, 1)] = endpoint_class(
        Use.WORKLOAD_EGRESS.direction, end=ALLOW
    )
    node = make_node()
    node.want(entries)
    node.read()
    node.apply()
    return node


def handles(chain: str) -> dict[str, str]:
    """Rules of a chain that ask another one, by that one, the one that counts, and the chain itself, with handles."""
    text = run("nft", "-a", "list", "ruleset")
    body = text[text.index(f"chain filter-{chain} {{") :]
    found = dict(re.findall(r"jump filter-(\S+).* # handle (\d+)", body[: body.index("}\n")]))
    found["counter"] = re.findall(r"counter packets.* # handle (\d+)", body[: body.index("}\n")])[0]
    return {**found, "": body.splitlines()[0].rpartition(" ")[2]}


@pytest.mark.parametrize("place", [0, 1, 20, 40])
def test_a_policy_among_many_is_one_rule_of_the_class(make_node: MakeNode, family: Family, place: int) -> None:
    node = started(make_node, family, {1: asking(["p0"]), 2: asking(MANY)})
    before, key = handles(f"t-{asking(MANY).name}"), key_of(family, 2)
    with_one = asking([*MANY[:place], "new", *MANY[place:]])
    first, counter = True, before["counter"]
    for _ in range(2):
        for value in (with_one, asking(MANY)):
            sent, dumps = node.tables.filter.socket.messages_sent, node.tables.filter.socket.dumps_sent
            node.want({key: value})
            node.apply()
            after = handles(f"t-{value.name}")
            assert node.tables.filter.socket.messages_sent - sent <= MESSAGES + first
            assert node.tables.filter.socket.dumps_sent - dumps == first, "handles are asked for once"
            kept = {name: handle for name, handle in before.items() if name not in (MANY_FIRST, "counter")}
            assert kept.items() <= after.items(), "all other rules stay"
            assert after["counter"] != counter, "what is counted by the chain's name begins anew"
            counter = after["counter"]
            first = False
    assert node.differences() == []


MANY_FIRST = next(iter(asking(MANY).tiers[0].chains))
"""The rule that has the comment of the class is another one each time."""


@pytest.mark.parametrize("seed", range(4))
def test_any_content_after_any_other(make_node: MakeNode, family: Family, seed: int) -> None:
    dice = random.Random(seed)
    contents = dict.fromkeys(range(1, 5), MANY[:10])
    node = started(
        make_node, family, {number: asking([*names, MANY[number + 20]]) for number, names in contents.items()}
    )
    passing: dict[int, list[str]] = {}
    for _ in range(25):
        for number in dice.sample(sorted(contents), dice.randint(1, 4)):
            names = contents[number] = list(contents[number])
            step = dice.randrange(6)
            if step <= 2 and len(names) < 20:
                names.insert(dice.randint(0, len(names)), dice.choice([one for one in MANY[:20] if one not in names]))
            elif step <= 3 and len(names) > 6:
                del names[dice.randrange(len(names))]
            elif step == 4:
                dice.shuffle(names)
            else:
                passing[number] = dice.sample(MANY[:20], dice.randint(0, 3))
        change: dict[Key, object] = {
            key_of(family, number): asking([*names, MANY[number + 20]], passing.get(number, ()))
            for number, names in contents.items()
        }
        node.want(change)  # type: ignore[arg-type]
        node.apply()
        if dice.random() < 0.5:
            assert node.differences() == []
    assert node.differences() == []


def test_an_interface_that_comes_into_a_class_is_never_asked_what_the_class_asked_before(
    make_node: MakeNode, family: Family
) -> None:
    """Then the class has a new chain: a packet that is on its way looks for rules as they were when it came."""
    node = started(make_node, family, {1: asking(["p0"]), 2: asking(MANY), 3: asking(MANY[:5])})
    before = handles(f"t-{asking(MANY).name}")
    with_one = asking([*MANY, "new"])
    node.want({key_of(family, 2): with_one, EndpointClassKey(family, "cali3"): EndpointClasses(2, 1)})
    node.apply()
    assert handles(f"t-{with_one.name}")[""] != before[""]
    assert node.differences() == []


def test_a_chain_that_somebody_changed_meanwhile_is_made_anew(make_node: MakeNode, family: Family) -> None:
    node = started(make_node, family, {1: asking(["p0"]), 2: asking(MANY)})
    key, table = key_of(family, 2), f"ip{6 if family is Family.V6 else ''}"
    node.want({key: asking([*MANY, "new"])})
    node.apply()  # its handles are known from now on
    for value, touched in ((asking(MANY), "new"), (asking(["new", *MANY]), MANY[0])):
        chain = f"t-{node_class(node, key)}"
        gone = handles(chain)[asking([touched]).tiers[0].chains[0]]
        run("nft", "delete", "rule", table, "felixpy", f"filter-{chain}", "handle", gone)
        node.want({key: value})
        node.apply()
        assert node.differences() == []


def node_class(node: Node, key: ClassKey) -> str:
    return node.tables.layout.classes[key].name
