"""``felixpy connectivity``: a few pods try what a cluster's network has to do, and are taken away again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from felixpy.commands.common import CommandError, a_path, finish


def connectivity(
    kubeconfig: Annotated[
        Path | None,
        typer.Option(metavar="FILE", parser=a_path, help="How to reach the cluster; else KUBECONFIG, else as a pod."),
    ] = None,
    image: Annotated[str, typer.Option(help="Image with python3; else that of the DaemonSet.")] = "",
    home: Annotated[str, typer.Option(help="Namespace of the DaemonSet.")] = "felixpy",
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="How long a connection may take to come.")] = 30.0,
    policy: Annotated[bool, typer.Option(help="Also try a NetworkPolicy.")] = True,
    outside: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="Also try to reach this; several times.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Try pod to pod on one node and across nodes, Services and a policy, over each family that the pods have.

    Makes a namespace felixpy-connectivity-…, and removes it. Exit code: 0 all as it should be, 2 not, 1 could not be
    tried.

    Examples:

        felixpy connectivity --kubeconfig ~/.kube/config

        felixpy connectivity --outside https://203.0.113.9/ --json
    """
    finish(_connectivity(kubeconfig, image, home, timeout, policy, tuple(outside or ()), as_json))


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
        results = await run.run(api, planned, lambda line: typer.echo(line, err=True))
    bad = [one for one in results if not one.good]
    if as_json:
        typer.echo(json.dumps([{**one._asdict(), "good": one.good} for one in results]))
    else:
        for one in results:
            word = "ok" if one.good else "NOT"
            expected = "answered" if one.expected else "refused"
            typer.echo(f"{word:4} {one.source} → {one.target}: {expected}{'' if one.good else f'; {one.said}'}")
        typer.echo(f"{len(results) - len(bad)} of {len(results)} as they should be")
    return 2 if bad else 0
