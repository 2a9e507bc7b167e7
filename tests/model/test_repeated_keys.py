"""A key that stands twice in one object is refused, in YAML, in JSON of a file and in JSON off the wire."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felixpy.model.documents import BadDocument, Document, load_text
from felixpy.model.invalid import InvalidResource
from felixpy.model.parse import parse_payload
from felixpy.model.repeated import repeated_key
from felixpy.model.resources import Kind, ResourceKey, WorkloadEndpoint
from felixpy.sources.directory import read

POOL = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: p}\nspec: {cidr: 10.0.0.0/16}\n"


class Pairs(list[tuple[str, object]]):
    """An object as its pairs, some of which may have one name."""


names = st.text(st.sampled_from('ab:,"{}\\ \u00e9'), max_size=4)
values = st.recursive(
    st.none() | names | st.integers(0, 9),
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(names, inner), max_size=4).map(Pairs),
    max_leaves=12,
)


def written(value: object, spaces: list[str]) -> str:
    if isinstance(value, Pairs):
        pairs = (f"{json.dumps(key)}{spaces[0]}:{spaces[1]}{written(one, spaces)}" for key, one in value)
        return "{" + ",".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(one, spaces) for one in value) + "]"
    return json.dumps(value)


def repeats(value: object) -> bool:
    if isinstance(value, Pairs):
        keys = [key for key, _ in value]
        return len(set(keys)) < len(keys) or any(repeats(one) for _, one in value)
    return isinstance(value, list) and any(map(repeats, value))


@given(values, st.lists(st.sampled_from(["", " ", "\n"]), min_size=2, max_size=2))
def test_a_repeated_key_is_found_in_any_json_and_no_other_is(value: object, spaces: list[str]) -> None:
    assert (repeated_key(written(value, spaces).encode()) is not None) == repeats(value)


@pytest.mark.parametrize(
    "text",
    [
        POOL + "spec: {cidr: 10.1.0.0/16}\n",
        POOL + POOL,
        POOL.replace("{cidr: 10.0.0.0/16}", "{cidr: 10.0.0.0/16, cidr: 10.1.0.0/16}"),
        POOL.replace("{cidr: 10.0.0.0/16}", '{"cidr": 10.0.0.0/16, cidr: 10.1.0.0/16}'),
        '{"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": "p"},\n'
        '"spec": {"cidr": "10.0.0.0/16", "cidr": "10.1.0.0/16"}}',
    ],
    ids=["one key", "no separator", "flow", "quoted", "JSON"],
)
def test_a_file_with_a_key_twice_is_unread_and_says_where(text: str) -> None:
    good = POOL.replace("name: p", "name: good")
    found = list(load_text(f"{good}---\n{text}".encode(), "x.yaml"))
    assert isinstance(found[0], Document)
    (bad,) = found[1:]
    assert isinstance(bad, BadDocument) and bad.unread
    assert "line " in bad.reason and "is there already" in bad.reason
    lines = f"{good}---\n{text}".splitlines()
    number = int(bad.reason.split("line ")[1].split(":")[0])
    key = "apiVersion" if text == POOL + POOL else "spec" if text.startswith(POOL) else "cidr"
    assert key in lines[number - 1] and repr(key) in bad.reason


def test_a_merged_mapping_may_be_written_over() -> None:
    text = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: p}\nspec:\n  <<: {cidr: 10.0.0.0/16}\n"
    (document,) = load_text(f"{text}  cidr: 10.1.0.0/16\n".encode(), "x.yaml")
    assert isinstance(document, Document) and document.object["spec"]["cidr"] == "10.1.0.0/16"


def test_what_the_directory_knew_of_a_file_stays(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(POOL + POOL)
    reading = read(tmp_path)
    assert not reading.content
    assert str(tmp_path / "a.yaml") in reading.unreadable


@pytest.mark.parametrize("place", ["spec", "metadata", "top"])
def test_a_payload_with_a_key_twice_is_invalid(place: str) -> None:
    metadata, spec = '"name":"w","namespace":"d"', '"node":"n1","interfaceName":"cali1","ipNetworks":["10.0.0.1"]'
    if place == "spec":
        spec += ',"ipNetworks":["10.0.0.2"]'
    if place == "metadata":
        metadata += ',"name":"w"'
    rest = ',"kind":"WorkloadEndpoint"' if place == "top" else ""
    head = f'"apiVersion":"projectcalico.org/v3","kind":"WorkloadEndpoint"{rest}'
    payload = f'{{{head},"metadata":{{{metadata}}},"spec":{{{spec}}}}}'.encode()
    with pytest.raises(InvalidResource, match="twice in one object"):
        parse_payload(payload, ResourceKey(Kind.WORKLOAD_ENDPOINT, "w", "d"))


def test_what_looks_like_a_number_to_base_60_is_text() -> None:
    spec = "{node: n1, interfaceName: cali1, mac: 52:54:00:12:34:56, ipNetworks: [1:2:3:4:5:6:7:8, 1:20:30.5]}"
    text = f"apiVersion: projectcalico.org/v3\nkind: WorkloadEndpoint\nmetadata: {{name: w}}\nspec: {spec}\n"
    (document,) = load_text(text.replace(", 1:20:30.5", "").encode(), "x.yaml")
    assert isinstance(document, Document) and isinstance(document.resource, WorkloadEndpoint)
    assert document.resource.mac == bytes.fromhex("525400123456")
    assert [str(net) for net in document.resource.addresses] == ["1:2:3:4:5:6:7:8/128"]
    (other,) = load_text(text.encode(), "x.yaml")
    assert isinstance(other, BadDocument) and "'1:20:30.5'" in other.reason


def test_numbers_are_numbers_still() -> None:
    text = POOL.replace("{cidr: 10.0.0.0/16}", "{cidr: 10.0.0.0/16, blockSize: 0x1a}")
    (document,) = load_text(text.encode(), "x.yaml")
    assert isinstance(document, Document) and document.object["spec"]["blockSize"] == 26


def test_manifests_in_capitals_are_read(tmp_path: Path) -> None:
    (tmp_path / "A.YAML").write_text(POOL)
    assert read(tmp_path).content


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (r'{"a": 1, "a": 2, "b": "\u0022:"}', "a"),
        (r'{"a": 1, "a": 2, "b": "\"\u003a"}', "a"),
        ('{"a" :1, "a":2}', "a"),
        (r'{"a": "\":", "b": {"a": 1}}', None),
        ('{"a": 123456789012345678901234567890, "a": 1e300}', "a"),
        ('{"a": 123456789012345678901234567890, "b": 1e300}', None),
    ],
)
def test_what_looks_like_the_end_of_a_name_hides_no_repeated_key(text: str, key: str | None) -> None:
    assert repeated_key(text.encode()) == key
