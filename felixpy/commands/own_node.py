"""``felixpy node``: what this machine should tell other nodes of itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import click
import yaml

from felixpy.commands.common import finish, local_settings
from felixpy.commands.errors import plain_errors
from felixpy.commands.options import settings_file
from felixpy.config import Settings
from felixpy.model.net import FAMILIES, Net, family_of
from felixpy.model.resources import Kind
from felixpy.node.detection import DetectionError
from felixpy.node.document import own_node
from felixpy.node.interfaces import read_surroundings
from felixpy.node.pools import PoolSettingError, default_pools
from felixpy.plain_error import PlainError


@click.command()
@settings_file
@click.option("--yaml", "as_yaml", is_flag=True, help="Print the Node to publish.")
@click.option("--pools", is_flag=True, help="Print the default pools to publish, of families that have none.")
@click.option("--forget", metavar="NODE", help="Delete what a node that is gone said of itself.")
def node(config: Path | None, as_yaml: bool, pools: bool, forget: str | None) -> None:
    """Say which addresses this node should tell others, by Calico's variables IP, IP6, IP_AUTODETECTION_METHOD.

    A running agent tells them by itself. What a node said stays at the broker when it ends: its workloads may run.

    Default pools are what Calico's variables CALICO_IPV4POOL_*, CALICO_IPV6POOL_* and NO_DEFAULT_POOLS say. Over MQTT
    pools are the publisher's to write, and no node's: publish them once for all nodes.

    Examples:

        felixpy node

        felixpy node --yaml | felixpy apply -f -

        CALICO_IPV4POOL_VXLAN=CrossSubnet felixpy node --pools | felixpy apply -f -

        felixpy node --forget node7
    """
    with plain_errors():
        local = local_settings(config, named=forget is None)
    if forget is not None:
        finish(_forget(local.settings, forget))
    if pools:
        finish(_print_pools(local.settings))
    with plain_errors():
        for line in _own_node_lines(local.settings.nodename, as_yaml=as_yaml):
            click.echo(line)


def _own_node_lines(name: str, *, as_yaml: bool) -> Iterator[str]:
    """Lines to print.

    Raises:
        PlainError: no address, or a variable that cannot be used.
    """
    try:
        found = own_node(name, os.environ, read_surroundings())
    except DetectionError as error:
        raise PlainError(str(error)) from None
    if as_yaml:
        yield yaml.safe_dump(found.document(name), sort_keys=False).rstrip()
        return
    yield f"node        {name}"
    for family in FAMILIES:
        if family in found.problems:
            yield f"{family!s:<11} none: {found.problems[family]}"
            continue
        one = found.addresses[family]
        yield f"{family!s:<11} {one.net or 'none'} ({one.how}){f'; {one.warning}' if one.warning else ''}"
    yield f"router id   {found.router_id or 'none: set CALICO_ROUTER_ID=hash'}"


async def _print_pools(settings: Settings) -> None:
    """Print the pools that Calico's start-up would make here, of families of which the broker has none.

    Raises:
        PlainError: no broker, not everything is known of it, a variable cannot be used, or there is nothing to make.
    """
    from felixpy.mqtt.publisher import open_publisher

    _require_broker(settings)
    async with open_publisher(settings) as publisher:
        known = await publisher.get(Kind.IP_POOL, None, None)
    if known.incomplete:
        raise PlainError(f"which pools there are is not known: {known.incomplete}")
    existing = {Net.parse_masked(str(one["spec"]["cidr"])).family for one in known.objects.values()}
    addresses = [one.net.packed for link in read_surroundings().interfaces for one in link.addresses]
    families = {family_of(packed) for packed in addresses if not packed.startswith(_UNROUTED)}
    try:
        found = default_pools(
            os.environ,
            existing=existing | (set(FAMILIES) - families),
            host_addresses=addresses,
            random_bytes=os.urandom(5),
        )
    except PoolSettingError as error:
        raise PlainError(str(error)) from None
    if not found:
        raise PlainError("there is no pool to make: each family of this node has one, or the variables want none")
    click.echo(yaml.safe_dump_all(found, sort_keys=False).rstrip())


_UNROUTED = (b"\x7f", bytes(15) + b"\x01", b"\xfe\x80")
"""How addresses begin that say nothing of what a node has: loopback and link-local ones."""


async def _forget(settings: Settings, name: str) -> None:
    """Delete at the broker what a node said of itself.

    Raises:
        PlainError: no broker, or the node said nothing.
    """
    from felixpy.mqtt.publisher import open_publisher

    _require_broker(settings)
    async with open_publisher(settings) as publisher:
        if not await publisher.forget(name):
            raise PlainError(
                f"node {name} says nothing of itself at this broker; `felixpy get NodeState` lists who does"
            )
    click.echo(f"forgot what node {name} said of itself; a Node that was applied stays (felixpy delete)")


def _require_broker(settings: Settings) -> None:
    if not settings.mqtt_enabled:
        raise PlainError("no MQTT broker is named; set FELIX_MQTTHOST (and FELIX_MQTTPORT)")
