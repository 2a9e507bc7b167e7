"""Files and texts of manifests: isolation of mistakes, places in messages, conversion of Installation."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from felixpy.model.documents import BadDocument, Document, load_directory, load_file, load_text
from felixpy.model.expand import expand
from felixpy.model.invalid import InvalidResource
from felixpy.model.net import Net
from felixpy.model.parse import parse_resource
from felixpy.model.pool import overlapping_pools
from felixpy.model.resources import Encapsulation, IPPool, Kind, ResourceKey

SAMPLES = Path(__file__).parent / "samples"
POOL = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: %s}\nspec: {cidr: %s}\n"


def text_of(*documents: str) -> list[Document | BadDocument]:
    return list(load_text("---\n".join(documents).encode(), "x.yaml"))


def pool(name: str, cidr: str) -> IPPool:
    return IPPool(ResourceKey(Kind.IP_POOL, name), Net.parse(cidr), 26)


def test_the_operators_dual_stack_sample() -> None:
    found = list(load_file(SAMPLES / "installation-dual-stack.yaml"))
    resources = [document.resource for document in found if isinstance(document, Document)]
    assert resources == [
        IPPool(ResourceKey(Kind.IP_POOL, "default-ipv4-ippool"), Net.parse("10.48.0.0/21"), 26, nat_outgoing=True,
               encapsulation=Encapsulation.IPIP),
        IPPool(ResourceKey(Kind.IP_POOL, "default-ipv6-ippool"), Net.parse("2001::/64"), 122, nat_outgoing=True),
    ]  # fmt: skip


def test_the_operators_ipv6_only_sample() -> None:
    (found,) = load_file(SAMPLES / "installation-ipv6-only.yaml")
    assert isinstance(found, Document)
    expected = IPPool(ResourceKey(Kind.IP_POOL, "default-ipv6-ippool"), Net.parse("2001::/64"), 122, nat_outgoing=True)
    assert found.resource == expected
    assert found.field == "spec.calicoNetwork.ipPools[0]"


def test_one_mistake_leaves_the_rest_of_a_file_whole() -> None:
    told: list[str] = []
    found = list(load_file(SAMPLES / "mixed.yaml", told.append))
    assert [type(document).__name__ for document in found] == [
        "Document", "BadDocument", "Document", "BadDocument", "Document",
    ]  # fmt: skip
    pool, bad_pool, node, bad_workload, unknown = found
    assert isinstance(pool, Document)
    assert isinstance(node, Document)
    assert isinstance(unknown, Document)
    assert unknown.resource is None
    assert told == ["kind BGPFilter"]
    place = str(SAMPLES / "mixed.yaml")
    assert str(bad_pool) == (
        f"{place}, document 2: IPPool pods-v4 spec.cidr: '10.48.0.1/21' has host bits set; the network is 10.48.0.0/21"
    )
    assert str(bad_workload) == (
        f"{place}, document 3: WorkloadEndpoint default/node1-k8s-web-eth0 items[1].spec.ipv6Gateway: "
        "10.48.0.1 is not an IPv6 address"
    )


def test_a_syntax_error_is_told_with_its_line_and_stops_nothing() -> None:
    bad, good = text_of("a: b\n c: d\n", POOL % ("p", "10.0.0.0/16"))
    assert str(bad).startswith("x.yaml, document 1: is not YAML: line 2, column 3: ")
    assert isinstance(good, Document)
    good, bad = text_of(POOL % ("p", "10.0.0.0/16"), "a: [\n")
    assert str(bad).startswith("x.yaml, document 2: is not YAML: line 7, column 1: ")


@pytest.mark.parametrize(
    ("pools", "names"),
    [
        (["10.0.0.0/16"], ["default-ipv4-ippool"]),
        (["fd00::/48"], ["default-ipv6-ippool"]),
        (["10.0.0.0/16", "fd00:1::/48"], ["default-ipv4-ippool", "default-ipv6-ippool"]),
        (["10.0.0.0/16", "10.1.0.0/16"], ["10.0.0.0-16", "10.1.0.0-16"]),
        (["10.0.0.0/16", "10.1.0.0/16", "fd00:1::/48"],
         ["10.0.0.0-16", "10.1.0.0-16", "fd00.0001.0000.0000.0000.0000.0000.0000-48"]),
    ],
)  # fmt: skip
def test_pools_of_an_installation_have_the_operators_names_and_defaults(pools: list[str], names: list[str]) -> None:
    obj = {"apiVersion": "operator.tigera.io/v1", "kind": "Installation", "metadata": {"name": "default"},
           "spec": {"calicoNetwork": {"ipPools": [{"cidr": cidr} for cidr in pools]}}}  # fmt: skip
    found = [parse_resource(part) for part in expand(obj)]
    for resource, name, cidr in zip(found, names, pools, strict=True):
        assert isinstance(resource, IPPool)
        v4 = ":" not in cidr
        assert (resource.key.name, str(resource.cidr), resource.nat_outgoing) == (name, cidr, v4)
        assert resource.encapsulation is (Encapsulation.IPIP if v4 else Encapsulation.NONE)
        assert resource.block_size == (26 if v4 else 122)


def test_one_bad_pool_of_an_installation_leaves_the_others_whole() -> None:
    text = """
apiVersion: operator.tigera.io/v1
kind: Installation
spec:
  calicoNetwork:
    ipPools:
    - {cidr: 10.48.0.1/21}
    - {cidr: fd00::/48, encapsulation: IPIP}
    - {cidr: fd00::/48, natOutgoing: true}
    - {cidr: fd01::/48, blockSize: 26}
    - {cidr: fd02::/48, natOutgoing: Enabled, disableNewAllocations: true}
"""
    found = text_of(text)
    place = "spec.calicoNetwork.ipPools"
    fields = ["[0].cidr", "[1].encapsulation", "[2].natOutgoing", "[3].blockSize", "[4]"]
    assert [document.field for document in found] == [place + field for field in fields]
    last = found[-1]
    assert isinstance(last, Document)
    assert isinstance(last.resource, IPPool)
    assert last.resource.disabled


@pytest.mark.parametrize("spec", ["{}", "{calicoNetwork: null}", "{calicoNetwork: {ipPools: []}}", "{variant: Calico}"])
def test_an_installation_without_pools_is_nothing(spec: str) -> None:
    assert text_of(f"apiVersion: operator.tigera.io/v1\nkind: Installation\nspec: {spec}\n") == []


def test_items_of_a_typed_list_may_leave_out_what_the_list_says() -> None:
    (found,) = text_of(
        "apiVersion: projectcalico.org/v3\nkind: IPPoolList\n"
        "items: [{metadata: {name: p}, spec: {cidr: 10.0.0.0/16}}]\n"
    )
    assert isinstance(found, Document)
    assert found.resource == pool("p", "10.0.0.0/16")
    with pytest.raises(InvalidResource, match="must be a list"):
        list(expand({"apiVersion": "v1", "kind": "List", "items": {}}))


def test_json_works_as_object_and_as_array() -> None:
    (document,) = text_of(POOL % ("p", "10.0.0.0/16"))
    assert isinstance(document, Document)
    raw = msgspec.json.encode(document.object)
    assert [found.resource for found in load_text(raw, "x") if isinstance(found, Document)] == [document.resource]
    assert len(list(load_text(b"[" + raw + b",{}," + raw + b"]", "x"))) == 3
    assert isinstance(next(load_text(b"{kind: [}", "x")), BadDocument)


@pytest.mark.parametrize(
    "nothing", ["", "\n", "# only a comment", "---\n---\n", "%YAML 1.1\n---\n# c\n...\n", "\ufeff"]
)
def test_a_text_without_objects_gives_nothing(nothing: str) -> None:
    assert list(load_text(nothing.encode(), "x")) == []


@pytest.mark.parametrize(
    "name",
    ["2026-01-01", "2026-01-01T00:00:00Z", "123", "1.5", "true", "null", "~", "=", "<<", "0x10", "!!binary aGk="],
)
def test_names_that_yaml_does_not_read_as_text_do_not_crash(name: str) -> None:
    (found,) = text_of(POOL % (f"{name}", "10.0.0.0/16"))
    if name == "2026-01-01":
        assert isinstance(found, Document)
    else:
        assert isinstance(found, BadDocument)


def test_a_timestamp_of_yaml_is_text() -> None:
    (found,) = text_of(
        "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\n"
        "metadata: {name: default, creationTimestamp: 2026-01-01T00:00:00Z}\n"
    )
    assert isinstance(found, Document)
    assert getattr(found.resource, "created", None) == "2026-01-01T00:00:00Z"


ALIASES = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        "{a: " * 200_000,
        "- " * 200_000,
        "? " * 200_000,
        "x:\r" + "- " * 200_000,
        "\ufeff\ufeff" + "- " * 200_000,
        "\u2028" + "- " * 200_000,
        "\n".join(" " * i + "a:" for i in range(3000)),
        "a: &x [*x]",
        "&a [*a]",
        ALIASES,
        "!!python/object/apply:os.system [id]",
        "a: 1" + "0" * 5000,
        "a: 0x" + "f" * 5000,
        "a: !!int x",
        "? [a]\n: b",
        "1: 2",
        "a: \x00",
        "*a",
        "just text",
        "12",
    ],
)
def test_hostile_yaml_is_one_bad_document(text: str) -> None:
    found = list(load_text(text.encode(), "x"))
    assert len(found) == 1
    assert isinstance(found[0], BadDocument)
    assert "\n" not in str(found[0])
    assert len(str(found[0])) < 300


@given(st.binary(max_size=300) | st.text("[]{}:-?&*!|>'\"#%@,ab01 \n\r\t.", max_size=120).map(str.encode))
def test_any_text_gives_documents(raw: bytes) -> None:
    for found in load_text(raw, "x"):
        assert isinstance(found, Document | BadDocument)


def test_an_object_that_no_payload_could_carry_is_refused() -> None:
    labels = ",".join(f"l{i}: {'v' * 1000}" for i in range(1100))
    (found,) = text_of(f"apiVersion: projectcalico.org/v3\nkind: Node\nmetadata: {{name: n, labels: {{{labels}}}}}\n")
    assert isinstance(found, BadDocument)
    assert "more than the 1048576" in found.reason
    assert found.key == ResourceKey(Kind.NODE, "n")


def test_a_directory_is_read_by_name_and_not_below(tmp_path: Path) -> None:
    for name in ("b.yml", "a.yaml", "c.json", ".hidden.yaml", "note.txt"):
        (tmp_path / name).write_text(POOL % (name.strip(".").split(".")[0], "10.0.0.0/16"))
    (tmp_path / "sub.yaml").mkdir()
    (tmp_path / "d.yaml").symlink_to(tmp_path / "nowhere")
    found = list(load_directory(tmp_path))
    assert [Path(document.origin).name for document in found] == ["a.yaml", "b.yml", "c.json", "d.yaml"]
    assert str(found[-1]) == f"{tmp_path}/d.yaml: the file cannot be read: No such file or directory"
    (missing,) = load_directory(tmp_path / "missing")
    assert "the directory cannot be read" in str(missing)


def test_a_pipe_in_the_directory_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yaml")
    (found,) = load_directory(tmp_path)
    assert str(found) == f"{tmp_path}/a.yaml: is not a regular file"


def test_overlapping_pools_are_found_in_any_order() -> None:
    pools = [pool("a", "10.0.0.0/8"), pool("b", "10.1.0.0/16"), pool("c", "10.1.2.0/24"), pool("d", "11.0.0.0/8"),
             pool("e", "fd00::/8"), pool("f", "10.2.0.0/16")]  # fmt: skip
    pairs = {("a", "b"), ("b", "c"), ("a", "f")}
    for order in (pools, pools[::-1]):
        found = overlapping_pools(order)
        assert {(problem.first.key.name, problem.second.key.name) for problem in found} == pairs
    assert "IPPool a (10.0.0.0/8) overlaps IPPool b (10.1.0.0/16)" in str(overlapping_pools(pools)[0])
    assert overlapping_pools([pool("x", "10.0.0.0/16"), pool("y", "10.0.0.0/16")])
