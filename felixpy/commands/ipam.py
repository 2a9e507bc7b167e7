"""``felixpy ipam``: who has which addresses, what is lost, and what an operator gives and takes.

Blocks are read where the settings say that resources come from: the Kubernetes API or a broker; what containers of this
node have stands in its journal. ``show`` and ``check`` change nothing; ``release`` and ``assign`` write blocks only.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from felixpy.commands.common import finish, local_settings
from felixpy.commands.errors import CommandError, plain_errors
from felixpy.commands.group import Commands
from felixpy.commands.options import as_json, settings_file
from felixpy.config import DatastoreType, Settings
from felixpy.model.keys import Kind
from felixpy.model.net import Net, format_address, parse_address

if TYPE_CHECKING:
    from felixpy.ipam.objects import KubernetesObjects
    from felixpy.ipam.survey import Facts
    from felixpy.kubernetes.client import Api
    from felixpy.mqtt.publisher import Publisher


@click.group(cls=Commands, no_args_is_help=True)
def ipam() -> None:
    """Addresses of workloads: who has which, what is lost, who gets a block.

    Examples:

        felixpy ipam show

        felixpy ipam check
    """


@ipam.command()
@click.argument("address", required=False, help="Say who has this one.")
@settings_file
@as_json
def show(address: str | None, config: Path | None, as_json: bool) -> None:
    """Print the blocks, how many of their addresses are in use, and what this node's containers have.

    Examples:

        felixpy ipam show

        felixpy ipam show 10.48.7.9
    """
    with plain_errors():
        local = local_settings(config)
        packed = _address(address) if address else None
    finish(_show(local.settings, packed, as_json))


@ipam.command()
@settings_file
@as_json
def check(config: Path | None, as_json: bool) -> None:
    """Find addresses that are lost or have two owners, blocks of nodes that are gone, claims that contradict.

    Exit code: 0 nothing is wrong, 2 something is, 1 could not be told.

    Examples:

        felixpy ipam check
    """
    with plain_errors():
        local = local_settings(config)
    finish(_check(local.settings, as_json))


@ipam.command()
@click.argument("address", nargs=-1, help="Addresses to free.")
@click.option("--node", help="Everything of a node that is gone.")
@click.option("--force", is_flag=True, help="Also of a node that is there.")
@settings_file
def release(address: tuple[str, ...], node: str | None, force: bool, config: Path | None) -> None:
    """Free addresses whose owner is gone, or give back all blocks of a node that is gone.

    Examples:

        felixpy ipam release 10.48.7.9

        felixpy ipam release --node node7
    """
    with plain_errors():
        local = local_settings(config)
        if bool(address) == bool(node):
            raise CommandError("name addresses, or a node with --node")
        packed = [_address(text) for text in address]
    finish(_release(local.settings, packed, node, force))


@ipam.command()
@click.argument("cidr", help="A block, such as 10.48.7.0/26.")
@click.option("--node", required=True, help="Who gets it.")
@settings_file
def assign(cidr: str, node: str, config: Path | None) -> None:
    """Give a node a block of addresses, over the broker: with IPAMType=PodCIDR its agent gives them to containers.

    Examples:

        felixpy ipam assign 10.48.7.0/26 --node node7
    """
    with plain_errors():
        local = local_settings(config)
        try:
            net = Net.parse(cidr)
        except ValueError as error:
            raise CommandError(str(error)) from None
    finish(_assign(local.settings, net, node))


def _address(text: str) -> bytes:
    try:
        return parse_address(text)
    except ValueError as error:
        raise CommandError(str(error)) from None


# --- reading ---------------------------------------------------------------------------------------------------------


async def _facts(settings: Settings) -> Facts:
    from felixpy.sources.chosen import datastore

    store = datastore(settings)
    if store is DatastoreType.KUBERNETES:
        async with _cluster(settings) as (objects, api):
            return await _facts_of_cluster(objects, api)
    if store is DatastoreType.MQTT:
        return await _facts_of_broker(settings)
    return _facts_of_directory(settings)


@contextlib.asynccontextmanager
async def _cluster(settings: Settings) -> AsyncIterator[tuple[KubernetesObjects, Api]]:
    from felixpy.ipam.objects import KubernetesObjects, Unavailable
    from felixpy.kubernetes.access import Access
    from felixpy.kubernetes.client import Api
    from felixpy.sources.chosen import cluster_identity

    async with Api(Access(cluster_identity(settings))) as api:
        try:
            yield KubernetesObjects(api), api
        except Unavailable as error:
            raise CommandError(str(error)) from None


async def _facts_of_cluster(objects: KubernetesObjects, api: Api) -> Facts:
    from felixpy.ipam.objects import AFFINITIES, BLOCKS, HANDLES, POOLS
    from felixpy.ipam.survey import Facts

    nodes = await api.get("/api/v1/nodes")
    pods = await api.get("/api/v1/pods")
    return Facts(
        [one.spec for one in await objects.items(BLOCKS)],
        [one.spec for one in await objects.items(AFFINITIES)],
        _nets(one.spec.get("cidr") for one in await objects.items(POOLS)),
        frozenset(str(one["metadata"]["name"]) for one in nodes.get("items") or []),
        {
            (one["metadata"]["namespace"], one["metadata"]["name"]): frozenset(_pod_addresses(one))
            for one in pods.get("items") or []
            if not (one.get("spec") or {}).get("hostNetwork")
        },
        {str(one.spec.get("handleID")): one.metadata["name"] for one in await objects.items(HANDLES)},
    )


def _pod_addresses(pod: Any) -> list[bytes]:
    status = pod.get("status") or {}
    if status.get("phase") in ("Succeeded", "Failed"):
        return []  # its addresses may be others' by now
    return [parse_address(one["ip"]) for one in status.get("podIPs") or [] if one.get("ip")]


async def _facts_of_broker(settings: Settings) -> Facts:
    from felixpy.mqtt.publisher import open_publisher

    async with open_publisher(settings) as publisher:
        return _facts_of_objects(await _at_broker(publisher))


async def _at_broker(publisher: Publisher) -> list[Any]:
    """Blocks, affinities, pools and nodes."""
    objects: list[Any] = []
    for kind in (Kind.IPAM_BLOCK, Kind.BLOCK_AFFINITY, Kind.IP_POOL, Kind.NODE):
        found = await publisher.get(kind)
        if found.incomplete:
            raise CommandError(f"the broker's list may be incomplete: {found.incomplete}")
        objects += found.objects.values()
    return objects


def _facts_of_directory(settings: Settings) -> Facts:
    from felixpy.model.documents import Document, load

    documents = load([settings.resource_directory]) if settings.resource_directory.is_dir() else []
    return _facts_of_objects([one.object for one in documents if isinstance(one, Document)])


def _facts_of_objects(objects: list[Any]) -> Facts:
    from felixpy.ipam.survey import Facts

    by_kind: dict[str, list[Any]] = {}
    for one in objects:
        by_kind.setdefault(str(one.get("kind")), []).append(one)
    specs = {kind: [one.get("spec") or {} for one in some] for kind, some in by_kind.items()}
    names = frozenset(str(one["metadata"]["name"]) for one in by_kind.get("Node", []))
    return Facts(
        specs.get("IPAMBlock", []),
        specs.get("BlockAffinity", []),
        _nets(spec.get("cidr") for spec in specs.get("IPPool", [])),
        names or None,
    )


def _nets(texts: Any) -> list[Net]:
    found = []
    for text in texts:
        with contextlib.suppress(ValueError, TypeError):
            found.append(Net.parse(text))
    return found


def _attached(settings: Settings) -> list[Any]:
    from felixpy.cni.journal import parse

    try:
        data = (settings.cni_state_directory / "attachments").read_bytes()
    except OSError:
        return []
    return list(parse(data).attachments.values())


# --- the commands ----------------------------------------------------------------------------------------------------


async def _show(settings: Settings, address: bytes | None, as_json: bool) -> int:
    from felixpy.ipam.survey import rows, who_has

    facts, attached = await _facts(settings), _attached(settings)
    if address is not None:
        for one in attached:
            if any(net.packed == address for net in one.addresses):
                who = f"pod {one.namespace}/{one.pod}" if one.pod else f"container {one.container_id}"
                click.echo(f"{format_address(address)} is {who}'s on this node, interface {one.interface}")
                return 0
        click.echo(who_has(facts, address))
        return 0
    table = rows(facts)
    if as_json:
        blocks = [{**row._asdict(), "cidr": str(row.cidr)} for row in table]
        here = [
            {"container": one.container_id, "namespace": one.namespace, "pod": one.pod, "interface": one.interface,
             "addresses": [str(net) for net in one.addresses]}
            for one in attached
        ]  # fmt: skip
        click.echo(json.dumps({"blocks": blocks, "attached": here}))
        return 0
    for row in table:
        borrowed = f", {row.borrowed} borrowed" if row.borrowed else ""
        click.echo(f"{row.cidr!s:<28} {row.node or '-':<24} {row.used} of {row.size}{borrowed}")
    for one in attached:
        who = f"{one.namespace}/{one.pod}" if one.pod else one.container_id[:12]
        click.echo(f"{', '.join(str(net) for net in one.addresses):<44} {who:<32} {one.interface}")
    if not table and not attached:
        click.echo("no block, and no container is attached on this node")
    return 0


async def _check(settings: Settings, as_json: bool) -> int:
    from felixpy.ipam.survey import findings

    found = findings(await _facts(settings))
    if as_json:
        click.echo(json.dumps(found))
    else:
        for one in found:
            click.echo(one)
        click.echo(f"{len(found)} findings" if found else "nothing is wrong")
    return 2 if found else 0


async def _release(settings: Settings, addresses: list[bytes], node: str | None, force: bool) -> int:
    from felixpy.sources.chosen import datastore

    store = datastore(settings)
    if store is DatastoreType.KUBERNETES:
        async with _cluster(settings) as (objects, api):
            if node is not None:
                return await _release_node(objects, api, node, force)
            return await _release_addresses(objects, addresses)
    if store is DatastoreType.MQTT and node is not None:
        return await _withdraw(settings, node)
    raise CommandError(
        "single addresses are the agent's own: they come back when the runtime calls DEL or GC; "
        "a block of a node is taken back with --node, over the broker"
    )


async def _release_addresses(objects: KubernetesObjects, addresses: list[bytes]) -> int:
    from felixpy.ipam.freeing import free_address
    from felixpy.ipam.objects import BLOCKS

    blocks = _nets(one.spec.get("cidr") for one in await objects.items(BLOCKS))
    for address in addresses:
        cidr = next((net for net in blocks if net.covers(address)), None)
        freed = cidr is not None and await free_address(objects, cidr, address)
        click.echo(f"{format_address(address)}: {'free now' if freed else 'was free' if cidr else 'is in no block'}")
    return 0


async def _release_node(objects: KubernetesObjects, api: Api, node: str, force: bool) -> int:
    from felixpy.ipam.block import BlockError
    from felixpy.ipam.freeing import StillThere, free_node
    from felixpy.kubernetes.client import NOT_FOUND, ApiError

    try:
        await api.get(f"/api/v1/nodes/{node}")
        there = True
    except ApiError as error:
        if error.status != NOT_FOUND:
            raise
        there = False
    if there and not force:
        raise CommandError(
            f"{node} is a node of this cluster: its pods would lose their addresses; --force does it anyway"
        )
    try:
        count = await free_node(objects, node)
    except (BlockError, StillThere) as error:
        raise CommandError(f"{error}; try again, or see felixpy ipam check") from None
    click.echo(f"{count} blocks of {node} are free")
    return 0


async def _withdraw(settings: Settings, node: str) -> int:
    from felixpy.model.documents import load_text
    from felixpy.mqtt.batch import prepare
    from felixpy.mqtt.publisher import open_publisher

    async with open_publisher(settings) as publisher:
        mine = [one for one in await _at_broker(publisher) if _owner(one) == node]
        if mine:
            await publisher.delete(prepare(load_text(json.dumps(mine).encode(), "blocks")))
    click.echo(f"{len(mine)} blocks of {node} are withdrawn")
    return 0


def _owner(one: Any) -> str | None:
    spec = one.get("spec") or {}
    if one.get("kind") == "IPAMBlock":
        return str(spec.get("affinity") or "").removeprefix("host:") or None
    return spec.get("node") if one.get("kind") == "BlockAffinity" else None


async def _assign(settings: Settings, net: Net, node: str) -> int:
    from felixpy.model.documents import load_text
    from felixpy.model.names import cidr_name
    from felixpy.mqtt.batch import prepare
    from felixpy.mqtt.publisher import open_publisher
    from felixpy.sources.chosen import datastore

    if datastore(settings) is not DatastoreType.MQTT:
        raise CommandError(
            "blocks are assigned over a broker (FELIX_MQTTHOST); in a cluster nodes claim them by themselves, and in a "
            "directory a manifest of an IPAMBlock does it"
        )
    block = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "IPAMBlock",
        "metadata": {"name": cidr_name(net)},
        "spec": {"cidr": str(net), "affinity": f"host:{node}", "allocations": [], "unallocated": [], "attributes": []},
    }
    async with open_publisher(settings) as publisher:
        _refuse_overlap(net, node, await _at_broker(publisher))
        await publisher.apply(prepare(load_text(json.dumps([block]).encode(), "block")))
    click.echo(f"{net} is {node}'s")
    return 0


def _refuse_overlap(net: Net, node: str, objects: list[Any]) -> None:
    """Two owners of one address are never made here."""
    pools = _nets((one.get("spec") or {}).get("cidr") for one in objects if one.get("kind") == "IPPool")
    if pools and not any(pool.covers(net) for pool in pools):
        raise CommandError(
            f"{net} is in no pool: {', '.join(map(str, pools))}; name a part of one, or apply a pool first"
        )
    for one in objects:
        owner = _owner(one)
        other = next(iter(_nets([(one.get("spec") or {}).get("cidr")])), None)
        if owner and other is not None and other.overlaps(net) and (owner, other) != (node, net):
            raise CommandError(
                f"{net} overlaps {other} of {owner}; felixpy ipam release --node {owner}, or name another"
            )
