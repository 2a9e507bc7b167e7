"""plan, show and cleanup against the kernel: what they print is true, and what must not change does not."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from felixpy.demo.agent import FELIXPY, environment
from felixpy.demo.patience import Patience
from felixpy.demo.resources import Object, felix_configuration, ip_pool
from felixpy.observe.endpoint_folders import MARK
from tests.agent.bench import GOOD, LEGACY, NFT, NFTABLES, POOLS, dump, endpoint, routes
from tests.cli.command import HEALTH, agent, answers, felixpy, sentence
from tests.kernel import ip, run

BACKENDS = {"nftables": NFTABLES, "legacy": LEGACY, "nft": NFT}
backends = pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS.keys())


def resources(folder: Path, *documents: Object) -> dict[str, str]:
    """Settings that make a folder with these documents the stream."""
    folder.mkdir(exist_ok=True)
    (folder / "all.json").write_text(json.dumps(documents))
    return {"FELIX_RESOURCEDIRECTORY": str(folder)}


@backends
def test_plan_tells_what_run_then_does_and_changes_nothing(
    node: None, tmp_path: Path, backend: Mapping[str, str]
) -> None:
    env = {**backend, **resources(tmp_path / "r", *POOLS, GOOD)}
    empty = dump()
    plan = felixpy("plan", env=env)
    assert plan.code == 2, plan
    lines = plan.out.splitlines()
    assert "+ routes: 10.48.0.1/32 metric 0 dev cali1" in lines
    assert "+ routes: fd00:48::1/128 metric 1024 dev cali1" in lines
    assert "+ ipv4-sets: from-workload { 10.48.0.1 . cali1 }" in lines
    assert "+ ipv6-sets: masq-pools { fd00:48::/64 }" in lines
    assert "+ neighbours: 10.48.0.1 dev cali1 lladdr ee:ee:ee:ee:ee:01" in lines
    assert any(line.startswith("~ settings: net.ipv4.conf.cali1 ") and "proxy_arp=1" in line for line in lines)
    assert lines[-1] == f"{len(lines) - 1} changes"
    as_json = felixpy("plan", "--json", env=env)
    assert as_json.code == 2
    assert [f"+ {each['table']}: {each['entry']}" for each in as_json.json if each["verb"] == "add"] == [
        line for line in lines if line.startswith("+")
    ]
    assert dump() == empty

    with agent(env, tmp_path / "log"):
        full = dump()
        assert felixpy("plan", env=env) == (0, "nothing to change\n", "")
    assert felixpy("plan", "--json", env=env) == (0, "[]\n", "")
    assert dump() == full
    ip("route del 10.48.0.1 proto 222", "route add 10.48.9.9 dev cali1 proto 222")
    plan = felixpy("plan", env=env)
    assert (plan.code, plan.out.splitlines()) == (
        2,
        [
            "+ routes: 10.48.0.1/32 metric 0 dev cali1",
            "- routes: 10.48.9.9/32 metric 0",
            "2 changes",
        ],
    )


def test_plan_names_what_another_back_end_left(node: None, tmp_path: Path) -> None:
    env = resources(tmp_path / "r", *POOLS, GOOD)
    with agent({**NFT, **env}, tmp_path / "log"):
        pass
    before = dump()
    plan = felixpy("plan", env={**NFTABLES, **env})
    assert plan.code == 2
    assert "- iptables-nft IPv4: chain filter/fpy-" in plan.out.replace("filter FORWARD", "filter/fpy-FORWARD")
    assert "- iptables-nft IPv6: sets with" in plan.out
    assert dump() == before
    with agent({**NFTABLES, **env}, tmp_path / "log"):
        assert felixpy("plan", env={**NFTABLES, **env}).out == "nothing to change\n"


def test_plan_names_a_set_that_holds_what_we_never_write(node: None, tmp_path: Path) -> None:
    env = {**NFTABLES, **resources(tmp_path / "r", GOOD)}
    with agent(env, tmp_path / "log"):
        pass
    run("nft", "add", "element", "ip", "felixpy", "pools", "{ 198.18.0.1-198.18.0.3 }")
    plan = felixpy("plan", env=env)
    assert (plan.code, plan.out) == (2, "~ ipv4-sets: sets that are missing or not in our form\n1 change\n")
    with agent(env, tmp_path / "log"):
        assert felixpy("plan", env=env).out == "nothing to change\n"


def test_a_network_in_which_nothing_was_ever_routed(network: None, tmp_path: Path) -> None:
    env = environment({"NODENAME": "n1", **NFTABLES, **resources(tmp_path / "r", *POOLS)})
    done = subprocess.run(("unshare", "-n", *FELIXPY, "show", "routes"), env=env, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_show_tells_what_is_wanted_and_what_the_kernel_has(node: None, tmp_path: Path) -> None:
    tunnel = ip_pool("tunnel", "10.77.0.0/16", ipipMode="Always")
    env = {**NFTABLES, **resources(tmp_path / "r", *POOLS, GOOD, endpoint("early", 9), tunnel)}
    with agent(env, tmp_path / "log"):
        before = dump()
        shown = {
            what: {line["entry"]: line for line in felixpy("show", what, "--json", env=env).json}
            for what in ("endpoints", "pools", "routes", "sets", "rules", "settings", "neighbours")
        }
        table = felixpy("show", env=env)
        assert dump() == before
    assert shown["endpoints"]["default/good"]["kernel"] == "up"
    assert shown["endpoints"]["default/early"]["kernel"] == "waiting"
    assert shown["endpoints"]["default/early"]["note"] == "interface cali9 does not exist"
    assert shown["endpoints"]["default/good"]["wanted"] == "cali1 10.48.0.1/32, fd00:48::1/128"
    assert "natOutgoing=true" in shown["pools"]["four"]["wanted"]
    assert shown["pools"]["tunnel"]["kernel"] == shown["pools"]["four"]["kernel"]
    route = shown["routes"]["10.48.0.1/32 metric 0"]
    assert route["wanted"] == route["kernel"] == "dev cali1"
    assert shown["routes"]["10.48.0.9/32 metric 0"]["kernel"] == ""
    assert shown["sets"]["from-workload { 10.48.0.1 . cali1 }"]["kernel"] == "present"
    assert " proxy_arp=1 " in shown["settings"]["net.ipv4.conf.cali1"]["kernel"]
    assert shown["neighbours"]["10.48.0.1 dev cali1"]["kernel"] == "ee:ee:ee:ee:ee:01"
    assert all(line["wanted"] == line["kernel"] != "" for line in shown["rules"].values())
    assert table.code == 0
    assert "default/good" in table.out
    assert "up" in table.out


FOREIGN_TABLE = "table inet foreign { set s { type ipv4_addr; elements = { 192.0.2.9 }; }; }"


BUILT_IN = (
    ("raw", "PREROUTING"), ("mangle", "PREROUTING"), ("mangle", "FORWARD"), ("mangle", "POSTROUTING"),
    ("filter", "INPUT"), ("filter", "FORWARD"), ("filter", "OUTPUT"), ("nat", "POSTROUTING"),
)  # fmt: skip


def add_foreign_state() -> None:
    """What others have beside ours, in every place that cleanup looks at."""
    run("nft", "-f", "-", stdin=FOREIGN_TABLE)
    for tool in ("iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"):
        for table, chain in BUILT_IN:  # a table or chain that comes into being with a first rule is nobody's
            run(tool, "-t", table, "-A", chain, "-m", "comment", "--comment", "foreign")
        run(tool, "-N", "FOREIGN")
        run(tool, "-A", "FORWARD", "-j", "FOREIGN")
        run(tool, "-t", "nat", "-A", "POSTROUTING", "-m", "mark", "--mark", "0x4000", "-j", "MASQUERADE")
    run("ipset", "create", "foreign", "hash:net")
    ip("route add 10.48.7.7 dev cali2 proto 80", "route add unreachable 2001:db8:7::/48 proto 80")
    ip("neigh add 10.48.7.7 dev cali2 lladdr ee:ee:ee:ee:ee:77")


def until(condition: Callable[[], bool], log: Path) -> None:
    patience = Patience(30)
    while not condition():
        assert not patience.over(), log.read_text()
        time.sleep(0.02)


@backends
def test_cleanup_removes_all_of_ours_and_nothing_else(node: None, tmp_path: Path, backend: Mapping[str, str]) -> None:
    add_foreign_state()
    files = tmp_path / "cni" / "endpoint-status"
    env = {
        **backend,
        **resources(tmp_path / "r", *POOLS, endpoint("n1-k8s-pod-eth0", 1)),
        "FELIX_REMOVEEXTERNALROUTES": "false",
        "FELIX_ENDPOINTSTATUSPATHPREFIX": str(files.parent),  # as the stream may set it: cleanup does not know it
    }
    foreign = dump(sysctls=False)
    with agent(env, tmp_path / "log"):
        until(lambda: (files / "k8s default%2Fpod eth0").exists(), tmp_path / "log")
        full = dump()
        assert routes() == {"10.48.0.1", "fd00:48::1"}
    dry = felixpy("cleanup", "--dry-run")
    assert dry.code == 0
    assert dump() == full
    assert "would remove routes: 10.48.0.1/32" in dry.out
    assert "would remove routes: fd00:48::1/128" in dry.out
    assert f"would remove endpoint-status {files}: 1 file\n" in dry.out
    assert {path.name for path in files.iterdir()} == {MARK, "k8s default%2Fpod eth0"}
    wet = felixpy("cleanup")
    assert wet.code == 0
    assert wet.out == dry.out.replace("would remove", "removed")
    assert dump(sysctls=False) == foreign
    assert not files.exists()
    assert felixpy("cleanup") == (0, "nothing of felixpy is on this node\n", "")


@pytest.mark.parametrize("later", ["other", "none"])
def test_files_at_a_prefix_that_is_left_are_planned_to_go_and_go(node: None, tmp_path: Path, later: str) -> None:
    documents = resources(tmp_path / "r", *POOLS, endpoint("n1-k8s-pod-eth0", 1))
    env = {**NFTABLES, **documents, "FELIX_ENDPOINTSTATUSPATHPREFIX": str(tmp_path / "cni")}
    files = tmp_path / "cni" / "endpoint-status"
    with agent(env, tmp_path / "log"):
        until(lambda: (files / "k8s default%2Fpod eth0").exists(), tmp_path / "log")
        assert felixpy("plan", env=env).out == "nothing to change\n"
    env["FELIX_ENDPOINTSTATUSPATHPREFIX"] = later if later == "none" else str(tmp_path / later)
    assert felixpy("plan", env=env).out == f"- endpoint-status: {files}: 1 file\n1 change\n"
    with agent(env, tmp_path / "log"):
        until(lambda: not files.exists(), tmp_path / "log")
        assert felixpy("plan", env=env).out == "nothing to change\n"
    cleaned = felixpy("cleanup").out
    assert (f"removed endpoint-status {tmp_path}" in cleaned) == (later != "none")


def test_an_empty_path_in_the_settings_file_switches_off_what_it_is_for(node: None, tmp_path: Path) -> None:
    file, run = tmp_path / "felixpy.toml", Path("/run/felixpy")
    for left in run.glob("*.sock"):  # of an agent that a test killed
        left.unlink()
    file.write_text('EndpointStatusPathPrefix = ""\nControlSocket = ""\n')
    env = {**NFTABLES, **resources(tmp_path / "r", *POOLS, endpoint("n1-k8s-unseen-eth0", 1))}
    with agent(env, tmp_path / "log", "--config", str(file)):
        assert "ControlSocket is empty" in sentence(felixpy("status", "--config", str(file), env=env))
        assert not list(run.glob("*.sock"))
        time.sleep(0.5)
    assert not [*Path("/var/run/calico").rglob("*unseen*")]


def test_health_metrics_and_log_follow_the_stream(node: None, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    env = {**NFTABLES, **resources(folder, *POOLS, GOOD)}
    metrics = "http://127.0.0.1:9091/metrics"
    with agent(env, tmp_path / "log"):
        assert answers(metrics) == ""
        served = felix_configuration(
            "default", prometheusMetricsEnabled=True, prometheusMetricsHost="127.0.0.1", logSeverityScreen="ERROR"
        )
        resources(folder, *POOLS, GOOD, served)
        soon(metrics, "felixpy_ready")
        assert 'felixpy_ready{family="IPv6"} 1.0' in answers(metrics)
        assert answers(f"{HEALTH}/liveness").startswith("live\n")
        said = (tmp_path / "log").read_text()
        resources(folder, *POOLS, served)
        soon(metrics, "felix_active_local_endpoints 0.0")
        resources(folder, *POOLS, GOOD)
        soon(metrics, "")
    quiet = (tmp_path / "log").read_text()[len(said) :]
    assert '"level": "info"' not in quiet.partition("settings changed")[0]


def soon(url: str, text: str) -> None:
    """Wait until an address answers with a text, or, without one, not at all."""
    patience = Patience(30)
    while (text not in (said := answers(url))) if text else (said := answers(url)):
        assert not patience.over(), said
        time.sleep(0.05)


@pytest.mark.parametrize("variant", ["legacy", "nft"])
def test_a_set_that_rules_of_others_use_is_told_with_where_they_are_and_what_helps(node: None, variant: str) -> None:
    tool, name = f"iptables-{variant}", "fpy4-from-workload"
    run("ipset", "create", name, "hash:ip")
    run(tool, "-N", "USER")
    run(tool, "-A", "USER", "-m", "set", "--match-set", name, "src", "-j", "ACCEPT")
    assert sentence(felixpy("cleanup")).endswith(
        f": IPv4: the IP sets {name} are in use by rules of another program; remove what names them first, "
        f"in chain USER of table filter ({tool}-save)\n"
    )
    run(tool, "-F", "USER")
    assert felixpy("cleanup") == (0, f"removed iptables-nft IPv4: the set {name} of another type\n", "")
    assert felixpy("cleanup") == (0, "nothing of felixpy is on this node\n", "")
