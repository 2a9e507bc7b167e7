"""The manifests against the schemas of Kubernetes, the oldest and the newest version that we say to run on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from felixpy import __version__
from felixpy.config import Settings, load_environment, resolve

FOLDER = Path(__file__).resolve().parents[2] / "config" / "kubernetes"
FILES = sorted(path for path in FOLDER.rglob("*.yaml") if path.name != "kustomization.yaml")


def objects(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def daemon_set() -> Any:
    return next(each for each in objects(FOLDER / "felixpy.yaml") if each["kind"] == "DaemonSet")["spec"]["template"][
        "spec"
    ]


@pytest.mark.parametrize("version", ["1.28", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_manifests_follow_the_schema(path: Path, version: str) -> None:
    for each in objects(path):
        kubernetes_validate.validate(each, version, strict=True)


def test_the_schema_check_finds_a_wrong_field() -> None:
    wrong = objects(FOLDER / "felixpy.yaml")[0] | {"specs": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.28", strict=True)


def test_kustomizations_name_what_is_there() -> None:
    """No schema check: Kubernetes has none of kustomize. That files exist, and that a patch meets an object."""
    for path in FOLDER.rglob("kustomization.yaml"):
        kustomization = yaml.safe_load(path.read_text())
        assert [name for name in kustomization["resources"] if not (path.parent / name).exists()] == []
        assert all(image["newTag"] == __version__ for image in kustomization.get("images", ()))
        for patch in kustomization.get("patches", ()):
            target = yaml.safe_load(patch["patch"])
            identity = [target["kind"], target["metadata"]]
            assert identity in [[each["kind"], each["metadata"]] for each in objects(FOLDER / "felixpy.yaml")]


def test_settings_of_the_config_map_are_good() -> None:
    data = next(each for each in objects(FOLDER / "felixpy.yaml") if each["kind"] == "ConfigMap")["data"]
    settings, problems = resolve([load_environment(data)])
    assert problems == ()
    assert settings.health_enabled
    probes = daemon_set()["containers"][0]
    for probe in (probes["livenessProbe"], probes["readinessProbe"]):
        assert probe["httpGet"]["port"] == Settings().health_port


def test_the_agent_is_not_privileged() -> None:
    container = daemon_set()["containers"][0]["securityContext"]
    assert container["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]}
    assert not container["privileged"]
    assert not container["allowPrivilegeEscalation"]
