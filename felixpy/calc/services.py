"""The default BGPConfiguration -> members of the set of Services' ranges. Pure.

The rule that looks at them stands in ``felixpy.calc.rules``: nobody answers for what is still addressed to a Service
when it is forwarded, so router and node would send it to each other. Pools are not among them, as in Felix: addresses
of a block that nobody has end in its blackhole.
"""

from __future__ import annotations

from typing import Final

from felixpy.calc.entries import ElementKey, Key, SetName, Value
from felixpy.calc.entry_settings import EntrySettings
from felixpy.calc.host import Host, supported_families
from felixpy.calc.policy.sets import without_covered
from felixpy.model.resources import BGPConfiguration

DEFAULT: Final = "default"
"""The name of the BGPConfiguration of all nodes; others are of one node's BGP speaker."""


def service_entries(configuration: BGPConfiguration, settings: EntrySettings, host: Host) -> dict[Key, Value]:
    """Set members of a BGPConfiguration: none but for the default one."""
    if configuration.key.name != DEFAULT:
        return {}
    families = supported_families(settings, host)
    outermost = without_covered(configuration.service_ranges)
    return {ElementKey(SetName.SERVICE_RANGES, cidr): None for cidr in outermost if cidr.family in families}
