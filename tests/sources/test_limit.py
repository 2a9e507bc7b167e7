"""The limit of objects: what was taken passes for ever, what came too late does not, places that are left are free."""

from __future__ import annotations

import random

import pytest

from felixpy.model.parse import parse_resource
from felixpy.model.resources import Absent, Kind, Resource, ResourceKey, Update
from felixpy.sources.limit import ObjectLimit

MOST = 5
ENDPOINT = {"node": "n1", "interfaceName": "cali1", "ipNetworks": ["10.0.0.1/32"]}
POOL = {"cidr": "10.0.0.0/16"}


def resource(kind: str, name: str) -> Resource:
    spec, metadata = (
        (ENDPOINT, {"name": name, "namespace": "x"}) if kind == "WorkloadEndpoint" else (POOL, {"name": name})
    )
    found = parse_resource({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec})
    assert found is not None and not isinstance(found, Absent)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_as_many_are_taken_as_may_be_whatever_comes_and_goes(seed: int) -> None:
    chance = random.Random(seed)
    taken: set[ResourceKey] = set()
    limit = ObjectLimit(MOST, lambda key: key in taken)
    objects = [resource(kind, f"o{number}") for kind in ("WorkloadEndpoint", "IPPool") for number in range(6)]
    for _ in range(500):
        one = chance.choice(objects)
        update = chance.choice((Update(one.key, one), Update(one.key, None, "wrong"), Update(one.key, None)))
        is_gone = update.resource is None and not update.error
        passes = limit.takes(update)
        assert passes == (is_gone or one.key in taken or len(taken) < MOST)
        if is_gone:
            taken.discard(one.key)
        elif passes:
            taken.add(one.key)
        assert len(taken) <= MOST
        assert limit.left_out.isdisjoint(taken)
    assert {key.kind for key in taken} <= {Kind.WORKLOAD_ENDPOINT, Kind.IP_POOL}
