"""What tells our routes and neighbours in the kernel from those of others, as far as settings decide it."""

from __future__ import annotations

from msgspec import Struct

from felixpy.config import Settings

OUR_PROTOCOL = Settings().device_route_protocol
"""Our number where nobody asks for another: used by no other program, so what has it was ours once."""


class Ownership(Struct, frozen=True):
    """The part of the settings that decides what is ours in the kernel, under the same names."""

    device_route_protocol: int
    remove_external_routes: bool
    interface_prefix: tuple[str, ...]

    @classmethod
    def of(cls, settings: Settings) -> Ownership:
        return cls(settings.device_route_protocol, settings.remove_external_routes, settings.interface_prefix)
