"""What the agent works with: settings, facts of the node, back-end; and what follows when one of them changes.

    settings, facts of the node ──► calculation ──► dataplane ──► back-end and its rules

Invariant: what is due stays due until all of it is taken; after a step that failed, that step and those behind it are
done again. It must never write to the kernel, but to remove what other back-ends and families left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import structlog
from msgspec.structs import replace

from felixpy.agent.leftovers import Leftovers
from felixpy.agent.outcome import Outcome
from felixpy.calc.entries import AddressKey
from felixpy.calc.graph import HOST, Calculation
from felixpy.calc.host import Host, supported_families
from felixpy.config import LiveSettings, Settings, SettingsSource
from felixpy.config.masq_agent import EVERYTHING
from felixpy.config.table import shown
from felixpy.dataplane.apply import Dataplane
from felixpy.dataplane.backend import Backend
from felixpy.dataplane.backends import make_filter
from felixpy.dataplane.host import read_host, read_own_interfaces
from felixpy.dataplane.iptables.detect import Choice, Facts, decide, detect, felix_in_use, gather
from felixpy.dataplane.ownership import Ownership
from felixpy.dataplane.packet_filter import FilterError
from felixpy.dataplane.watch import Watch
from felixpy.model.net import Family, Net
from felixpy.standing import Standing

log = structlog.get_logger("felixpy")


class Configuration:
    """Settings, facts of the node and back-end in force.

    ``settings_due`` and ``host_due`` say what has to be taken, ``retry_at`` from when on (monotonic).
    ``on_settings`` is told of other settings before they are used, ``on_filters`` of another back-end or families.
    """

    def __init__(
        self,
        live: LiveSettings,
        calculation: Calculation,
        dataplane: Dataplane,
        watch: Watch,
        outcome: Outcome,
        standing: Standing,
        *,
        on_settings: Callable[[Settings], None],
        on_filters: Callable[[], None],
        leftovers: Leftovers,
    ) -> None:
        self.settings = live.settings
        self.backend = Backend.NFTABLES
        self.settings_due = self.host_due = False
        self.retry_at = 0.0
        self.not_masqueraded = tuple(EVERYTHING.values()) if live.settings.ip_masq_agent_config else ()
        """Destinations that ip-masq-agent's file leaves alone; a change of them makes ``host_due``."""
        self._live = live
        self._calculation = calculation
        self._dataplane = dataplane
        self._watch = watch
        self._outcome = outcome
        self._standing = standing
        self._on_settings = on_settings
        self._on_filters = on_filters
        self._half_taken = False
        self._peers: tuple[bytes, ...] = ()
        self._own_devices = self._written_devices()
        self._doubtful: set[str] = set()
        """Prefixes of interfaces that only the stream has."""
        self._read_as: Ownership | None = None
        self._choice: Choice | None = None
        self._chosen_by: object = None
        self._filters_of: object = None
        self._leftovers = leftovers

    @property
    def due(self) -> bool:
        return self.settings_due or self.host_due

    def families(self) -> tuple[Family, ...]:
        return supported_families(self._calculation.settings, self._calculation.host)

    async def open(self, *, beside_felix: bool = False) -> None:
        """Choose the back-end and read the kernel.

        Raises:
            OSError: the kernel refused.
            FilterError: the packet filter's tools are missing, or a Felix programs this node.
        """
        facts = await gather()
        if (felix := felix_in_use(facts)) and not beside_felix:
            raise FilterError(felix)
        await self._read_what_is_ours()
        self.host_due = False  # what changes from here on is due again
        self._calculation.host = await self._read_host(self.settings)
        self._dataplane.want(self._calculation.calculate({HOST, *self._calculation.store.node_keys()}))
        await self._use_backend(facts)

    def reload(self, sources: Sequence[SettingsSource]) -> None:
        """Take this machine's settings anew. What cannot change in a running agent stays, and is named in the log."""
        if kept := self._live.renew(sources):
            log.warning("settings take effect at the next start", settings=", ".join(kept))
        self.settings_due = True

    async def take(self, *, complete: bool) -> None:
        """Take the stream's settings, if it is complete, and the node's facts; what follows is calculated again.

        Raises:
            OSError, FilterError: what is due stays due.
        """
        settings_due, host_due = self.settings_due, self.host_due
        self.settings_due = self.host_due = False  # what changes from here on is due again
        try:
            resolves = complete and (settings_due or (host_due and bool(self._doubtful)))
            settings, host = await self._resolve() if resolves else self.settings, self._calculation.host
            again = self._half_taken
            if again or host_due or settings.interface_prefix != self.settings.interface_prefix:
                host = await self._read_host(settings)
            changed = again or (settings, host) != (self.settings, self._calculation.host)
            if changed:
                self._half_taken = True  # and so it stays if a step fails
                if again or settings != self.settings:
                    await self._use_settings(settings)
                self._dataplane.want(self._calculation.reconfigure(settings, host))
                await self._use_backend()
                self._half_taken = False
            if changed or resolves:
                self._outcome.judge_again(self._calculation.problems)
        except (OSError, FilterError):
            self.settings_due |= settings_due
            self.host_due |= host_due
            raise

    def connected_to(self, peer: bytes) -> None:
        """Take the address of what the node is told by: no object may cover it."""
        if self._peers != (peer,):
            self._peers = (peer,)
            self.host_due = True

    def look_at_devices(self) -> bool:
        """Whether keys or addresses of this node's own devices are others than the calculation knows: of what we write
        ourselves the kernel tells us nothing.
        """
        if self._own_devices == self._written_devices():
            return False
        self.host_due = True
        return True

    def _written_devices(self) -> tuple[Mapping[Family, bytes], frozenset[AddressKey]]:
        routing = self._dataplane.routing
        return routing.devices.public_keys(), frozenset(routing.addresses.table.committed)

    async def _read_host(self, settings: Settings) -> Host:
        self._own_devices = self._written_devices()  # what changes from here on is another
        dataplane, ours = self._dataplane, settings.device_route_protocol
        ways = dataplane.routing.routes.ways
        tunnels = (settings.wireguard_interface_name, settings.wireguard_interface_name_v6)
        host = await read_host(dataplane.links, settings.interface_prefix, ways, self._peers, ours, tunnels)
        return replace(host, not_masqueraded=self.not_masqueraded, wireguard_keys=self._own_devices[0])

    def leave_alone(self, destinations: tuple[Net, ...]) -> None:
        """Take what ip-masq-agent's file says."""
        if destinations != self.not_masqueraded:
            self.not_masqueraded, self.host_due = destinations, True

    async def _resolve(self) -> Settings:
        """The settings that the stream and this machine ask for now.

        An InterfacePrefix of the stream that names an interface of the node's own is refused: its packets would be
        dropped and its routes removed, and nothing would reach this node that takes it back.
        """
        store, known = self._calculation.store, self._live.passed_over
        dataplane, self._doubtful = self._dataplane, set()
        dataplane.local_prefixes = self._live.of_this_machine.interface_prefix

        def doubts(attribute: str, value: Any) -> str:
            if attribute == "interface_prefix":
                self._doubtful.update(set(value) - set(dataplane.local_prefixes))
            return ""

        configurations = store.configurations.values()
        settings = self._live.take(configurations, store.labels, doubts)
        if self._doubtful:
            prefixes = tuple(self._doubtful)
            own = await read_own_interfaces(dataplane.links, prefixes, dataplane.routing.routes.ways)
            named = {prefix: why for prefix in prefixes if (why := self._names_own(prefix, own))}
            if named:
                settings = self._live.take(configurations, store.labels, partial(_names_own_interface, named))
        for what in sorted(self._live.passed_over - known):
            self._outcome.problems.ignored(what)
        return settings

    def foresee(self) -> dict[str, str]:
        """Take the stream's settings as far as that can be done without looking at the node, for a copy of the agent
        that will never write. Returns the settings that are others, by name.
        """
        store = self._calculation.store
        before, after = self.settings, self._live.take(store.configurations.values(), store.labels)
        if after == before:
            return {}
        self.settings = after
        self._dataplane.configure(after)
        self._dataplane.want(self._calculation.reconfigure(after, self._calculation.host))
        self._dataplane.want_rules(nftables=self.backend is Backend.NFTABLES)
        return _differences(before, after)

    def _names_own(self, prefix: str, own: Mapping[str, str]) -> str:
        """Which interface of the node's own a prefix names, empty if none, or if workloads are behind others of it."""
        named = sorted(name for name in own if name.startswith(prefix))
        endpoints = self._calculation.store.endpoints.values() if named else ()
        if any(one.interface.startswith(prefix) and one.interface not in own for one in endpoints):
            return ""
        return f"names {named[0]}, {own[named[0]]}" if named else ""

    async def _use_settings(self, settings: Settings) -> None:
        if settings != self.settings:
            log.info("settings changed", **_differences(self.settings, settings))
        self.settings = settings
        self._on_settings(settings)
        self._dataplane.configure(settings)
        await self._read_what_is_ours()

    async def _read_what_is_ours(self) -> None:
        """Read the kernel, unless it was read with the present ownership."""
        ownership = Ownership.of(self.settings)
        if ownership != self._read_as:
            self._read_as = None  # a reading that fails half-way was of neither
            await self.read_kernel()
            self._read_as = ownership

    async def _use_backend(self, facts: Facts | None = None) -> None:
        """Choose the back-end and give it the rules. On a change the new one takes over before the old one goes.

        The host is looked at when the settings that choose are others, and not whenever an address comes or goes: what
        ``Auto`` finds depends on the rules of other programs, and by then may be another back-end than the running one.
        """
        settings, families = self.settings, self.families()
        chosen_by = settings.nftables_mode, settings.iptables_backend
        if facts or self._choice is None or chosen_by != self._chosen_by:
            self._choice = decide(settings, facts) if facts else await detect(settings)
            self._chosen_by = chosen_by
        backend, evidence = self._choice
        made_of = backend, families, settings.chain_insert_mode, settings.max_ipset_size
        others = made_of != self._filters_of
        if others:
            log.info("back-end", backend=backend.value, reason=evidence)
            await self._leftovers.wait()
            filters = {family: make_filter(backend, family, settings) for family in families}
            self._dataplane.use_filters(filters, self._calculation.entries())
        # Before anything can fail: an apply would take rules that nobody wants out of the kernel.
        self._dataplane.want_rules(nftables=backend is Backend.NFTABLES)
        if others:
            if self._watch.is_open:
                self._watch.follow_filters()
            await self._dataplane.read_filters()
            self.backend, self._filters_of = backend, made_of
            self._leftovers.expect()
            self._on_filters()

    async def read_kernel(self) -> bool:
        """Read everything of ours; differences show at the next apply. Returns whether all of it could be read.

        Raises:
            OSError: links or routing tables cannot be read.
        """
        failures = await self._dataplane.read()
        for family in self.families():
            what = f"packet filter of {family} cannot be read"
            if reason := failures.get(family):
                self._standing.fails(what, reason, family=str(family))
            else:
                self._standing.works(what, family=str(family))
        self.host_due = True
        return not failures

    def resync_interval(self) -> float | None:
        """The shortest refresh interval that is not off, in seconds."""
        s = self.settings
        intervals = [s.interface_refresh_interval, s.route_refresh_interval]
        if self.backend is Backend.NFTABLES:
            intervals.append(s.nftables_refresh_interval)
        else:
            intervals += [s.iptables_refresh_interval, s.ipsets_refresh_interval]
        return min((interval for interval in intervals if interval > 0), default=None)


def _names_own_interface(named: Mapping[str, str], attribute: str, value: Any) -> str:
    if attribute != "interface_prefix":
        return ""
    return next((f"{named[prefix]}; it is not used on this node" for prefix in value if prefix in named), "")


def _differences(old: Settings, new: Settings) -> dict[str, str]:
    """Changed settings by name, new values as text."""
    before = shown(old)
    return {name: text for name, text in shown(new).items() if text != before[name]}
