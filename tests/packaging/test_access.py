"""``config/mosquitto.acl`` in a real Mosquitto: what a node can do with its own name, and what it cannot."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broker import Broker, running
from tests.cli.command import agent, felixpy

ACL = Path(__file__).resolve().parents[2] / "config" / "mosquitto.acl"
ROOT = "felixpy/v1"
USERS = ("n1", "n2", "publisher", "viewer", "stranger", "felixpy-node")
ENDPOINT = """
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {{name: web{number}, namespace: default}}
spec: {{node: {node}, interfaceName: cali1, ipNetworks: [10.48.0.{number}/32]}}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {{name: pool{number}}}
spec: {{cidr: 10.{number}.0.0/16}}
"""


@pytest.fixture
def broker(network: None, tmp_path: Path) -> Iterator[Broker]:
    passwords = tmp_path / "passwords"
    passwords.write_text("".join(f"{user}:secret\n" for user in USERS))
    subprocess.run(["mosquitto_passwd", "-U", str(passwords)], check=True, capture_output=True)
    config = ("allow_anonymous false", f"password_file {passwords}", f"acl_file {ACL}")
    with running(tmp_path, config) as process:
        endpoints = [ENDPOINT.format(node=node, number=number) for number, node in enumerate(("n1", "n2"), 1)]
        (tmp_path / "x.yaml").write_text("---".join(endpoints))
        done = felixpy("apply", "-f", str(tmp_path / "x.yaml"), env=as_user(process, "publisher"))
        assert done.code == 0, done
        yield process


def as_user(broker: Broker, user: str) -> dict[str, str]:
    port = str(broker.port)
    return {
        "FELIX_MQTTHOST": "127.0.0.1",
        "FELIX_MQTTPORT": port,
        "FELIX_MQTTUSERNAME": user,
        "FELIX_MQTTPASSWORD": "secret",
    }


def client(program: str, broker: Broker, user: str, *arguments: str) -> str:
    login = ("-V", "5", "-h", "127.0.0.1", "-p", str(broker.port), "-u", user, "-P", "secret")
    return subprocess.run((program, *login, *arguments), capture_output=True, text=True, check=False).stdout


def seen(broker: Broker, user: str, topics: str = "#") -> set[str]:
    """Retained topics that a user gets, without the root."""
    lines = client("mosquitto_sub", broker, user, "-t", f"{ROOT}/{topics}", "-F", "%t", "-W", "1").splitlines()
    return {line.removeprefix(f"{ROOT}/") for line in lines}


SHARED = {"ippool/pool1", "ippool/pool2", "sync/shared"}


def test_a_node_reads_its_own_endpoints_and_what_is_shared_even_if_it_asks_for_everything(broker: Broker) -> None:
    assert seen(broker, "n1") == SHARED | {"wep/n1/default/web1", "sync/node/n1"}
    assert seen(broker, "n2", "wep/+/+/+") == {"wep/n2/default/web2"}
    assert seen(broker, "n1", "wep/n2/#") == set()


FORBIDDEN = (
    "wep/n1/default/web1", "wep/n2/default/web2", "wep/n2/default/new", "ippool/pool1", "felixconfig/default",
    "sync/shared", "sync/node/n1", "status/n2", "status/n2/wep/default/web", "cmd/n2/stop", "nodestate/n2",
    "cmd/n1/plan", "cmd/n2/plan", "reply/somebody/n2",
)  # fmt: skip


def test_a_node_writes_its_own_status_and_nothing_else(broker: Broker) -> None:
    before = seen(broker, "publisher")
    for topic in FORBIDDEN:
        client("mosquitto_pub", broker, "n1", "-q", "1", "-r", "-t", f"{ROOT}/{topic}", "-n")
        client("mosquitto_pub", broker, "n1", "-q", "1", "-r", "-t", f"{ROOT}/{topic}", "-m", "{}")
    assert seen(broker, "publisher") == before
    content = client("mosquitto_sub", broker, "publisher", "-t", f"{ROOT}/wep/n2/default/web2", "-C", "1", "-W", "5")
    assert "WorkloadEndpoint" in content
    client("mosquitto_pub", broker, "n1", "-q", "1", "-r", "-t", f"{ROOT}/status/n1", "-m", "{}")
    client("mosquitto_pub", broker, "n1", "-q", "1", "-r", "-t", f"{ROOT}/status/n1/wep/default/web", "-m", "{}")
    client("mosquitto_pub", broker, "n1", "-q", "1", "-r", "-t", f"{ROOT}/nodestate/n1", "-m", "{}")
    assert seen(broker, "publisher") == before | {"status/n1", "status/n1/wep/default/web", "nodestate/n1"}
    assert "nodestate/n1" in seen(broker, "n2")


def test_a_last_will_is_bound_by_the_rules_too(broker: Broker) -> None:
    address = ("-V", "5", "-h", "127.0.0.1", "-p", str(broker.port), "-u", "n1", "-P", "secret")
    will = ("--will-topic", f"{ROOT}/status/n2", "--will-payload", "{}", "--will-retain", "--will-qos", "1")
    process = subprocess.Popen(("mosquitto_sub", *address, *will, "-t", f"{ROOT}/sync/shared"), stdout=subprocess.PIPE)
    try:
        time.sleep(0.5)
    finally:
        process.kill()
        process.communicate()
    time.sleep(0.3)
    assert "status/n2" not in seen(broker, "publisher")


def test_others_read_or_get_nothing(broker: Broker) -> None:
    assert seen(broker, "viewer") == seen(broker, "publisher")
    assert not {topic for topic in seen(broker, "stranger") if topic.startswith(("wep/", "status/"))}
    client("mosquitto_pub", broker, "viewer", "-q", "1", "-r", "-t", f"{ROOT}/ippool/new", "-m", "{}")
    assert "ippool/new" not in seen(broker, "publisher")


def test_these_rules_are_enough_for_an_agent(broker: Broker) -> None:
    done = felixpy("plan", env=as_user(broker, "n1") | {"NODENAME": "n1"})
    assert done.code in (0, 2), done
    assert felixpy("show", env=as_user(broker, "n1") | {"NODENAME": "n1"}).out.count("10.48.0.1")


def test_the_one_user_of_the_daemonset_is_enough_for_every_node_and_writes_status_alone(broker: Broker) -> None:
    for number, node in enumerate(("n1", "n2"), 1):
        env = as_user(broker, "felixpy-node") | {"NODENAME": node}
        assert felixpy("show", env=env).out.count(f"10.48.0.{number}")
    before = seen(broker, "publisher")
    for topic in FORBIDDEN:
        if not topic.startswith(("status/", "reply/")):
            client("mosquitto_pub", broker, "felixpy-node", "-q", "1", "-r", "-t", f"{ROOT}/{topic}", "-m", "{}")
            client("mosquitto_pub", broker, "felixpy-node", "-q", "1", "-r", "-t", f"{ROOT}/{topic}", "-n")
    assert seen(broker, "publisher") == before
    client("mosquitto_pub", broker, "felixpy-node", "-q", "1", "-r", "-t", f"{ROOT}/status/n1", "-m", "{}")
    assert seen(broker, "publisher") == before | {"status/n1"}


def test_the_user_of_another_node_is_told_so_and_no_plan_is_made(broker: Broker) -> None:
    env = as_user(broker, "n1") | {"NODENAME": "n2", "FELIX_SNAPSHOTTIMEOUT": "0.5"}
    assert not felixpy("show", env=env).out.count("10.48.0.2")
    done = felixpy("plan", env=env)
    assert done.code == 1, done
    assert "no endpoints of node n2, and refuses user 'n1'" in done.err


def test_the_publisher_may_ask_for_plans_and_a_node_answers_in_its_own_name(broker: Broker, tmp_path: Path) -> None:
    env = as_user(broker, "n1") | {"NODENAME": "n1", "FELIX_NFTABLESMODE": "Enabled"}
    change = tmp_path / "x.yaml"
    with agent(env, tmp_path / "log"):
        done = felixpy("apply", "--plan", "-f", str(change), "-o", "json", env=as_user(broker, "publisher"))
        assert (done.code, list(done.json["nodes"])) == (0, ["n1"]), done
        client("mosquitto_pub", broker, "n1", "-q", "1", "-r", "-t", f"{ROOT}/reply/somebody/n1", "-m", "{}")
        assert "reply/somebody/n1" in seen(broker, "publisher")
        refused = felixpy("apply", "--plan", "-f", str(change), env=as_user(broker, "viewer"))
        assert (refused.code, "refuses to take" in refused.err) == (1, True), refused
