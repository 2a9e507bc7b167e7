"""Names of objects: the rules of Kubernetes, and how Calico names objects after a CIDR.

A checked name holds nothing that a topic, a file name or a log line would have to escape.
"""

from __future__ import annotations

import re

from felixpy.model.invalid import InvalidResource
from felixpy.model.net import Net, quote

MAX_NAME = 253
"""Characters of the longest name that an object can have."""

_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")
_INTERFACE = re.compile(r"[a-zA-Z0-9_.-]{1,15}")
# dev_valid_name() refuses the first two. The next two are directories of /proc/sys/net/*/conf that stand for every
# interface: a workload of that name would change them all.
_NO_INTERFACE = frozenset({".", "..", "all", "default", "lo"})
_DASHES = str.maketrans(".:/", "---")


def check_name(name: str | None, field: str) -> str:
    """``name`` if it is a DNS-1123 subdomain of at most ``MAX_NAME`` characters.

    Raises:
        InvalidResource
    """
    if not name:
        raise InvalidResource("is missing", field=field)
    if not is_name(name):
        rule = f"lower-case letters, digits, '-' and '.', at most {MAX_NAME} characters"
        raise InvalidResource(f"{quote(name)} is not a valid name ({rule})", field=field)
    return name


def is_name(name: str) -> bool:
    """Whether ``name`` is a DNS-1123 subdomain of at most ``MAX_NAME`` characters."""
    return len(name) <= MAX_NAME and bool(_SUBDOMAIN.fullmatch(name))


def is_namespace(name: str) -> bool:
    """Whether ``name`` is a DNS-1123 label."""
    return bool(_LABEL.fullmatch(name))


def check_namespace(name: str, field: str) -> str:
    """``name`` if it is a DNS-1123 label.

    Raises:
        InvalidResource
    """
    if not is_namespace(name):
        rule = "lower-case letters, digits and '-', at most 63 characters"
        raise InvalidResource(f"{quote(name)} is not a valid namespace ({rule})", field=field)
    return name


def check_interface(name: str | None, field: str) -> str:
    """``name`` if the kernel takes it as the name of an interface (``IFNAMSIZ`` is 16 with the final zero).

    Raises:
        InvalidResource
    """
    if not name:
        raise InvalidResource("is missing", field=field)
    if not _INTERFACE.fullmatch(name):
        rule = "letters, digits, '_', '.' and '-', at most 15 characters"
        raise InvalidResource(f"{quote(name)} is not a valid interface name ({rule})", field=field)
    if name in _NO_INTERFACE:
        raise InvalidResource(f"{quote(name)} cannot be a workload's interface", field=field)
    return name


def cidr_name(net: Net) -> str:
    """A prefix as part of an object's name: ``fd00:48::/122`` → ``fd00-48---122``.

    The zeros that ``::`` stands for are not written out, as in Calico's names of blocks.
    """
    return str(net).translate(_DASHES)
