"""The act about policy: a deny, named by ``explain``; a change seen before it is made; and then made.

It comes into a lab that runs (``Lab``) and leaves no policy behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import click

from felixpy.demo.agent import Agent
from felixpy.demo.checks import Check, Result, reach
from felixpy.demo.lab import Lab
from felixpy.demo.patience import Patience
from felixpy.demo.resources import Object, v3, write_manifests
from felixpy.demo.topology import P1A, P1B, P2A
from felixpy.model.net import Family

GUARD = "guard"
SHOWN_LINES = 16
SETTLES_S = 20.0


class Narrator(Protocol):
    """Who prints what happens."""

    def step(self, what: str, detail: str = "") -> None: ...

    async def run_all(self, wanted: Sequence[Check]) -> list[Result]: ...


def guard(*allowed: str) -> Object:
    """Only these workloads reach p1b."""
    rules = [{"action": "Allow", "source": {"selector": f"app == '{name}'"}} for name in allowed]
    return v3("NetworkPolicy", GUARD, {"selector": "app == 'p1b'", "types": ["Ingress"], "ingress": rules}, "default")


async def policy(lab: Lab, show: Narrator) -> list[Result]:
    """Deny, explain, plan, allow; every step is seen by packets."""
    for family in lab.families:
        await _tcp(lab, family, "p1a", passes=True).run()  # a plan knows what ended within two minutes
    strict = write_manifests([guard("p2a")], lab.folder / "guard")
    show.step("$ felixpy apply -f guard/", "a policy: p2a alone reaches p1b")
    await lab.felixpy("apply", "-f", str(strict))
    results = await _settled(lab, show, {"p1a": False, "p2a": True})
    results += [await _named(lab, family, show) for family in lab.families]
    wider = write_manifests([guard("p2a", "p1a")], lab.folder / "wider")
    show.step("$ felixpy apply --plan -f wider/", "what would it do if p1a were allowed, too? Nothing is written")
    said = await lab.felixpy("apply", "--plan", "-f", str(wider), check=False)
    lines = said.splitlines()
    click.echo("\n".join(f"    {line}".rstrip() for line in lines[:SHOWN_LINES]))
    if len(lines) > SHOWN_LINES:
        click.echo("    …")
    results.append(_foreseen(said))
    show.step("$ felixpy apply -f wider/")
    await lab.felixpy("apply", "-f", str(wider))
    results += await _settled(lab, show, {"p1a": True, "p2a": True})
    await lab.felixpy("delete", "-f", str(wider))
    return results


def _tcp(lab: Lab, family: Family, source: str, *, passes: bool) -> Check:
    spec = {"p1a": P1A, "p2a": P2A}[source]
    seen_as = spec.addresses[family] if passes else None
    label = "p1b, allowed by policy" if passes else "p1b, denied by policy"
    return next(
        check
        for check in reach(family, lab.pod(source), label, P1B.addresses[family], seen_as)
        if check.protocol == "TCP"
    )


async def _settled(lab: Lab, show: Narrator, passes: dict[str, bool]) -> list[Result]:
    """The checks, once the kernel has the policy: an agent takes it a moment after the broker, one family at a time."""
    checks = [_tcp(lab, family, source, passes=goes) for family in lab.families for source, goes in passes.items()]
    patience = Patience(SETTLES_S)
    for check in checks:
        while not (await check.run()).ok and not patience.over():
            continue
    return await show.run_all(checks)


async def _named(lab: Lab, family: Family, show: Narrator) -> Result:
    """Who denies, in explain's words."""
    question = ("explain", P1A.addresses[family], P1B.addresses[family], "tcp", "80")
    said = await Agent.command(lab.node(P1B.node), lab.agent_environment(P1B.node), *question, check=False)
    found = [line.split(None, 1)[1] for line in said.splitlines() if line.startswith("policy ")]
    denies = found[-1] if found else "nobody"
    show.step(f"$ felixpy {' '.join(question)}", denies)
    return Result(str(family), "explain", "p1a", "p1b: who denies?", "end of tier default (ingress) → denies", denies)


def _foreseen(said: str) -> Result:
    """Pairs that were refused a moment ago, or ended before the policy came, would be let in."""
    opened = any("opened" not in line and " ✓ " in line for line in said.splitlines())
    return Result("both", "plan", "p1a", "p1b, foreseen", "let in", "let in" if opened else "nothing")
