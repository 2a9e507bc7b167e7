"""Legacy iptables tables through python-iptables 1.2; the only module that knows that library.

``apply`` is called by ``LegacyFilter`` in one thread. Invariant: each table is read, changed and committed as a whole
under the xtables lock, so rules of others keep their bytes and counters. The library's traps that this module walks
around, each pinned by a test:

- importing it loads libraries, and starts ldconfig and a compiler unless told where these are: imported at the first
  write, not before;
- ``Table`` objects are process-wide and commit by themselves: autocommit off, opened anew and closed for each write;
- a jump target looks its chain up in all five tables of the family, which brings them into being: ``tables`` replaced;
- ``Chain.append_rule`` re-reads its parameters by redirecting the process's standard output: entries are appended
  directly, after the final check of each extension;
- IPv6 NAT targets cannot be found once IPv4 ones are loaded: ``nat6`` encodes them;
- ``Rule6`` compares the lowest bit of each character of an interface name: masks are written here.

Must never read rules as text and never leave a table open.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from felixpy.dataplane.iptables import nat6
from felixpy.dataplane.iptables.layout import CHAIN_PREFIX, jump_text
from felixpy.dataplane.iptables.lock import xtables_lock
from felixpy.dataplane.iptables.plan import TablePlan
from felixpy.dataplane.iptables.render import PROTOCOL_NUMBERS, words
from felixpy.dataplane.packet_filter import FilterError
from felixpy.model.net import Family

_COMMIT_ATTEMPTS = 20
_COMMIT_WAIT_SECONDS = 0.001
# A program that does not share our lock wrote the table after it was read, or after our rules went in and before
# libiptc's second step, which adds the old counters (kernel: do_replace and do_add_counters).
_WRITTEN_MEANWHILE = (errno.EAGAIN, errno.EINVAL)
_INTERFACE_BYTES = 16
_IP6T_F_PROTO = 1  # linux/netfilter_ipv6/ip6_tables.h
_BUILT_IN_CHAINS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")


def apply(family: Family, plans: Sequence[TablePlan], lock_seconds: float) -> dict[str, str]:
    """Apply plans, one commit per table. Blocks; call it in the one thread of this library.

    ``lock_seconds``: how long it may wait for other programs that hold the xtables lock.

    Returns:
        Words by table for what was refused.

    Raises:
        FilterError: the library cannot be loaded, or the lock cannot be had.
    """
    library = _library()
    errors = {}
    with xtables_lock(lock_seconds):
        for plan in plans:
            try:
                _apply_table(library, family, plan)
            except (library.iptc.IPTCError, library.XTablesError, ValueError, AttributeError) as error:
                errors[plan.table] = str(error)
    return errors


class _Library:
    """python-iptables, loaded."""

    def __init__(self) -> None:
        with _extension_folder(), _nothing_searched():
            import iptc
            import iptc.ip4tc
            from iptc.xtables import NFPROTO_IPV4, NFPROTO_IPV6, XTablesError, xtables
        self.iptc = iptc
        self.XTablesError = XTablesError
        self.errno = iptc.ip4tc._get_errno_loc
        # Kept alive: the library holds them weakly and would initialise libxtables again for every rule.
        self.protocols = (xtables(NFPROTO_IPV4), xtables(NFPROTO_IPV6))
        only_own_table = {"tables": property(lambda rule: [rule.own_table])}
        self.rule_types = {
            Family.V4: type("Rule", (iptc.Rule,), only_own_table),
            Family.V6: type("Rule6", (iptc.Rule6,), only_own_table),
        }
        self.table_types = {Family.V4: iptc.Table, Family.V6: iptc.Table6}


@cache
def _library() -> _Library:
    try:
        return _Library()
    except Exception as error:  # noqa: BLE001 - a missing C library shows as whatever fails first in the import
        raise FilterError(
            f"python-iptables cannot be loaded ({error}); install the package 'iptables' (apt install iptables)"
            " or set FELIX_IPTABLESBACKEND=NFT"
        ) from None


@contextmanager
def _extension_folder() -> Iterator[None]:
    """Name libxtables' extension folder while importing; otherwise the library starts ldconfig to search for it."""
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    folders = (Path("/usr/lib") / multiarch / "xtables", Path("/usr/lib64/xtables"), Path("/usr/lib/xtables"))
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if "XTABLES_LIBDIR" in os.environ or folder is None:
        yield
        return
    os.environ["XTABLES_LIBDIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["XTABLES_LIBDIR"]


@contextmanager
def _nothing_searched() -> Iterator[None]:
    """Say where the C libraries are while importing.

    Otherwise python-iptables starts ldconfig nine times, and where there is a compiler that four times, to look for a
    library that lies among Python's packages; and it loads distutils for one path, behind which all of setuptools is.
    """
    search, had = ctypes.util.find_library, sys.modules.get("distutils")
    sys.modules["distutils"] = None  # type: ignore[assignment]
    ctypes.util.find_library = lambda name: None if "xtwrapper" in name else _usual_name(name) or search(name)
    try:
        yield
    finally:
        ctypes.util.find_library = search
        del sys.modules["distutils"]
        if had is not None:
            sys.modules["distutils"] = had


def _usual_name(name: str) -> str | None:
    """The name under which a library is loaded nearly everywhere, if it is there."""
    usual = _USUAL_NAMES.get(name)
    try:
        return usual and ctypes.CDLL(usual)._name
    except OSError:
        return None


_USUAL_NAMES = {
    "c": "libc.so.6",
    "ip4tc": "libip4tc.so.2",
    "ip6tc": "libip6tc.so.2",
    "xtables": "libxtables.so.12",
}


def _apply_table(library: _Library, family: Family, plan: TablePlan) -> None:
    table = _open(library, family, plan.table)
    try:
        for attempt in range(_COMMIT_ATTEMPTS):
            if attempt:
                time.sleep(attempt * _COMMIT_WAIT_SECONDS)
                table.refresh()
            _change(library, family, table, plan)
            if table._iptc.iptc_commit(table._handle):
                return
            if library.errno()[0] not in _WRITTEN_MEANWHILE:
                break
        raise library.iptc.IPTCError(f"the kernel refused the table {plan.table}: {_words(table.strerror())}")
    finally:
        table.close()


def _open(library: _Library, family: Family, name: str) -> Any:
    try:
        table = library.table_types[family](name, autocommit=False)
        table.refresh()
    except library.iptc.IPTCError as error:
        raise library.iptc.IPTCError(
            f"the legacy table {name} cannot be opened ({_words(error)}); load the kernel's"
            f" {'iptable' if family is Family.V4 else 'ip6table'}_{name} or set FELIX_IPTABLESBACKEND=NFT"
        ) from None
    return table


def _change(library: _Library, family: Family, table: Any, plan: TablePlan) -> None:
    _keep_policy_counters(table)
    for chain in [*plan.rewrite, *plan.delete]:
        if table.is_chain(chain):
            table.flush_entries(chain)
        elif chain in plan.rewrite:
            table.create_chain(chain)
    for chain in plan.unhook:
        _remove_jumps(table, chain)
    for chain, rules in plan.rewrite.items():
        for rule in rules:
            table.append_entry(chain, _entry(library, family, table, rule))
    for built_in, last in plan.hook.items():
        entry = _entry(library, family, table, jump_text(built_in))
        if last:
            table.append_entry(built_in, entry)
        else:
            table.insert_entry(built_in, entry, 0)
    for chain in plan.delete:
        if table.is_chain(chain):
            table.delete_chain(chain)


def _keep_policy_counters(table: Any) -> None:
    """Carry over the counters of built-in chains, which libiptc 1.8.9 zeroes at every commit."""
    for chain in _BUILT_IN_CHAINS:
        if table.builtin_chain(chain):
            policy, counters = table.get_policy(chain)
            table.set_policy(chain, policy, counters)


def _remove_jumps(table: Any, chain: str) -> None:
    libiptc, handle, name = table._iptc, table._handle, chain.encode()
    positions = []
    entry, position = libiptc.iptc_first_rule(name, handle), 0
    while entry:
        if (libiptc.iptc_get_target(entry, handle) or b"").startswith(CHAIN_PREFIX.encode()):
            positions.append(position)
        entry, position = libiptc.iptc_next_rule(entry, handle), position + 1
    for position in reversed(positions):
        if not libiptc.iptc_delete_num_entry(name, position, handle):
            raise ValueError(f"the jump at position {position + 1} of {chain} could not be removed")


def _entry(library: _Library, family: Family, table: Any, text: str) -> Any:
    """The kernel's binary form of a rule in text (``felixpy.dataplane.iptables.render``)."""
    rule = library.rule_types[family]()
    rule.own_table = table
    tokens = words(text)
    jump = next(at for at, token in enumerate(tokens) if token in ("-j", "-g"))
    # Extensions look at the protocol (ports need TCP or UDP), so it is set first.
    for at, (option, value) in enumerate(pairwise(tokens[:jump])):
        if option == "-p":
            negated = at > 0 and tokens[at - 1] == "!"
            rule.protocol = f"{'!' if negated else ''}{PROTOCOL_NUMBERS.get(value, value)}"
            if family is Family.V6:  # the library leaves this out if negated, and the kernel then asks no protocol
                rule.get_ip().flags |= _IP6T_F_PROTO
    _add_matches(rule, tokens[:jump])
    if tokens[jump] == "-g":
        rule.create_target(tokens[jump + 1], goto=True)
    else:
        _add_target(family, rule, tokens[jump + 1], tokens[jump + 2 :])
    return rule.rule


def _add_matches(rule: Any, tokens: list[str]) -> None:
    match: Any = None
    while tokens:
        option = tokens.pop(0)
        negated = option == "!" and not tokens[0].startswith("--")
        if negated:
            option = tokens.pop(0)
        if option == "-m":
            _check(match)
            match = rule.create_match(tokens.pop(0))
        elif option == "!" or option.startswith("--"):
            _set_parameter(match, option, tokens)
        else:
            _set_base_option(rule, option, tokens.pop(0), "!" if negated else "")
    _check(match)


def _add_target(family: Family, rule: Any, name: str, tokens: list[str]) -> None:
    if family is Family.V6 and name in nat6.TARGETS:
        rule._target = _RawTarget(nat6.encode(name, _options(tokens)))
        return
    target = rule.create_target(name)
    while tokens:
        _set_parameter(target, tokens.pop(0), tokens)
    _check(target)


def _options(tokens: Sequence[str]) -> dict[str, str]:
    """``["--to-ports", "1-9", "--random-fully"]`` as a mapping; an option without a value has an empty one."""
    options: dict[str, str] = {}
    option = ""
    for token in tokens:
        if token.startswith("--"):
            option = token
        options[option] = "" if token == option else token
    return options


class _RawTarget:
    """What ``iptc.Rule`` needs of a target: its bytes."""

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self.target = (ctypes.c_ubyte * len(data)).from_buffer_copy(data)


def _check(extension: Any) -> None:
    """The extension's last word on its parameters; SNAT takes its flags over here."""
    if extension is not None:
        extension._final_check()


def _set_parameter(extension: Any, option: str, tokens: list[str]) -> None:
    values = []
    if option == "!":
        values, option = ["!"], tokens.pop(0)
    while tokens and tokens[0] != "!" and not tokens[0].startswith("-"):
        values.append(tokens.pop(0))
    extension.set_parameter(option.removeprefix("--"), values or "")


def _set_base_option(rule: Any, option: str, value: str, negation: str) -> None:
    if option == "-s":
        rule.src = negation + value
    elif option == "-d":
        rule.dst = negation + value
    elif option in ("-i", "-o"):
        _set_interface(rule.get_ip(), "iniface" if option == "-i" else "outiface", value)
    elif option != "-p":
        raise ValueError(f"the option {option} is not known")


def _set_interface(fields: Any, field: str, name: str) -> None:
    raw = name.removesuffix("+").encode()
    # An exact name is compared with its final zero byte, a prefix without.
    compared = len(raw) + (0 if name.endswith("+") else 1)
    setattr(fields, field, raw)
    setattr(fields, f"{field}_mask", b"\xff" * min(compared, _INTERFACE_BYTES))


def _words(error: object) -> str:
    return error.decode(errors="replace") if isinstance(error, bytes) else str(error).replace("b'", "'")
