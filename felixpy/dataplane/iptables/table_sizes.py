"""How large the legacy tables are, asked of the kernel for a few microseconds each (``IPT_SO_GET_INFO``).

The kernel tells nobody that a legacy table was changed. Its number of entries and its bytes do, as far as they differ;
a rule replaced by one of the same size is left to the full comparison.
Must never be asked for a table that is not there: the question brings it into being (kernel: xt_find_table_lock).
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

from felixpy.model.net import Family

_GET_INFO = 64  # IPT_SO_GET_INFO and IP6T_SO_GET_INFO: linux/netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h
_INFO = struct.Struct("=32s11I2I")
"""struct ipt_getinfo: name, valid_hooks, hook_entry[5], underflow[5], num_entries, size; also of ip6t_getinfo."""
_SIZE = struct.Struct("=2I")
_ADDRESSED = {Family.V4: (socket.AF_INET, socket.IPPROTO_IP), Family.V6: (socket.AF_INET6, socket.IPPROTO_IPV6)}


class TableSize(NamedTuple):
    """What of a table is known without reading it."""

    entries: int
    bytes: int


class TableSizes:
    """Asks for the tables of one family, in the network namespace in which it asks first."""

    def __init__(self, family: Family) -> None:
        self._address_family, self._level = _ADDRESSED[family]
        self._socket: socket.socket | None = None
        self._buffers: dict[str, Any] = {}
        """Made once for each table: an idle node asks for all of its life."""
        self._length = ctypes.c_uint32(_INFO.size)
        self.asks = 0

    def ask(self, tables: Iterable[str]) -> dict[str, TableSize]:
        """Sizes by table; without those that the kernel does not tell.

        Raises:
            OSError: there is no socket of this family.
        """
        if self._socket is None:
            self._socket = socket.socket(self._address_family, socket.SOCK_DGRAM)
        sizes = ((table, self._ask(self._socket.fileno(), table)) for table in tables)
        return {table: size for table, size in sizes if size is not None}

    def _ask(self, descriptor: int, table: str) -> TableSize | None:
        self.asks += 1
        buffer = self._buffers.get(table)
        if buffer is None:
            # The kernel reads the name out of the buffer for the answer, which socket.getsockopt cannot fill.
            buffer = self._buffers[table] = ctypes.create_string_buffer(table.encode(), _INFO.size)
        if _getsockopt()(descriptor, self._level, _GET_INFO, buffer, self._length):
            return None
        return TableSize._make(_SIZE.unpack_from(buffer, _INFO.size - _SIZE.size))

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


@cache
def _getsockopt() -> Any:
    function = ctypes.CDLL(None).getsockopt
    function.argtypes = ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint32)
    return function
