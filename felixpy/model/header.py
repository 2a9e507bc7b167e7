"""What every object has: its key, its metadata, and the rest as it came."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from felixpy.model.keys import ResourceKey
from felixpy.model.objects import Metadata


class Header(NamedTuple):
    """An object whose kind and name are valid. ``object`` is the whole of it."""

    key: ResourceKey
    metadata: Metadata
    spec: object
    object: Mapping[Any, Any]
