"""``felixpy hub``: reads the Kubernetes API once for all nodes of a large cluster."""

from __future__ import annotations

import os
from pathlib import Path

import click
from structlog.contextvars import bind_contextvars

from felixpy.commands.common import finish, local_settings
from felixpy.commands.errors import CommandError, plain_errors
from felixpy.commands.options import settings_file
from felixpy.config import Settings
from felixpy.observe.log_limit import LogLimit


@click.command()
@settings_file
@click.option(
    "--namespace", default="felixpy", help="Where the lease is by which one of several hubs works; else POD_NAMESPACE."
)
@click.option(
    "--take-over", is_flag=True, help="Own from now on what the broker holds and 'felixpy apply' has kept there."
)
def hub(config: Path | None, namespace: str, take_over: bool) -> None:
    """Publish a Kubernetes cluster to the MQTT broker, for nodes with FELIX_MQTTPEERS=Hub; until SIGTERM or Ctrl-C.

    Nodes then read the broker and not the API: docs/hub.md says from which size on. What the API does not have is
    removed from the broker. Exit code: 0 stopped, 1 could not start.

    Examples:

        FELIX_MQTTHOST=broker.example FELIX_KUBECONFIG=/etc/felixpy/kubeconfig felixpy hub
    """
    with plain_errors():
        settings = local_settings(config, log=LogLimit()).settings
        if not settings.mqtt_host:
            raise CommandError("a hub needs a broker to write to; set FELIX_MQTTHOST")
    bind_contextvars(node="hub")
    finish(_hub(settings, os.environ.get("POD_NAMESPACE", namespace), take_over))


async def _hub(settings: Settings, namespace: str, take_over: bool) -> int:
    from felixpy.hub.run import Hub
    from felixpy.kubernetes.access import Access
    from felixpy.kubernetes.client import Api
    from felixpy.sources.chosen import cluster_identity

    api = Api(Access(cluster_identity(settings)))
    await Hub(settings, api, namespace, take_over=take_over).run()
    return 0
