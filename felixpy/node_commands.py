"""The commands that look at this node: ``check``, ``explain``, ``status``, ``diag``. They change nothing."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from felixpy.command import CommandError, finish

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


# --- explain ---------------------------------------------------------------------------------------------------------


def explain(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Source address.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="Destination address.")],
    protocol: Annotated[str, typer.Argument(help="icmp, tcp, udp or a number.")] = "icmp",
    port: Annotated[int | None, typer.Argument(help="Destination port; 80 of tcp and 53 of udp without one.")] = None,
    interface: Annotated[
        str | None, typer.Option("--in", metavar="INTERFACE", help="Where it comes in; else where the route leads to.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what becomes of a packet on this node, by the rules, sets and routes that the kernel has now.

    Rules of every program count. Exit code: 0 it passes, 2 it is dropped, 3 that is not certain, 1 cannot be told.

    Examples:

        felixpy explain 10.48.0.1 198.51.100.1 tcp 443

        felixpy explain fd00:48::99 fd00:48::2 udp 53 --in cali68caf03a5f4
    """
    finish(_explain(source, destination, protocol, port, interface, as_json))


async def _explain(
    source: str, destination: str, protocol: str, port: int | None, interface: str | None, as_json: bool
) -> int:
    from felixpy.explain import report

    try:
        packet = report.make_packet(source, destination, protocol, port)
        verdict, iif, missing = await report.answer(packet, interface)
    except report.ExplainError as error:
        raise CommandError(str(error)) from None
    if as_json:
        typer.echo(json.dumps(report.as_json(packet, verdict, iif, missing)))
    else:
        for line in report.as_text(packet, verdict, iif, missing):
            typer.echo(line)
    return report.exit_code(verdict)
