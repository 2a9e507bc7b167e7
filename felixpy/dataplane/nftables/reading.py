"""Reading the table of one family from the kernel."""

from __future__ import annotations

import errno
from functools import partial

from felixpy.calc.entries import ADDRESS_MAPS, SetName, SetType
from felixpy.calc.rule import ChainKey, ClassElement, Table
from felixpy.dataplane.nftables import elements
from felixpy.dataplane.nftables.seen import EVERY_SET, TABLE, Seen
from felixpy.dataplane.packet_filter import Part, SetKey
from felixpy.model.net import Family
from felixpy.netlink import nftables as nft
from felixpy.netlink import port_sets
from felixpy.netlink.message import Request, text_attribute
from felixpy.netlink.transport import NetlinkError, NetlinkSocket
from felixpy.slices import in_slices


class TableReader:
    """Asks the kernel over a socket that others use, too.

    Raises:
        NetlinkError, OSError: the kernel refused to tell.
    """

    def __init__(self, socket: NetlinkSocket, family: Family) -> None:
        self.socket = socket
        self.family = family

    async def look(self, part: Part, before: Seen) -> Seen:
        """Read the table, or its chains and rules alone, if the rest was seen ``before``, in slices."""
        flags = self.table_flags()
        if flags is None:
            return Seen()
        seen = Seen(table=True, dormant=bool(flags & nft.NFT_TABLE_F_DORMANT))
        if part is Part.RULES and before.is_whole:
            seen.part, seen.sets, seen.maps = part, set(before.sets), set(before.maps)
            seen.policy_sets = set(before.policy_sets)
        else:
            await self._look_at_sets(seen)
        for message in await self.socket.dump_sliced(nft.dump(nft.GETCHAIN, self.family)):
            seen.add_chain(*nft.decode_chain(message))
        if seen.replace:
            return seen
        for message in await self.socket.dump_sliced(self.in_table(nft.GETRULE)):
            seen.add_rule(*nft.decode_rule(message))
        await self._look_at_port_sets(seen)
        for map_name in seen.maps:
            if ChainKey(Table.FILTER, map_name) in seen.chains:  # else nobody looks into it
                await self._look_into_map(map_name, seen)
        if seen.part is Part.ALL:
            for name in (*seen.sets, *(SetName(key.name) for key in seen.policy_sets)):
                await self._look_into(name, seen)
        return seen

    async def _look_at_sets(self, seen: Seen) -> None:
        for message in await self.socket.dump_sliced(self.in_table(nft.GETSET)):
            table, shape = nft.decode_set(message)
            if table == TABLE:
                seen.add_set(shape, self.family)

    async def _look_at_port_sets(self, seen: Seen) -> None:
        """Put the content of anonymous sets into the rules that look into them."""
        used = {name for rules in seen.chains.values() for rule in rules for name in port_sets.anonymous_sets(rule)}
        if not used:
            return
        if seen.part is Part.RULES:
            for message in await self.socket.dump_sliced(self.in_table(nft.GETSET)):
                table, shape = nft.decode_set(message)
                if table == TABLE and shape.flags & nft.NFT_SET_ANONYMOUS:
                    seen.anonymous[shape.name] = shape.flags
        contents = {}
        for name in used & seen.anonymous.keys():
            request = nft.get_elements(self.family, TABLE, name)
            try:
                found = [one for some in await self.socket.decode_sliced(request, nft.decode_elements) for one in some]
            except NetlinkError as error:
                if error.errno != errno.ENOENT:
                    raise
                continue  # its rule went
            contents[name] = port_sets.decode_port_ranges(found, seen.anonymous[name])
        for key, rules in seen.chains.items():
            seen.chains[key] = [
                port_sets.named_ports(rule, contents) for rule in rules if isinstance(rule, nft.NftRule)
            ]

    async def _look_into_map(self, name: str, seen: Seen) -> None:
        request = nft.get_elements(self.family, TABLE, name)
        for some in await self.socket.decode_sliced(request, nft.decode_elements):
            for mark, chain in elements.decode_map(some).items():
                seen.chains[ClassElement(name, mark)] = [chain]

    async def _look_into(self, name: SetName, seen: Seen) -> None:
        ends: list[nft.KernelElement] = []
        try:
            request = nft.get_elements(self.family, TABLE, name)
            if name in ADDRESS_MAPS:
                for some in await self.socket.decode_sliced(request, nft.decode_elements):
                    found = elements.decode_addresses(name, self.family, some)
                    seen.elements |= found.keys()
                    seen.data |= found
                return
            if name.type is SetType.NET:
                for some in await self.socket.decode_sliced(request, nft.decode_elements):
                    ends += some  # the ends of an interval may come in two messages
                seen.elements |= elements.decode(name, self.family, ends)
                return
            members = await self.socket.decode_sliced(request, partial(elements.decode_datagram, name, self.family))
            async for sets in in_slices(members, 1):
                seen.elements.update(*sets)
        except elements.NotOursError:
            seen.tainted.add(name)
            seen.elements = {key for key in seen.elements if elements.place_of(key) != name}
        except NetlinkError as error:
            if error.errno != errno.ENOENT or name in EVERY_SET:
                raise
            seen.policy_sets.discard(SetKey(str(name)))  # it went while the others were read

    def in_table(self, command: int) -> Request:
        """A dump of everything of one kind that our table has."""
        return nft.dump(command, self.family, text_attribute(1, TABLE))

    def table_flags(self) -> int | None:
        """Flags of our table; None if there is none."""
        tables = self.socket.dump_all(nft.dump(nft.GETTABLE, self.family))
        return dict(map(nft.decode_table, tables)).get(TABLE)
