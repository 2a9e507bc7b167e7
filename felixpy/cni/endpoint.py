"""From an attachment to the endpoint that the agent programs: names as Calico gives them. Pure."""

from __future__ import annotations

import hashlib
import re

from felixpy.cni.attachments import Attachment
from felixpy.model.names import MAX_NAME
from felixpy.model.policy import NAMESPACE_LABEL, ORCHESTRATOR_LABEL
from felixpy.model.resources import Kind, ResourceKey, WorkloadEndpoint

NAMESPACE, ORCHESTRATOR = "default", "cni"
"""Calico's namespace of what has none, and its word for containers that are no pods."""

_PLAIN = re.compile(r"[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?")
_HASH_CHARACTERS = 11
"""What Calico takes of a SHA-1: with its prefix of four they make the longest name that an interface can have."""


def interface_name(prefix: str, *parts: str) -> str:
    """The node's end: ``cali`` and the beginning of the SHA-1 of ``namespace.pod``, else of ``container.interface``."""
    digest = hashlib.sha1(".".join(parts).encode(), usedforsecurity=False).hexdigest()
    return (prefix + digest[:_HASH_CHARACTERS])[:15]


def container_key(node: str, container_id: str, container_interface: str) -> ResourceKey:
    """The endpoint of a container that is no pod's. No source has names like it: they say ``-cni-``.

    An id that no object can be named by, or that is too long, is replaced by its digest.
    """
    name = _join(node, ORCHESTRATOR, container_id, container_interface)
    if not (_PLAIN.fullmatch(container_id) and _PLAIN.fullmatch(container_interface)) or len(name) > MAX_NAME:
        text = f"{container_id}/{container_interface}"
        name = _join(node, ORCHESTRATOR, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), "eth")
    return ResourceKey(Kind.WORKLOAD_ENDPOINT, name, NAMESPACE)


def _join(*parts: str) -> str:
    return "-".join(part.replace("-", "--") for part in parts)


def endpoint_of(key: ResourceKey, node: str, attachment: Attachment) -> WorkloadEndpoint:
    """The endpoint of an attachment of which nothing else is known: it names no profile, and policies can select it by
    its namespace and orchestrator.
    """
    labels = {NAMESPACE_LABEL: NAMESPACE, ORCHESTRATOR_LABEL: ORCHESTRATOR}
    return WorkloadEndpoint(
        key, node, attachment.interface, attachment.addresses, attachment.mac, created=attachment.created, labels=labels
    )
