"""status and diag beside a running agent and without one: the same truth, no secret, nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from felixpy.demo.agent import FELIXPY, environment
from felixpy.demo.patience import Patience
from felixpy.demo.resources import felix_configuration
from felixpy.observe.endpoint_folders import MARK
from felixpy.observe.log_limit import BURST
from tests.agent.bench import GOOD, NFTABLES, POOLS, dump, endpoint
from tests.cli.command import HEALTH, agent, answers, felixpy, sentence
from tests.kernel import ip


def resources(folder: Path, *documents: Any) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    (folder / "all.json").write_text(json.dumps([*POOLS, *documents]))
    return {**NFTABLES, "FELIX_RESOURCEDIRECTORY": str(folder), "FELIX_ENDPOINTSTATUSPATHPREFIX": str(folder / "cni")}


def contents(path: Path) -> dict[str, str]:
    with tarfile.open(path) as file:
        return {
            name.split("/", 1)[1]: found.read().decode()
            for name in file.getnames()
            if (found := file.extractfile(name)) is not None
        }


def test_status_says_what_is_and_what_is_degraded(node: None, tmp_path: Path) -> None:
    env = resources(tmp_path / "r", endpoint("n1-k8s-good-eth0", 1))
    files = tmp_path / "r" / "cni" / "endpoint-status"
    with agent(env, tmp_path / "log"):
        done = felixpy("status", env=env)
        assert (done.code, done.err) == (0, ""), done
        assert "stream      in-sync" in done.out
        assert "IPv6        ready" in done.out
        said = felixpy("status", "--json", env=env).json
        assert (said["state"], said["degraded"], said["endpoints"]) == ("in-sync", [], 1)
        assert said["tables"]["routes"]["wanted"] == said["tables"]["routes"]["kernel"] == 2
        assert {path.name for path in files.iterdir()} == {MARK, "k8s default%2Fgood eth0"}
        (tmp_path / "r" / "all.json").write_text(json.dumps([*POOLS, {**GOOD, "spec": {"node": "n1"}}]))
        patience = Patience(30)
        while not (said := felixpy("status", "--json", env=env).json)["problems"]:
            assert not patience.over(), said
        assert "is missing" in said["problems"][0]
        assert "is missing" in said["failures"][-1]["reason"]
        assert [path.name for path in files.iterdir()] == [MARK]
    assert "no agent answers at /run/felixpy/felixpy.sock" in sentence(felixpy("status", env=env))


def test_status_says_that_a_page_cannot_be_served(node: None, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    env = resources(folder, GOOD)
    with agent(env, tmp_path / "log"), socket.create_server(("", 9091), family=socket.AF_INET):
        resources(folder, GOOD, felix_configuration("default", prometheusMetricsEnabled=True))
        patience = Patience(30)
        while not (done := felixpy("status", env=env)).code:
            assert not patience.over(), done
        assert done.code == 2
        assert "degraded    metrics are not served: cannot listen on * port 9091: Address already in use" in done.out
        assert answers(f"{HEALTH}/liveness")


def test_status_tells_of_an_endpoint_whose_file_has_a_name_that_is_too_long(node: None, tmp_path: Path) -> None:
    folder, name = tmp_path / "r", f"n1-k8s-{'a' * 240}-eth0"
    env = resources(folder, endpoint(name, 1))
    with agent(env, tmp_path / "log"):
        patience = Patience(30)
        while not (said := felixpy("status", "--json", env=env).json)["problems"]:
            assert not patience.over(), said
        assert "its endpoint-status file cannot be written" in said["problems"][0]
        assert "File name too long; give the workload or its endpoint a shorter name" in said["problems"][0]
        resources(folder, GOOD)
        while (said := felixpy("status", "--json", env=env).json)["problems"]:
            assert not patience.over(), said


def test_text_and_json_of_status_say_the_same(node: None, tmp_path: Path) -> None:
    bad = [{**GOOD, "metadata": {"name": f"bad{n}", "namespace": "default"}, "spec": {"node": "n1"}} for n in range(25)]
    env = resources(tmp_path / "r", GOOD, *bad)
    with agent(env, tmp_path / "log"):
        assert felixpy("status", "--json", env=env).json["adopted"] == 0
    with agent(env, tmp_path / "log"):
        said = felixpy("status", "--json", env=env).json
        text = felixpy("status", env=env).out
        watched = watch_until("problem     and", env)
    lines = dict(re.findall(r"^([\w-]+) {2,}(\S.*)$", text, re.M))
    assert 0 < said["adopted"] <= sum(table["kernel"] for table in said["tables"].values())
    assert lines["adopted"] == f"{said['adopted']} entries that the kernel had at the start"
    assert lines["back-end"] == said["backend"] == "nftables"
    assert [lines["IPv4"], lines["IPv6"]] == ["ready", "ready"]
    for name, table in said["tables"].items():
        row = next(line for line in text.splitlines() if line.startswith(f"{name} "))
        assert re.findall(r"\b\d+\b", row.partition(name)[2]) == [str(number) for number in table.values()]
    assert all(f"problem     {problem}\n" in text for problem in said["problems"])
    assert f"problem     and {25 - len(said['problems'])} more" in text
    assert watched.count("\033[?1049h") == watched.count("\033[?1049l") == 1
    assert re.search(r"node +n1, ", watched.partition("\033[?1049l")[2]), "what was seen last stays"
    latest = said["failures"][-1]
    day = time.strftime("%Y-%m-%d", time.localtime(latest["ts"]))
    assert re.search(f"^failure +{day} [0-9:]+ {re.escape(latest['what'])}: {re.escape(latest['reason'])}$", text, re.M)


def watch_until(text: str, env: dict[str, str]) -> str:
    """What ``status --watch`` writes to a terminal, until Ctrl-C after it has shown a text twice."""
    ours, terminal = pty.openpty()
    watch = (*FELIXPY, "status", "--watch")
    process = subprocess.Popen(watch, env=environment({"NODENAME": "n1", **env}), stdout=terminal, stderr=terminal)
    os.close(terminal)
    seen = ""
    while seen.count(text) < 2:
        seen += os.read(ours, 65536).decode()
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # EIO: nobody has the terminal any more
        while more := os.read(ours, 65536):
            seen += more.decode()
    os.close(ours)
    assert process.wait() == 130
    return seen


def test_many_bad_objects_give_a_readable_log_and_the_count_is_told(node: None, tmp_path: Path) -> None:
    bad = [
        {**GOOD, "metadata": {"name": f"bad{n}", "namespace": "default"}, "spec": {"node": "n1"}} for n in range(300)
    ]
    log = tmp_path / "log"
    env = resources(tmp_path / "r", GOOD, *bad) | {"FELIX_PROMETHEUSMETRICSENABLED": "true"}
    with agent(env, log):
        text = answers("http://127.0.0.1:9091/metrics")
    said = [json.loads(line) for line in log.read_text().splitlines()]
    counts = {line["of"]: line["count"] for line in said if line["event"] == "lines left out"}
    assert counts.keys() == {"bad document", "problem"}
    for event, count in counts.items():
        shown = sum(line["event"] == event for line in said)
        assert BURST <= shown < 2 * BURST
        assert shown + count == 300
    assert f"felix_logs_dropped_total {sum(counts.values())}.0" in text
    assert 'felixpy_problems{kind="WorkloadEndpoint"} 300.0' in text


def test_repairs_are_counted_by_cause(node: None, tmp_path: Path) -> None:
    env = {**resources(tmp_path / "r", GOOD), "FELIX_PROMETHEUSMETRICSENABLED": "true"}
    with agent(env, tmp_path / "log"):
        ip("route del 10.48.0.1 proto 222")
        patience = Patience(30)
        while 'felixpy_repairs_total{cause="removed"} 1.0' not in (text := answers("http://127.0.0.1:9091/metrics")):
            assert not patience.over(), text
            time.sleep(0.05)
        assert felixpy("status", "--json", env=env).json["tables"]["routes"]["repaired"] == 1
        text = answers("http://127.0.0.1:9091/metrics")  # the drift was counted before it was repaired
        assert 'felix_route_table_num_routes{table="IPv4:254"} 1.0' in text
        assert 'felixpy_netlink_messages_total{socket="routing"}' in text
        assert "felixpy_stream_want" in text


def test_probes_have_details_as_text_and_json(node: None, tmp_path: Path) -> None:
    with agent(resources(tmp_path / "r", GOOD), tmp_path / "log"):
        lines = answers(f"{HEALTH}/readiness").splitlines()
        assert lines[0] == "ready"
        assert [line.split()[:2] for line in lines[1:]] == [
            ["loop", "ok"], ["stream", "ok"], ["IPv4", "ok"], ["IPv6", "ok"]
        ]  # fmt: skip
        request = urllib.request.Request(f"{HEALTH}/liveness", headers={"Accept": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            said = json.load(response)
        assert (said["ok"], said["reason"], said["ready"]) == (True, "live", True)
        assert set(said["components"]) == {"loop", "stream", "IPv4", "IPv6"}


def test_diag_has_everything_but_secrets(node: None, tmp_path: Path) -> None:
    env = {**resources(tmp_path / "r", GOOD), "FELIX_MQTTPASSWORD": "do-not-tell"}
    with agent(env, tmp_path / "log"):
        before = dump()
        done = felixpy("diag", "-o", str(tmp_path / "d.tar.gz"), env=env)
        assert (done.code, done.err) == (0, ""), done
        assert dump() == before
    assert (tmp_path / "d.tar.gz").stat().st_mode & 0o777 == 0o600
    found = contents(tmp_path / "d.tar.gz")
    assert {"versions.json", "settings.json", "agent/status.json", "agent/metrics.txt", "check.json", "kernel/nft.txt",
            "kernel/ip-route-6.txt", "kernel/sysctl.txt", "missing.txt"} <= set(found)  # fmt: skip
    assert "10.48.0.1" in found["kernel/ip-route-4.txt"]
    assert json.loads(found["settings.json"])["MQTTPassword"] == "(set)"
    assert [name for name, text in found.items() if "do-not-tell" in text] == []


def test_diag_without_an_agent_names_what_is_missing(node: None, tmp_path: Path) -> None:
    env = resources(tmp_path / "r", GOOD)
    done = felixpy("diag", "-o", str(tmp_path / "d.tar.gz"), env=env)
    assert done.code == 0
    assert "agent/status.json" in done.out
    assert "agent/status.json: no agent answers" in contents(tmp_path / "d.tar.gz")["missing.txt"]
    again = felixpy("diag", "-o", str(tmp_path / "d.tar.gz"), env=env)
    assert "exists already" in sentence(again)


@pytest.mark.parametrize("result", [{}, [], None, {"degraded": [], "tables": 1}, {"degraded": 1, "tables": {}}])
def test_status_of_another_program_is_one_sentence(tmp_path: Path, result: Any) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        answer = json.dumps({"ok": True, "result": result}).encode() + b"\n"

        def speak() -> None:
            for _ in range(2):
                connection = server.accept()[0]
                connection.recv(4096)
                connection.sendall(answer)
                connection.close()

        thread = threading.Thread(target=speak, daemon=True)
        thread.start()
        for arguments in (("status",), ("status", "--json")):
            assert "is no felixpy agent" in sentence(felixpy(*arguments, env={"FELIX_CONTROLSOCKET": str(path)}))
        thread.join()


def test_a_reload_that_may_not_look_for_the_settings_file_leaves_them_as_they_were(node: None, tmp_path: Path) -> None:
    env = resources(tmp_path / "r") | {"NODENAME": "n1", "FELIX_HEALTHENABLED": "true"}
    folder, log = tmp_path / "settings", tmp_path / "log"
    folder.mkdir()
    (folder / "felixpy.toml").touch()
    bound = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all")
    with log.open("wb") as output:
        process = subprocess.Popen(
            (*bound, *FELIXPY, "run", "--config", str(folder / "felixpy.toml")),
            env=environment(env),
            stdout=output,
            stderr=output,
        )
    try:
        wait_for(lambda: answers(f"{HEALTH}/readiness"), log)
        folder.chmod(0)
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: "settings stay as they were" in log.read_text(), log)
        assert "Permission denied" in log.read_text()
        assert "Traceback" not in log.read_text()
        process.terminate()
        assert process.wait() == 0
    finally:
        folder.chmod(0o700)
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], object], log: Path) -> None:
    patience = Patience(30)
    while not condition():
        assert not patience.over(), log.read_text()
        time.sleep(0.02)


def test_an_archive_that_cannot_be_written_is_one_sentence_and_leaves_nothing(node: None, tmp_path: Path) -> None:
    env = {"FELIX_RESOURCEDIRECTORY": str(tmp_path), **NFTABLES}
    programs, asked = tmp_path / "programs", tmp_path / "asked"
    programs.mkdir()
    (programs / "ip").write_text(f'#!/bin/sh\necho >>{asked}\nexec {shutil.which("ip")} "$@"\n')
    (programs / "ip").chmod(0o755)
    env["PATH"] = f"{programs}:{os.environ['PATH']}"
    said = sentence(felixpy("diag", "-o", str(tmp_path / "no" / "d.tar.gz"), env=env))
    assert f"there is no folder {tmp_path / 'no'}; make it, or name another file with --output" in said
    assert not asked.exists(), "nothing is collected before"
    small = tmp_path / "small"
    small.mkdir()
    full = (
        "unshare",
        "--mount",
        "sh",
        "-c",
        f'mount -t tmpfs -o size=4k none {small} && "$0" "$@"; c=$?; ls {small}; exit $c',
    )
    done = felixpy("diag", "-o", str(small / "d.tar.gz"), env=env, before=full)
    said = sentence(done)
    assert f"{small}/d.tar.gz cannot be written: No space left on device; name another file with --output" in said
    assert done.out == ""
    assert asked.exists()
