"""The manifests against the schemas of Kubernetes, the oldest and the newest version that we say to run on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from felixpy import __version__
from felixpy.config import Settings, load_environment, resolve
from felixpy.kubernetes.kinds import KINDS
from felixpy.node.pools import default_pools

FOLDER = Path(__file__).resolve().parents[2] / "config" / "kubernetes"
BASE = FOLDER / "base"
WITHOUT_SCHEMA = {"kustomization.yaml", "podmonitor.yaml", "own-ports.yaml"}
"""Not of Kubernetes itself; ``tests/behaviour/test_own_ports.py`` takes the last one."""
FILES = sorted(path for path in FOLDER.rglob("*.yaml") if path.name not in WITHOUT_SCHEMA)


def objects(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def daemon_set() -> Any:
    return next(each for each in objects(BASE / "felixpy.yaml") if each["kind"] == "DaemonSet")["spec"]["template"][
        "spec"
    ]


@pytest.mark.parametrize("version", ["1.28", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_manifests_follow_the_schema(path: Path, version: str) -> None:
    for each in objects(path):
        kubernetes_validate.validate(each, version, strict=True)


def test_the_schema_check_finds_a_wrong_field() -> None:
    wrong = objects(BASE / "felixpy.yaml")[0] | {"specs": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.28", strict=True)


def test_kustomizations_name_what_is_there() -> None:
    """No schema check: Kubernetes has none of kustomize. That files exist, and that a patch meets an object."""
    identities = [[each["kind"], each["metadata"]["name"]] for path in BASE.glob("*.yaml") for each in identified(path)]
    for path in FOLDER.rglob("kustomization.yaml"):
        kustomization = yaml.safe_load(path.read_text())
        assert [name for name in kustomization["resources"] if not (path.parent / name).exists()] == []
        assert all(image["newTag"] == __version__ for image in kustomization.get("images", ()))
        for patch in kustomization.get("patches", ()):
            if target := patch.get("target"):
                assert [one for one in identities if one[0] == target["kind"] and target.get("name", one[1]) == one[1]]
                continue
            target = yaml.safe_load(patch["patch"])
            assert [target["kind"], target["metadata"]["name"]] in identities


def test_where_a_kustomization_brings_pods_of_its_own_they_have_the_version() -> None:
    """What the base says of images holds for the base's pods alone: an image without tag is one that nobody has."""
    for path in FOLDER.rglob("kustomization.yaml"):
        kustomization = yaml.safe_load(path.read_text())
        own = [path.parent / name for name in kustomization["resources"] if name.endswith(".yaml")]
        named = {image["name"] for image in kustomization.get("images", ())}
        assert ("felixpy" in named) == any("image: felixpy\n" in each.read_text() for each in (path, *own)), path


def identified(path: Path) -> list[dict[str, Any]]:
    return [each for each in objects(path) if "metadata" in each]


def test_no_kustomization_names_a_folder_that_holds_it() -> None:
    """kubectl calls that a cycle."""
    for path in FOLDER.rglob("kustomization.yaml"):
        for name in yaml.safe_load(path.read_text())["resources"]:
            assert (path.parent / name).resolve() not in path.parents


def test_the_overlay_to_try_needs_no_dns_of_the_cluster() -> None:
    """CoreDNS is a pod, and has no network before the agents have read from the broker."""
    overlay = yaml.safe_load((FOLDER / "try" / "kustomization.yaml").read_text())
    (patch,) = (yaml.safe_load(each["patch"])["spec"]["template"]["spec"] for each in overlay["patches"])
    broker = (FOLDER / "try" / "mosquitto.yaml").read_text()
    (service,) = (each["metadata"]["name"] for each in yaml.safe_load_all(broker) if each["kind"] == "Service")
    assert (patch["enableServiceLinks"], patch["dnsPolicy"]) == (True, "Default")
    (variable,) = patch["containers"][0]["env"]
    assert variable == {"name": "FELIX_MQTTHOST", "value": f"$({service.upper()}_SERVICE_HOST)"}


def test_settings_of_the_config_map_are_good() -> None:
    data = next(each for each in objects(BASE / "felixpy.yaml") if each["kind"] == "ConfigMap")["data"]
    settings, problems = resolve([load_environment(data)])
    assert problems == ()
    assert settings.health_enabled
    probes = daemon_set()["containers"][0]
    for probe in (probes["livenessProbe"], probes["readinessProbe"]):
        assert probe["httpGet"]["port"] == Settings().health_port


@pytest.mark.parametrize("name", ["vxlan", "ipip", "wireguard"])
def test_an_overlay_of_settings_says_what_it_is_named_after(name: str) -> None:
    (patch,) = yaml.safe_load((FOLDER / name / "kustomization.yaml").read_text())["patches"]
    data = yaml.safe_load(patch["patch"])["data"]
    settings, problems = resolve([load_environment(data)])
    assert problems == ()
    wireguard = name == "wireguard"
    assert (settings.wireguard_enabled, settings.wireguard_enabled_v6) == (wireguard, wireguard)
    pools = [one["spec"] for one in default_pools(data, random_bytes=b"12345")]
    modes = [(spec["ipipMode"], spec["vxlanMode"]) for spec in pools]
    through = {"vxlan": [("Never", "Always")] * 2, "ipip": [("Always", "Never"), ("Never", "Never")]}
    assert modes == through.get(name, [("Never", "Never")] * 2)


def test_the_agent_is_not_privileged() -> None:
    container = daemon_set()["containers"][0]["securityContext"]
    assert container["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW", "SYS_ADMIN"]}
    assert not container["privileged"]
    assert not container["allowPrivilegeEscalation"]


def test_it_may_read_every_kind_that_it_follows_and_write_little() -> None:
    rules = next(each for each in objects(BASE / "rbac.yaml") if each["kind"] == "ClusterRole")["rules"]
    may = {(g, name, v) for r in rules for g in r["apiGroups"] for name in r["resources"] for v in r["verbs"]}
    for verb in ("list", "watch"):
        assert {("", "pods", verb), ("", "nodes", verb)} <= may
        assert all(any((group.rpartition("/")[0], name, verb) in may for name in (kind.plural, "*")) for kind in KINDS
                   for group in kind.groups)  # fmt: skip
    writes = {(name, verb) for _, name, verb in may if verb not in ("get", "list", "watch")}
    calico = {"ippools", "ipamblocks", "blockaffinities", "ipamhandles"}
    assert {name for name, _ in writes} == {"nodes/status", "events", *calico}
    assert [verb for name, verb in writes if name == "events"] == ["create"]
