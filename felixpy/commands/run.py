"""``felixpy run``: the agent."""

from __future__ import annotations

from pathlib import Path

import click
from structlog.contextvars import bind_contextvars

from felixpy.agent.daemon import run_daemon
from felixpy.commands.common import finish, local_settings
from felixpy.commands.errors import plain_errors
from felixpy.commands.options import settings_file
from felixpy.observe.log_limit import LogLimit


@click.command()
@settings_file
def run(config: Path | None) -> None:
    """Run the agent until SIGTERM or Ctrl-C; the kernel keeps its state when it ends.

    Settings come from FELIX_* in the environment, the settings file and FelixConfigurations of the stream.
    Resources come from the MQTT broker FELIX_MQTTHOST, or from FELIX_RESOURCEDIRECTORY without one.
    SIGHUP makes it read the settings file again, and the files of MQTT's certificates and password.

    Examples:

        NODENAME=node1 FELIX_MQTTHOST=broker.example felixpy run

        NODENAME=node1 FELIX_RESOURCEDIRECTORY=/etc/felixpy/resources felixpy run
    """
    limit = LogLimit()
    with plain_errors():
        local = local_settings(config, named=True, log=limit)
    bind_contextvars(node=local.settings.nodename)
    finish(run_daemon(local, config, limit))
