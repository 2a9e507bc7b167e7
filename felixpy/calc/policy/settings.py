"""What policy depends on of the settings and of the host. Pure."""

from __future__ import annotations

from msgspec import Struct

from felixpy.model.net import Family
from felixpy.model.policy import PolicyAction


class PolicySettings(Struct, frozen=True):
    """What policy depends on of the settings and of the host."""

    families: tuple[Family, ...]
    without_profile: PolicyAction = PolicyAction.ALLOW
    log_prefix: str = "calico-packet"
    host_addresses: tuple[tuple[str, bytes], ...] = ()
    interface_prefixes: tuple[str, ...] = ("",)
    """How interfaces of workloads begin: others get no class."""
