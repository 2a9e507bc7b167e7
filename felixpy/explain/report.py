"""What ``felixpy explain`` prints: the way of the packet, the verdict, and what was not judged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from felixpy.explain.facts import Kernel, read_kernel
from felixpy.explain.packet import ECHO_REQUEST, ICMP, ICMPV6, PROTOCOLS, TCP, UDP, Packet
from felixpy.explain.tunnels import read_tunnels
from felixpy.explain.walk import Encapsulated, Outcome, Verdict, explain, tell
from felixpy.model.net import Family, family_of, format_address, parse_address, quote

ALWAYS_UNJUDGED = (
    "only the first packet of a new connection is followed, and only on this node",
    "eBPF, tc and XDP programs, IPsec, and whether the other end answers on its link",
)
EXIT_CODES = {Outcome.PASSES: 0, Outcome.LOCAL: 0, Outcome.DROPPED: 2, Outcome.UNKNOWN: 3}


PROTOCOL_DIGITS = 3


class ExplainError(Exception):
    """The question cannot be answered: one sentence for people."""


def make_packet(source: str, destination: str, protocol: str, port: int | None) -> Packet:
    """The packet that is asked for.

    Raises:
        ExplainError: an address, protocol or port is none.
    """
    packed = []
    for text in (source, destination):
        try:
            packed.append(parse_address(text))
        except ValueError:
            raise ExplainError(
                f"{quote(text)} is no IPv4 or IPv6 address; give two addresses, as in `felixpy show`"
            ) from None
    family = family_of(packed[0])
    if family is not family_of(packed[1]):
        raise ExplainError(f"{source} and {destination} are of different families; give two IPv4 or two IPv6 addresses")
    number = _number(protocol)
    if not 0 <= number <= 255:
        raise ExplainError(
            f"{quote(protocol)} is no protocol that is known here; give icmp, tcp, udp or a number to 255"
        )
    if number == ICMP and family is Family.V6:
        number = ICMPV6
    if port is None and number in (TCP, UDP):
        port = 80 if number == TCP else 53
    if port is not None and not 0 < port < 65536:
        raise ExplainError(f"port {port} is out of range; give 1 to 65535")
    return Packet(family, packed[0], packed[1], number, port)


def _number(protocol: str) -> int:
    """Of a protocol by name or number; -1 if it is neither. Python refuses to read thousands of digits."""
    if protocol.isdecimal():
        return int(protocol) if len(protocol) <= PROTOCOL_DIGITS else -1
    return PROTOCOLS.get(protocol.lower(), -1)


async def answer(packet: Packet, interface: str | None) -> tuple[Verdict, str, list[str]]:
    """Follow a packet through this node's kernel.

    Returns:
        The verdict, the input interface (empty: our own packet), and what was not judged.

    Raises:
        ExplainError: the input interface is not known.
        OSError, FilterError: the kernel cannot be read.
    """
    async with read_kernel(packet.family) as kernel:
        if interface is not None and not kernel.index(interface):
            raise ExplainError(f"there is no interface {interface}; `ip link` lists them")
        if interface is None and packet.source not in kernel.local:
            interface = kernel.interface_of(packet.source)
            if not interface and (lost := kernel.lost(packet)):
                raise ExplainError(f"{lost[0]}; name where its packets come in with --in")
            if not interface:
                raise ExplainError(
                    f"no route leads to {format_address(packet.source)}, so where it comes from is not known;"
                    " name the interface with --in"
                )
        packet.iif = interface or ""
        verdict = explain(kernel.node, packet)
        verdict.doubts += kernel.lost(packet)
        await _follow(kernel, verdict)
        return verdict, packet.iif, kernel.missing


async def _follow(kernel: Kernel, verdict: Verdict) -> None:
    """Where the way leads into a tunnel, go on with the packet around it: what stops that stops both."""
    around = read_tunnels().around(verdict)
    if around is None:
        return
    if around.outer is None:
        verdict.outcome, verdict.by = Outcome.DROPPED, f"the tunnel: {around.fault}; `felixpy show underlay`"
        verdict.around = Encapsulated(around)
        return
    if around.outer.family is verdict.packet.family:
        outer = _explain_outer(kernel, around.outer)
    else:
        async with read_kernel(around.outer.family) as other:
            outer = _explain_outer(other, around.outer)
    verdict.around = Encapsulated(around, outer)
    verdict.doubts += [f"around it: {doubt}" for doubt in outer.doubts]
    if outer.outcome is not Outcome.PASSES:
        verdict.outcome = Outcome.UNKNOWN if outer.outcome is Outcome.UNKNOWN else Outcome.DROPPED
        verdict.by = f"what stops the packet around it: {outer.by or tell(outer)}"


def _explain_outer(kernel: Kernel, packet: Packet) -> Verdict:
    if not packet.source:  # the kernel takes the address that its route says
        packet.source = kernel.route(packet).source
    return explain(kernel.node, packet)


def exit_code(verdict: Verdict) -> int:
    """0 it passes, 2 it is dropped, 3 it cannot be judged for certain."""
    return EXIT_CODES[verdict.outcome] if verdict.certain else 3


def as_text(
    packet: Packet, verdict: Verdict, iif: str, missing: list[str], *, all_policies: bool = False
) -> Iterator[str]:
    """The answer in lines; ``all_policies``: also what each policy on the way says."""
    echo = " echo request" if packet.icmp_type == ECHO_REQUEST[packet.family] else ""
    yield f"packet       {packet}{echo}, " + (f"comes in by {iif}" if iif else "sent by this node")
    for stage in verdict.stages:
        whose = f"  ({stage.owner})" if stage.owner else ""
        yield (
            f"{stage.hook:<12} {stage.where}: {stage.rule or 'policy' if stage.hook != 'routing' else ''}".rstrip(": ")
            + f" → {stage.did}{whose}"
        )
    for each in verdict.said if all_policies else ():
        yield f"says         {each} → {each.did}{f': {each.rule}' if each.rule else ''}"
    for decided in verdict.decisions:
        yield f"policy       {decided} → {decided.did}"
    if verdict.around is not None:
        yield from _tunnel_lines(verdict.around)
    yield f"verdict      {tell(verdict)}"
    for doubt in verdict.doubts:
        yield f"not certain  {doubt}"
    for line in (*missing, *ALWAYS_UNJUDGED):
        yield f"not judged   {line}"


def _tunnel_lines(encapsulated: Encapsulated) -> Iterator[str]:
    around = encapsulated.around
    if around.outer is None or encapsulated.verdict is None:
        yield f"tunnel       {around.device}: {around.kind}, MTU {around.mtu}: {around.fault}"
        return
    yield f"tunnel       {around.device}: {around.kind}, MTU {around.mtu}: {around.outer}"
    for stage in encapsulated.verdict.stages:
        what = f": {stage.rule or 'policy'}" if stage.hook != "routing" else ""
        yield f"  {stage.hook:<10} {stage.where}{what} → {stage.did}"
    yield f"  around it  {tell(encapsulated.verdict)}"


def _tunnel_json(encapsulated: Encapsulated | None) -> dict[str, Any] | None:
    if encapsulated is None:
        return None
    around, verdict = encapsulated.around, encapsulated.verdict
    found = {"device": around.device, "kind": around.kind, "mtu": around.mtu, "fault": around.fault}
    if around.outer is None or verdict is None:
        return found
    return found | {
        "source": format_address(verdict.packet.source),
        "destination": format_address(verdict.packet.destination),
        "protocol": around.outer.protocol,
        "port": around.outer.port,
        "out": verdict.packet.oif,
        "gateway": format_address(verdict.route.gateway) if verdict.route.gateway else "",
        "outcome": verdict.outcome.value,
        "by": verdict.by,
    }


def as_json(packet: Packet, verdict: Verdict, iif: str, missing: list[str]) -> dict[str, Any]:
    """The answer for programs."""
    seen = verdict.packet
    return {
        "source": format_address(packet.source),
        "destination": format_address(packet.destination),
        "protocol": packet.protocol,
        "port": packet.port,
        "in": iif,
        "outcome": verdict.outcome.value,
        "certain": verdict.certain,
        "by": verdict.by,
        "out": seen.oif,
        "gateway": format_address(verdict.route.gateway) if verdict.route.gateway else "",
        "seen_source": format_address(seen.source),
        "seen_destination": format_address(seen.destination),
        "stages": [stage._asdict() for stage in verdict.stages],
        "policies": [decided._asdict() for decided in verdict.decisions],
        "all_policies": [each._asdict() for each in verdict.said],
        "tunnel": _tunnel_json(verdict.around),
        "doubts": verdict.doubts,
        "not_judged": [*missing, *ALWAYS_UNJUDGED],
    }
