"""Fuzz the parsers: ``python tests/model/fuzz_parse.py 100000 [seed]``.

Mutated good objects, good texts with bytes changed, and noise. Any exception but ``InvalidResource`` ends the run with
the input that caused it; so does a resource that breaks a rule of the model.
"""

from __future__ import annotations

import copy
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from felixpy.config import SettingsSource, resolve
from felixpy.model.documents import BadDocument, Document, load_text
from felixpy.model.invalid import InvalidResource
from felixpy.model.parse import parse_payload, parse_resource
from felixpy.model.resources import Absent, Kind, ResourceKey, WorkloadEndpoint

SAMPLES = [path.read_bytes() for path in sorted((Path(__file__).parent / "samples").glob("*.yaml"))]
BLOCK = {
    "cidr": "10.48.0.0/30",
    "affinity": "host:n",
    "allocations": [0, None],
    "attributes": [{"secondary": {"node": "m"}}],
}
SPECS: dict[str, dict[str, Any]] = {
    "WorkloadEndpoint": {"node": "n", "interfaceName": "cali1", "ipNetworks": ["10.48.0.1/32", "fd00::1"],
                         "mac": "ee:ee:ee:ee:ee:ee", "ipv4Gateway": "169.254.1.1",
                         "allowSpoofedSourcePrefixes": ["10.0.0.0/8"]},
    "IPPool": {"cidr": "fd00:48::/48", "blockSize": 122, "natOutgoing": True,
               "nodeSelector": "zone in {'a'} || !has(b)"},
    "Node": {"bgp": {"ipv4Address": "10.0.0.1/24"}, "addresses": [{"type": "InternalIP", "address": "fd00::1"}]},
    "IPAMBlock": BLOCK,
    "BlockAffinity": {"cidr": "10.48.0.0/26", "node": "n", "state": "confirmed", "deleted": "false"},
    "FelixConfiguration": {"ipv6Support": True, "routeRefreshInterval": "1m30s", "natPortRange": "1:2"},
}  # fmt: skip
GOOD = [
    {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": "x", "labels": {"a": "b"}}, "spec": spec}
    for kind, spec in SPECS.items()
]
ATOMS: list[Any] = [None, True, False, 0, -1, 1 << 63, 1.5, float("inf"), "", "x", "\x00", "\ud800", "10.0.0.1",
         "fd00::/129", "a" * 300, [], {}, [[]], {"": {}}, "none", "true",
         "::ffff:1.2.3.4", "0.0.0.0/0", "host:", "1e9s"]  # fmt: skip


def mutate(rng: random.Random, value: Any) -> Any:
    """One or more random changes somewhere inside ``value``."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.2:
        return rng.choice(ATOMS) if not isinstance(value, str) or rng.random() < 0.5 else mutate_text(rng, value)
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    if isinstance(value, dict) and rng.random() < 0.15:
        value[rng.choice(["spec", "cidr", "é", "a\nb", "name"])] = rng.choice(ATOMS)
    else:
        value[key] = mutate(rng, value[key])
    return value


def mutate_text(rng: random.Random, text: str) -> str:
    place = rng.randrange(len(text) + 1)
    return (
        text[:place]
        + rng.choice(["", "/", ":", "-", "0", "\n", " ", "'", "(", "é", "1"])
        + text[place + rng.randrange(3) :]
    )


def mutate_bytes(rng: random.Random, raw: bytes) -> bytes:
    for _ in range(rng.randrange(1, 6)):
        place = rng.randrange(len(raw) + 1)
        raw = (
            raw[:place]
            + rng.choice([b"", b"[", b"{", b"- ", b"\xff", b"\n", b":", b"&a ", b"*a", b"\x00", b"'"])
            + raw[place + 1 :]
        )
    return raw


def one(rng: random.Random) -> object:
    """Try one input and give it back."""
    choice = rng.random()
    if choice < 0.15:
        raw = mutate_bytes(rng, rng.choice(SAMPLES))
        for found in load_text(raw, "fuzz"):
            assert isinstance(found, Document | BadDocument)
            assert "\n" not in str(found) or isinstance(found, Document)
        return raw
    if choice < 0.3:
        raw = mutate_bytes(rng, json.dumps(rng.choice(GOOD)).encode())
        check(lambda: parse_payload(raw, ResourceKey(rng.choice(list(Kind)), "x")))
        return raw
    obj: Any = copy.deepcopy(rng.choice(GOOD))
    for _ in range(rng.randrange(1, 4)):
        obj = mutate(rng, obj)
    check(lambda: parse_resource(obj))
    spec = obj.get("spec") if isinstance(obj, dict) else None
    if isinstance(spec, dict):
        resolve([SettingsSource("fuzz", spec, local=False)])
    return obj


def check(parse: Any) -> None:
    try:
        resource = parse()
    except InvalidResource as error:
        assert error.reason, error
        assert "\n" not in str(error), error
        return
    if isinstance(resource, WorkloadEndpoint):
        assert all(net.is_host for net in resource.addresses)
        assert 1 <= len(resource.interface) <= 15
    elif resource is not None and not isinstance(resource, Absent):
        assert resource.key.name


def main(count: int, seed: int) -> None:
    started = time.monotonic()
    for number in range(count):
        rng = random.Random(seed * 1_000_003 + number)
        try:
            one(rng)
        except Exception:
            print(f"input {number} of seed {seed} broke a parser", file=sys.stderr)
            raise
    print(f"{count} inputs, seed {seed}: no parser broke, {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000, int(sys.argv[2]) if len(sys.argv) > 2 else 1)
