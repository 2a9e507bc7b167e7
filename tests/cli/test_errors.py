"""Errors are one sentence with what, where and what to do next; help shows how it is meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.agent.bench import GOOD, NFTABLES, POOLS, dump
from tests.broker import running
from tests.cli.command import Done, at, felixpy, sentence

COMMANDS = ("run", "plan", "show", "cleanup", "apply", "delete", "get", "demo", "version", "check", "explain",
            "status", "diag")  # fmt: skip
WITHOUT_CAPABILITIES = ("setpriv", "--inh-caps=-all", "--bounding-set=-all")


def test_version() -> None:
    done = felixpy("version")
    assert done.code == 0
    assert done.out.startswith("felixpy 0.")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str) -> None:
    done = felixpy(command, "--help")
    assert done.code == 0
    assert f"felixpy {command}" in done.out.replace("sudo ", "")
    assert "Examples:" in done.out or command == "version"


def test_without_a_command_the_commands_are_listed() -> None:
    done = felixpy()
    assert all(command in done.out + done.err for command in COMMANDS)
    unknown = felixpy("frobnicate")
    assert unknown.code == 64
    assert "frobnicate" in unknown.err


@pytest.mark.parametrize(
    ("arguments", "env", "words"),
    [
        (("apply", "-f", "x.yaml"), {}, ("no MQTT broker is named", "FELIX_MQTTHOST")),
        (("get",), {}, ("no MQTT broker is named", "FELIX_MQTTHOST")),
        (("delete", "-f", "x.yaml"), {"FELIX_MQTTHOST": "localhost"}, ("x.yaml", "no such file or directory")),
        (
            ("get",),
            {"FELIX_MQTTHOST": "127.0.0.1", "FELIX_MQTTPORT": "1"},
            ("127.0.0.1:1 refuses connections", "FELIX_MQTTPORT"),
        ),
        (
            ("run",),
            {"FELIX_ROUTEREFRESHINTERVAL": "soon"},
            ("RouteRefreshInterval", "environment", "soon", "expected"),
        ),
        (("plan",), {"FELIX_INTERFACEPREFIX": "much-too-long-prefix"}, ("InterfacePrefix", "environment")),
        (("plan", "--config", "nowhere.toml"), {}, ("nowhere.toml", "--config")),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(
    arguments: tuple[str, ...], env: dict[str, str], words: tuple[str, ...]
) -> None:
    said = sentence(felixpy(*arguments, env=env))
    assert [word for word in words if word not in said] == [], said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("get", "Pizza"), ("Pizza", "IPPool")),
        (("get", "-o", "xml"), ("xml", "yaml, json, wide or name")),
        (("explain", "foo", "bar"), ("'foo' is no IPv4 or IPv6 address",)),
        (("explain", "10.0.0.1", "fd00::1"), ("different families",)),
        (("explain", "10.0.0.1", "10.0.0.2", "²"), ("is no protocol",)),
        (("explain", "10.0.0.1", "10.0.0.2", "1" * 5000), ("is no protocol",)),
        (("explain", "10.0.0.1", "10.0.0.2", "tcp", "0"), ("port 0 is out of range",)),
    ],
)
def test_wrong_usage_is_one_sentence_and_ends_with_64(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    done = felixpy(*arguments, env={"FELIX_MQTTHOST": "localhost"})
    assert done.code == 64, done
    assert done.err.startswith("felixpy: ") and done.err.count("\n") == 1, done
    assert [word for word in words if word not in done.err] == []


@pytest.mark.parametrize(
    "arguments", [("apply", "-f", ""), ("delete", "-f", ""), ("get", "-f", ""), ("plan", "--config", "")]
)
def test_an_empty_path_is_wrong_usage_and_not_this_folder(arguments: tuple[str, ...]) -> None:
    done = felixpy(*arguments, env={"FELIX_MQTTHOST": "127.0.0.1", "FELIX_MQTTPORT": "1"})
    assert done.code == 64
    assert "the path is empty" in done.err


def test_a_settings_file_that_is_not_toml_or_has_a_bad_value(tmp_path: Path) -> None:
    file = tmp_path / "felixpy.toml"
    file.write_text("[felix\n")
    assert f"{file}: the settings file is not TOML" in sentence(felixpy("plan", "--config", str(file)))
    file.write_text("IPv4NormalRoutePriority = -5\n")
    said = sentence(felixpy("plan", "--config", str(file)))
    assert f"setting IPv4NormalRoutePriority ({file}): " in said
    assert "-5" in said


def with_host_name(name: str, *arguments: str, **env: str) -> Done:
    script = ("unshare", "--uts", "sh", "-c", 'echo "$0" >/proc/sys/kernel/hostname && exec "$@"', name)
    return felixpy(*arguments, env={"NODENAME": "", **env}, before=script)


def test_a_host_name_with_capitals_is_the_name_that_the_resources_have(node: None, tmp_path: Path) -> None:
    (tmp_path / "all.json").write_text(json.dumps([*POOLS, {**GOOD, "spec": {**GOOD["spec"], "node": "node-a"}}]))
    env = {"FELIX_RESOURCEDIRECTORY": str(tmp_path), **NFTABLES}
    assert "10.48.0.1" in with_host_name("Node-A", "show", "routes", **env).out


@pytest.mark.parametrize("command", ["run", "plan", "show", "check"])
def test_a_host_name_that_no_node_can_have_is_an_error_where_it_is_needed(command: str, tmp_path: Path) -> None:
    done = with_host_name("we_ird", command, FELIX_RESOURCEDIRECTORY=str(tmp_path))
    assert "the host name cannot be this node's name: 'we_ird' is not a valid name" in done.err
    assert "set NODENAME, or FelixHostname" in done.err
    assert done.err.count("\n") == 1 and done.code == (2 if command == "check" else 1)


def test_commands_that_need_no_name_take_every_host_name(node: None) -> None:
    assert "no agent answers" in sentence(with_host_name("we_ird", "status"))
    assert with_host_name("we_ird", "cleanup").code == 0


def test_a_plain_user_publishes_without_the_file_that_is_for_root(node: None, tmp_path: Path) -> None:
    """As ``make install`` leaves it: felixpy.toml is readable by root only."""
    script = (
        "unshare", "--mount", "sh", "-c",
        "mkdir -p /etc/felixpy && mount -t tmpfs none /etc/felixpy && echo 'MQTTPort = 1' >/etc/felixpy/felixpy.toml"
        ' && chmod 600 /etc/felixpy/felixpy.toml && exec setpriv --bounding-set=-dac_override,-dac_read_search'
        ' --inh-caps=-dac_override,-dac_read_search --reuid 65534 --clear-groups "$0" "$@"',
    )  # fmt: skip
    env = {"FELIX_MQTTHOST": "127.0.0.1", "FELIX_MQTTPORT": "2", "HOME": "/"}
    first, second = felixpy("get", env=env, before=script).err.splitlines()
    assert "/etc/felixpy/felixpy.toml: the settings file cannot be read: Permission denied; run it with sudo" in first
    assert "going on without it" in first
    assert "127.0.0.1:2 refuses connections" in second
    said = felixpy("plan", env=env, before=script)
    assert said.code == 1 and said.err.count("\n") == 1 and "run it with sudo" in said.err


def test_a_wrong_password_is_named_but_not_shown(network: None, tmp_path: Path) -> None:
    (tmp_path / "passwords").touch()
    with running(tmp_path, ("allow_anonymous false", f"password_file {tmp_path}/passwords")) as broker:
        said = sentence(felixpy("get", env=at(broker, FELIX_MQTTUSERNAME="eve", FELIX_MQTTPASSWORD="s3cret")))
    assert "refuses user 'eve' (not authorised)" in said
    assert "FELIX_MQTTPASSWORD" in said
    assert "s3cret" not in said


def test_a_bad_document_is_named_by_file_number_and_field(tmp_path: Path) -> None:
    file = tmp_path / "pools.yaml"
    good = {"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": "a"}}
    bad = {**good, "metadata": {"name": "b"}, "spec": {"cidr": "10.0.0.1/8"}}
    file.write_text("\n---\n".join(json.dumps(each) for each in ({**good, "spec": {"cidr": "10.0.0.0/8"}}, bad)))
    said = sentence(felixpy("apply", "-f", str(file), env={"FELIX_MQTTHOST": "127.0.0.1", "FELIX_MQTTPORT": "1"}))
    assert f"{file}, document 2: IPPool b spec.cidr: " in said
    assert "nothing was sent" in said
    file.write_text("a: [1\n")
    said = sentence(felixpy("apply", "-f", str(file), env={"FELIX_MQTTHOST": "127.0.0.1", "FELIX_MQTTPORT": "1"}))
    assert f"{file}, document 1: is not YAML: line " in said


@pytest.mark.parametrize("command", ["run", "plan", "cleanup"])
def test_without_capabilities_the_kernel_commands_ask_for_root(node: None, tmp_path: Path, command: str) -> None:
    folder = tmp_path / "resources"
    folder.mkdir()
    before = dump()
    done = felixpy(command, env={"FELIX_RESOURCEDIRECTORY": str(folder)}, before=WITHOUT_CAPABILITIES)
    assert done.code == 1
    assert "Traceback" not in done.err
    last = done.err.splitlines()[-1]
    assert last == "felixpy: Operation not permitted: felixpy needs root or CAP_NET_ADMIN; run it with sudo"
    assert dump() == before


def test_an_unreadable_directory_is_named(node: None, tmp_path: Path) -> None:
    folder = tmp_path / "resources"
    said = sentence(felixpy("plan", "--timeout", "2", env={"FELIX_RESOURCEDIRECTORY": str(folder)}))
    assert f"the resource directory {folder} does not exist; create it" in said
    folder.write_text("a file")
    assert str(folder) in sentence(felixpy("plan", "--timeout", "2", env={"FELIX_RESOURCEDIRECTORY": str(folder)}))
    folder.unlink()
    folder.mkdir()
    (folder / "a.yaml").symlink_to(folder / "gone.yaml")
    said = sentence(felixpy("plan", "--timeout", "2", env={"FELIX_RESOURCEDIRECTORY": str(folder)}))
    assert f"{folder}/a.yaml: the file cannot be read" in said
