"""``felixpy demo``."""

from __future__ import annotations

import click
from click.exceptions import Exit

from felixpy.demo.run import demo as run_demo


@click.command()
@click.option("--backend", help="nftables, legacy, nft or auto.")
@click.option("--ipv6-only", is_flag=True, help="No IPv4 anywhere.")
@click.option("--keep", is_flag=True, help="Leave the lab up and say how to enter it.")
@click.option("--latency/--no-latency", default=True, help="Also time one endpoint beside 2,000 others.")
def demo(backend: str | None, ipv6_only: bool, keep: bool, latency: bool) -> None:
    """Show felixpy working: three nodes, one behind a router, workloads and an outside host in private network
    namespaces, real packets.

    Exit code 0 only if every check holds. Nothing is left behind.

    Examples:

        sudo felixpy demo

        sudo felixpy demo --backend legacy --ipv6-only
    """
    raise Exit(run_demo(backend, ipv6_only, keep, latency))
