"""Which packet-filter back-end to use, how to make it, and how to remove what the others left."""

from __future__ import annotations

from collections.abc import Iterable

from felixpy.config import Settings
from felixpy.dataplane.backend import Backend
from felixpy.dataplane.iptables.legacy import LegacyFilter
from felixpy.dataplane.iptables.nft_variant import NftVariantFilter
from felixpy.dataplane.iptables.sets import SetsInUseError
from felixpy.dataplane.nftables.filter import NftablesFilter
from felixpy.dataplane.packet_filter import FilterError, PacketFilter
from felixpy.model.net import FAMILIES, Family


def make_filter(backend: Backend, family: Family, settings: Settings, *, patient: bool = False) -> PacketFilter:
    """A back-end for one family; ``patient`` if no update waits for it, as in a command."""
    if backend is Backend.NFTABLES:
        return NftablesFilter(family)
    iptables = LegacyFilter if backend is Backend.LEGACY else NftVariantFilter
    return iptables(
        family, insert_mode=settings.chain_insert_mode, max_ipset_size=settings.max_ipset_size, patient=patient
    )


async def remove_leftovers(kept: Backend | None, families: Iterable[Family], settings: Settings) -> list[str]:
    """Remove everything of ours that does not belong to the kept back-end and families; with none kept, patiently.

    IP sets serve both iptables variants, so the variant that is kept keeps them.

    Returns:
        What could not be removed, in words.
    """
    kept_families = set(families) if kept is not None else set()
    problems: dict[tuple[Family, str], str] = {}  # each iptables variant removes the other's rules, too
    for family in FAMILIES:
        for backend in Backend:
            if backend is kept and family in kept_families:
                continue
            keeps_sets = kept in (Backend.LEGACY, Backend.NFT_VARIANT) and family in kept_families
            try:
                await _remove(make_filter(backend, family, settings, patient=kept is None), rules_only=keeps_sets)
            except SetsInUseError as error:  # the sets are of both variants
                problems.setdefault((family, str(error)), f"{family}: {error}")
            except (OSError, FilterError) as error:
                problems.setdefault((family, str(error)), f"{backend} {family}: {error}")
    return list(problems.values())


async def _remove(packet_filter: PacketFilter, *, rules_only: bool) -> None:
    try:
        if rules_only and isinstance(packet_filter, LegacyFilter | NftVariantFilter):
            await packet_filter.remove_rules()
        else:
            await packet_filter.remove_all()
    finally:
        packet_filter.close()
