"""Which addresses a running node tells others: what was applied, else what its settings say or detect. Pure.

    applied Node says one    that
    IP, IP6                  as ``own_address`` says; where nothing is set, detected
    another node tells it    not told by the one that came later, as Calico

Invariant: a node stays at an address that it told as long as an interface has it, and ``MOVE_SECONDS`` longer: a link
that flaps, or an address that is checked for duplicates, moves nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from msgspec import Struct

from felixpy.config.values import parse_duration
from felixpy.model.net import FAMILIES, Family, Net, format_address, quote
from felixpy.model.resources import Node
from felixpy.node.detection import METHOD_NAMES, DetectionError, Surroundings
from felixpy.node.own_address import AUTODETECT, NONE, SETTINGS, has_address, own_address

MOVE_SECONDS = 10.0
NEVER = float("inf")


class Variables(Struct, frozen=True):
    """Calico's variables of the node's addresses, checked as far as that needs no machine."""

    wanted: Mapping[Family, str]
    """What is asked for; empty: nothing is set."""
    methods: Mapping[Family, str]
    follows: bool = True
    """Whether an address is looked for again when interfaces change (``AUTODETECT_POLL_INTERVAL``)."""
    checks: bool = True
    """Whether a node may not tell what another one tells (``DISABLE_NODE_IP_CHECK``)."""


def read_variables(environment: Mapping[str, str]) -> Variables:
    """Read them.

    Raises:
        DetectionError: one cannot be used.
    """
    wanted = {family: environment.get(name, "").strip() for family, name in SETTINGS.items()}
    methods = {f: environment.get(f"{name}_AUTODETECTION_METHOD", "").strip() for f, name in SETTINGS.items()}
    for family, method in methods.items():
        if method.partition("=")[0] not in METHOD_NAMES:
            raise DetectionError(f"{SETTINGS[family]}_AUTODETECTION_METHOD={quote(method)} is no way to detect one")
        if wanted[family] not in ("", AUTODETECT, NONE):
            _check_written(SETTINGS[family], wanted[family], family)
    checks = environment.get("DISABLE_NODE_IP_CHECK", "").lower() != "true"
    return Variables(wanted, methods, _follows(environment.get("AUTODETECT_POLL_INTERVAL", "")), checks)


def _check_written(name: str, text: str, family: Family) -> None:
    try:
        right = Net.parse_interface(text).family is family
    except ValueError as error:
        raise DetectionError(f"{name}={quote(text)}: {error}") from None
    if not right:
        raise DetectionError(f"{name}={quote(text)} is not an {family} address")


def _follows(interval: str) -> bool:
    """Nothing is polled here, so that only whether the node looks again matters."""
    if interval.lower() in ("", NONE):
        return not interval
    try:
        return parse_duration(interval) > 0
    except ValueError:
        raise DetectionError(f"AUTODETECT_POLL_INTERVAL={quote(interval)} is no duration like 60s, 0 or none") from None


class OwnAddresses:
    """Decides, and remembers since when a told address is on no interface."""

    def __init__(self, name: str, variables: Variables) -> None:
        self._name = name
        self._variables = variables
        self._gone_at: dict[Family, float] = {}

    def find(
        self, families: Collection[Family], applied: Node | None, told: Node | None, around: Surroundings, now: float
    ) -> tuple[dict[Family, Net], list[str], float]:
        """Addresses by family, what is wrong, and in how many seconds to look again.

        ``told`` is what this node said before; ``now`` seconds on any steady clock.
        """
        found: dict[Family, Net] = {}
        problems: list[str] = []
        unset: list[str] = []
        again_in = NEVER
        for family in families:
            known = told.address(family) if told else None
            if applied is not None and (written := applied.address(family)):
                found[family] = written
            elif applied is not None and not applied.routed:
                continue
            elif known is not None and (left := self._waits(family, known, around, now)) > 0:
                found[family], again_in = known, min(again_in, left)
            else:
                net, warning = self._one(family, known, around)
                if net is not None:
                    found[family] = net
                if warning:
                    (problems if self._is_set(family) or net is not None else unset).append(warning)
        return found, problems if found else problems + unset, again_in

    def _is_set(self, family: Family) -> bool:
        return bool(self._variables.wanted[family] or self._variables.methods[family])

    def _one(self, family: Family, known: Net | None, around: Surroundings) -> tuple[Net | None, str]:
        wanted = self._variables.wanted[family] or AUTODETECT
        try:
            decided = own_address(wanted, self._variables.methods[family], family, known, around)
        except DetectionError as error:
            return None, str(error)
        return decided.net, decided.warning

    def _waits(self, family: Family, known: Net, around: Surroundings, now: float) -> float:
        """For how much longer an address is told that no interface has; 0 if it is decided anew."""
        if has_address(known, around.interfaces) or self._variables.wanted[family] not in ("", AUTODETECT):
            self._gone_at.pop(family, None)
            return 0.0
        gone_at = self._gone_at.setdefault(family, now)
        return max(gone_at + MOVE_SECONDS - now, 0.0)

    def judge(
        self,
        found: Mapping[Family, Net],
        told: Node | None,
        applied: Node | None,
        others: Callable[[bytes], Collection[Node]],
    ) -> tuple[dict[Family, Net], list[str]]:
        """What of it is told where other nodes tell it, too, and what to say of that."""
        kept, problems = dict(found), list[str]()
        for family in FAMILIES if self._variables.checks else ():
            if (net := found.get(family)) is None:
                continue
            rivals = sorted(others(net.packed), key=lambda one: one.key.name)
            if not rivals:
                continue
            says = f"{family} address conflict with {rivals[0].key.name}: both tell {format_address(net.packed)}"
            is_applied = applied is not None and applied.address(family) is not None
            if not is_applied and any(self._is_later(net, told, one) for one in rivals):
                del kept[family]
                says += f"; {self._name} came later and does not tell it"
            problems.append(f"{says}; correct one of them, or `felixpy node --forget` a node that is gone")
        return kept, problems

    def _is_later(self, net: Net, told: Node | None, rival: Node) -> bool:
        own = told.address(net.family) if told else None
        if told is None or own is None or own.packed != net.packed:
            return True
        return bool(rival.since) and (rival.since, rival.key.name) < (told.since, self._name)
