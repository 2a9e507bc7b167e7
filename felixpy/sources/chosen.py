"""Which source the settings and the surroundings ask for. One place, for the agent and for every command."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from felixpy.config import DatastoreType, Settings
from felixpy.kubernetes.access import SERVICE_ACCOUNT, AccessError, Identity, from_kubeconfig, in_cluster


def datastore(
    settings: Settings, environ: Mapping[str, str] = os.environ, account: Path = SERVICE_ACCOUNT
) -> DatastoreType:
    """What is asked for; without a word of it: a broker that is named, the cluster that we are a pod of, files."""
    if settings.datastore_type is not DatastoreType.AUTO:
        return settings.datastore_type
    if settings.mqtt_enabled:
        return DatastoreType.MQTT
    return DatastoreType.KUBERNETES if in_cluster(environ, account) else DatastoreType.DIRECTORY


def cluster_identity(
    settings: Settings, environ: Mapping[str, str] = os.environ, account: Path = SERVICE_ACCOUNT
) -> Identity:
    """How the Kubernetes API is reached: the setting, then the pod that we are, then ``KUBECONFIG``.

    Raises:
        AccessError
    """
    if settings.kubeconfig is not None:
        return from_kubeconfig(settings.kubeconfig)
    if found := in_cluster(environ, account):
        return found
    if path := environ.get("KUBECONFIG"):
        return from_kubeconfig(Path(path.split(os.pathsep)[0]))
    raise AccessError(
        "FELIX_DATASTORETYPE=kubernetes, but this is no pod of a cluster; set FELIX_KUBECONFIG to a kubeconfig"
    )
