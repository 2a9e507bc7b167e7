"""``felixpy connectivity``: a few pods try what a cluster's network has to do, and are taken away again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from felixpy.commands.common import finish
from felixpy.commands.errors import CommandError
from felixpy.commands.options import PathOf, as_json


@click.command()
@click.option(
    "--kubeconfig", metavar="FILE", type=PathOf(), help="How to reach the cluster; else KUBECONFIG, else as a pod."
)
@click.option("--image", default="", show_default=False, help="Image with python3; else that of the DaemonSet.")
@click.option("--home", default="felixpy", help="Namespace of the DaemonSet.")
@click.option("--timeout", metavar="SECONDS", type=float, default=30.0, help="How long a connection may take to come.")
@click.option("--policy/--no-policy", default=True, help="Also try a NetworkPolicy.")
@click.option("--outside", metavar="URL", multiple=True, help="Also try to reach this; several times.")
@as_json
def connectivity(
    kubeconfig: Path | None,
    image: str,
    home: str,
    timeout: float,
    policy: bool,
    outside: tuple[str, ...],
    as_json: bool,
) -> None:
    """Try pod to pod on one node and across nodes, Services and a policy, over each family that the pods have.

    Makes a namespace felixpy-connectivity-…, and removes it. Exit code: 0 all as it should be, 2 not, 1 could not be
    tried.

    Examples:

        felixpy connectivity --kubeconfig ~/.kube/config

        felixpy connectivity --outside https://203.0.113.9/ --json
    """
    finish(_connectivity(kubeconfig, image, home, timeout, policy, outside, as_json))


async def _connectivity(
    kubeconfig: Path | None,
    image: str,
    home: str,
    seconds: float,
    policy: bool,
    outside: tuple[str, ...],
    as_json: bool,
) -> int:
    from felixpy.connectivity import run
    from felixpy.kubernetes.access import Access, from_kubeconfig, in_cluster
    from felixpy.kubernetes.client import Api

    named = kubeconfig or (Path(path) if (path := os.environ.get("KUBECONFIG")) else None)
    identity = from_kubeconfig(named) if named else in_cluster()
    if identity is None:
        raise CommandError("no cluster is named; give --kubeconfig, or set KUBECONFIG")
    async with Api(Access(identity)) as api:
        planned = await run.plan(api, image=image, home=home, seconds=seconds, policy=policy, outside=outside)
        results = await run.run(api, planned, lambda line: click.echo(line, err=True))
    bad = [one for one in results if not one.good]
    if as_json:
        click.echo(json.dumps([{**one._asdict(), "good": one.good} for one in results]))
    else:
        for one in results:
            word = "ok" if one.good else "NOT"
            expected = "answered" if one.expected else "refused"
            click.echo(f"{word:4} {one.source} → {one.target}: {expected}{'' if one.good else f'; {one.said}'}")
        click.echo(f"{len(results) - len(bad)} of {len(results)} as they should be")
    return 2 if bad else 0
