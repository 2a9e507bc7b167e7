"""The Helm chart: its values against its schema, its files, and, where there is a helm, what it makes of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from felixpy import __version__

CONFIG = Path(__file__).resolve().parents[2] / "config"
CHART = CONFIG / "helm" / "felixpy"
BASE = CONFIG / "kubernetes" / "base"
OVERLAYS = ("beside-calico", "hub", "ipip", "mqtt", "vxlan", "wireguard")
HELM = os.environ.get("FELIXPY_HELM") or shutil.which("helm")
KUBECTL = shutil.which("kubectl")
"""Without one nothing that needs it is collected."""


def objects(text: str) -> dict[tuple[str, str], Any]:
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(text) if one}


def base() -> dict[tuple[str, str], Any]:
    files = sorted(path for path in BASE.glob("*.yaml") if path.name != "kustomization.yaml")
    return objects("\n---\n".join(path.read_text() for path in files))


def test_values_follow_their_schema_and_wrong_ones_do_not() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    jsonschema.validate(values, schema)
    for wrong in (
        {"imagee": {}},
        {"overlay": "try"},
        {"settings": {"felix": "x"}},
        {"podMonitor": {"interval": "often"}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**values, **wrong}, schema)


def test_the_chart_has_the_version_of_the_package_and_the_objects_of_the_base() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__
    linked = {path.name: path.resolve() for path in (CHART / "files").glob("*.yaml")}
    shipped = {path.name: path for path in BASE.glob("*.yaml") if path.name != "kustomization.yaml"}
    assert linked == shipped | {"hub.yaml": CONFIG / "kubernetes" / "hub" / "hub.yaml"}
    overlays = {path.stem: path.resolve() for path in (CHART / "files" / "overlays").iterdir()}
    assert overlays == {name: CONFIG / "kubernetes" / name / "kustomization.yaml" for name in OVERLAYS}


def rendered(*options: str) -> dict[tuple[str, str], Any]:
    assert HELM
    command = (HELM, "template", "felixpy", str(CHART), "--kube-version", "1.36", "--namespace", "felixpy", *options)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return objects(done.stdout)


if HELM:

    def test_helm_lint_has_nothing_to_say() -> None:
        done = subprocess.run([str(HELM), "lint", "--strict", str(CHART)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout

    def test_the_chart_makes_the_objects_of_the_base() -> None:
        made, wanted = rendered(), base()
        del wanted["Namespace", "felixpy"]
        template = made["DaemonSet", "felixpy"]["spec"]["template"]
        assert template["metadata"]["annotations"].pop("checksum/settings")
        for container in (*template["spec"]["initContainers"], *template["spec"]["containers"]):
            assert container.pop("imagePullPolicy") == "IfNotPresent"
            assert container.pop("image") == f"felixpy:{__version__}"
        theirs = wanted["DaemonSet", "felixpy"]["spec"]["template"]["spec"]
        for container in (*theirs["initContainers"], *theirs["containers"]):
            del container["image"]
        assert made == wanted

    def test_values_change_them() -> None:
        made = rendered(
            "--set", "settings.FELIX_IPAMTYPE=Calico,settings.FELIX_HEALTHENABLED=null,image.tag=9a,crds.install=false",
            "--set", "podMonitor.enabled=true,resources.requests.cpu=1", "--namespace", "other",
        )  # fmt: skip
        data = made["ConfigMap", "felixpy"]["data"]
        assert data["FELIX_IPAMTYPE"] == "Calico"
        assert "FELIX_HEALTHENABLED" not in data
        pod = made["DaemonSet", "felixpy"]["spec"]["template"]["spec"]
        assert {one["image"] for one in (*pod["initContainers"], *pod["containers"])} == {"felixpy:9a"}
        assert pod["containers"][0]["resources"] == {"requests": {"cpu": 1}}
        assert not any(kind == "CustomResourceDefinition" for kind, _ in made)
        assert ("PodMonitor", "felixpy") in made
        assert made["ClusterRoleBinding", "felixpy"]["subjects"][0]["namespace"] == "other"
        assert made["DaemonSet", "felixpy"]["metadata"]["namespace"] == "other"

    def test_without_crds_there_are_none_and_beside_calico_neither() -> None:
        for options in (("--set", "crds.install=false"), ("--set", "overlay=beside-calico")):
            assert not any(kind == "CustomResourceDefinition" for kind, _ in rendered(*options))

    def test_values_change_an_overlay() -> None:
        made = rendered("--set", "overlay=hub,settings.FELIX_MQTTHOST=192.0.2.9,image.tag=9a", "--namespace", "other")
        assert made["ConfigMap", "felixpy"]["data"]["FELIX_MQTTHOST"] == "192.0.2.9"
        hub = made["Deployment", "felixpy-hub"]
        assert hub["spec"]["template"]["spec"]["containers"][0]["image"] == "felixpy:9a"
        namespaces = {one["metadata"].get("namespace") for one in made.values() if one["kind"] != "ClusterRole"}
        assert namespaces <= {"other", "kube-system", None}

    def test_a_wrong_value_is_refused() -> None:
        command = (str(HELM), "template", "felixpy", str(CHART), "--kube-version", "1.36", "--set", "imagee.tag=1")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "imagee" in done.stderr


def comparable(made: dict[tuple[str, str], Any]) -> dict[tuple[str, str], Any]:
    """Without what the chart adds to pods; lists that have a key in its order."""
    kept = {key: one for key, one in made.items() if key[0] != "Namespace"}
    for one in kept.values():
        if one["kind"] not in ("DaemonSet", "Deployment"):
            continue
        template = one["spec"]["template"]
        template["metadata"]["annotations"].pop("checksum/settings", None)
        for name in ("initContainers", "containers"):
            for container in template["spec"].get(name, ()):
                container.pop("imagePullPolicy", None)
                del container["image"]
                container.get("volumeMounts", []).sort(key=lambda mount: mount["mountPath"])
        template["spec"].get("volumes", []).sort(key=lambda volume: volume["name"])
    return kept


if HELM and KUBECTL:

    @pytest.mark.parametrize("name", OVERLAYS)
    def test_an_overlay_makes_what_kustomize_makes_of_it(name: str) -> None:
        command = (str(KUBECTL), "kustomize", str(CONFIG / "kubernetes" / name))
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert comparable(rendered("--set", f"overlay={name}")) == comparable(objects(done.stdout))
