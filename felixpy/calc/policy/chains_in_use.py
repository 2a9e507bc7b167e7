"""Which policies and profiles have chains on this node, and the rules of these. Pure.

Invariant: a chain is there exactly while a class or a host endpoint asks it, and names only sets that are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct, field

from felixpy.calc.policy.classes import PolicyChain, PolicyChainKey, Use, comment_text
from felixpy.calc.policy.in_force import InForce
from felixpy.calc.policy.order import ChainId, rules_in
from felixpy.calc.policy.output import Output
from felixpy.calc.policy.rules_of import rules_of
from felixpy.calc.policy.sets_in_use import SetsInUse, SetsOfChain
from felixpy.model.net import FAMILIES
from felixpy.model.policy import Rule
from felixpy.model.resources import ResourceKey
from felixpy.stretch import changed


class _Chain(Struct, eq=False):
    """A chain in use, and the sets that it names, by what they are made of."""

    refs: int = 0
    sets: set[tuple[object, ...]] = field(default_factory=set)


class ChainsInUse:
    """The chains, and how often each is asked."""

    def __init__(
        self, in_force: InForce, sets: SetsInUse, output: Output, changed: set[ChainId], log_prefix: str
    ) -> None:
        """``changed``: chains whose rules are to be made anew."""
        self._in_force = in_force
        self._sets = sets
        self._output = output
        self._changed = changed
        self._log_prefix = log_prefix
        self._chains: dict[ChainId, _Chain] = {}
        self._idle: set[ChainId] = set()

    def policies(self) -> set[ResourceKey]:
        """Those that have a chain."""
        return {chain.owner for chain in self._chains if not isinstance(chain.owner, str)}

    def owners(self) -> dict[str, ResourceKey | str]:
        """Policies (by key) and profiles (by name), by the names of their chains."""
        return {chain.name: chain.owner for chain in self._chains}

    def deciders(self) -> dict[str, tuple[str, str]]:
        """Tier and policy, or nothing and profile, by the names of their chains."""
        policies = self._in_force.policies
        return {
            chain.name: ("", f"Profile {chain.owner}")
            if isinstance(chain.owner, str)
            else (policies[chain.owner].policy.tier, str(chain.owner))
            for chain in self._chains
        }

    def use_log_prefix(self, log_prefix: str) -> None:
        if log_prefix != self._log_prefix:
            self._log_prefix = log_prefix
            self._changed.update(self._chains)

    def touch(self, owner: ResourceKey | str) -> None:
        """A policy or a profile has other rules."""
        if not self._chains:
            return
        self._changed.update(chain for use in Use if (chain := ChainId(use, owner)) in self._chains)

    def acquire(self, chains: Iterable[ChainId]) -> None:
        for chain in chains:
            state = self._chains.get(chain)
            if state is None:
                state = self._chains[chain] = _Chain()
                self._changed.add(chain)
            state.refs += 1

    def release(self, chains: Iterable[ChainId]) -> None:
        for chain in chains:
            state = self._chains[chain]
            state.refs -= 1
            if not state.refs:
                self._idle.add(chain)

    def exchange(self, old: Sequence[ChainId], new: Sequence[ChainId]) -> None:
        """Who asked some chains asks others. A policy that comes or goes is one of many: the rest is not counted."""
        start, end, last = changed(old, new)
        self.acquire(new[start:last])
        self.release(old[start:end])

    def compile(self) -> None:
        """A chain that is made may make sets, and none of these changes another chain."""
        while self._changed:
            chain = self._changed.pop()
            state = self._chains.get(chain)
            if state is None or not state.refs:
                continue
            rules, comment, prefix = self._source_of(chain)
            sets = SetsOfChain(self._sets, chain)
            for family, some in rules_of(rules, sets, prefix).items():
                self._output.put(PolicyChainKey(family, chain.name), PolicyChain(chain.use, some, comment))
            self._use_sets(chain, state, sets.used)

    def _use_sets(self, chain: ChainId, state: _Chain, used: set[tuple[object, ...]]) -> None:
        self._sets.leave(chain, state.sets - used)
        state.sets = used

    def _source_of(self, chain: ChainId) -> tuple[tuple[Rule, ...], str, str]:
        """Rules, comment and prefix of what is logged."""
        direction = chain.use.direction
        if isinstance(chain.owner, str):
            profile = self._in_force.profiles[chain.owner]
            words = {"t": "", "k": "Profile", "p": chain.owner, "n": chain.owner}
            return rules_in(profile, direction) or (), comment_text(f"Profile {chain.owner}"), self._prefix(words)
        policy = self._in_force.policies[chain.owner].policy
        key = policy.key
        path = f"{key.namespace}/{key.name}" if key.namespace else key.name
        words = {"t": policy.tier, "k": key.kind, "p": path, "n": key.name}
        return rules_in(policy, direction) or (), comment_text(f"tier {policy.tier}: {key}"), self._prefix(words)

    def _prefix(self, words: Mapping[str, str]) -> str:
        text = self._log_prefix
        for letter, word in words.items():
            text = text.replace(f"%{letter}", word)
        return f"{text}: "

    def clear_up(self) -> None:
        """Chains that nobody asks go, and with them the sets that only they named."""
        for chain in self._idle:
            state = self._chains[chain]
            if state.refs:
                continue
            self._use_sets(chain, state, set())
            del self._chains[chain]
            for family in FAMILIES:
                self._output.drop(PolicyChainKey(family, chain.name))
        self._idle.clear()
        self._sets.clear_up()
