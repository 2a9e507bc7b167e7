"""Memory of an agent that follows a whole cluster over MQTT: a real broker, a real agent, endpoints of a cluster.

    python -m tests.sources.peers_memory [LOCAL] [REMOTE] [POLICIES]

Prints what the process holds (RSS) without remote endpoints and with them, and how long each start took to be in sync.
Pods of one deployment are alike, as in a cluster: one identity for 20 endpoints. Needs root; everything happens in
namespaces of this process's own. It is no test: minutes, and a number.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho

from tests.broker import Broker, running
from tests.netns import enter_private_namespaces

ROOT, NODE = "felixpy/v1", "n1"
PODS_OF_A_NODE, PODS_OF_A_DEPLOYMENT = 30, 20
IN_FLIGHT = 2000
DEFAULTS = (10_000, 110_000, 100)
BROKER = ("allow_anonymous true", "max_queued_messages 400000", "max_queued_bytes 0", "set_tcp_nodelay true")
V3 = "projectcalico.org/v3"

Objects = Iterator[tuple[str, dict[str, Any]]]


def endpoint(node: str, number: int) -> tuple[str, dict[str, Any]]:
    """The ``number``-th endpoint of the cluster."""
    name, namespace = f"{node}-k8s-pod--{number}-eth0", f"ns{number // PODS_OF_A_DEPLOYMENT % 200}"
    of = str(number // PODS_OF_A_DEPLOYMENT)
    address = f"{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    spec = {
        "node": node,
        "orchestrator": "k8s",
        "pod": f"pod-{number}",
        "endpoint": "eth0",
        "interfaceName": f"cali{number:011x}",
        "ipNetworks": [f"10.{address}/32", f"fd00:48::{number >> 16:x}:{number & 65535:x}/128"],
        "profiles": [f"kns.{namespace}", f"ksa.{namespace}.default"],
        "ports": [{"name": "web", "protocol": "TCP", "port": 80}],
    }
    metadata = {
        "name": name,
        "namespace": namespace,
        "labels": {"app": f"app{of}", "tier": str(number % 3), "pod-template-hash": of},
    }
    return f"wep/{node}/{namespace}/{name}", {
        "apiVersion": V3,
        "kind": "WorkloadEndpoint",
        "metadata": metadata,
        "spec": spec,
    }


def local(count: int) -> Objects:
    return (endpoint(NODE, number) for number in range(count))


def remote(first: int, count: int) -> Objects:
    return (endpoint(f"node-{number // PODS_OF_A_NODE}", number) for number in range(first, first + count))


def policies(count: int) -> Objects:
    """Each for some local endpoints, with two selectors of peers; one selector matches a third of the cluster."""
    for number in range(count):
        sources = [f"app == 'app{number + 100}'", f"app == 'app{number + 3000}' && tier == '{number % 3}'"]
        ingress = [{"action": "Allow", "protocol": "TCP", "source": {"selector": one}} for one in sources]
        if not number:
            ingress.append({"action": "Allow", "source": {"selector": "tier == '0'"}})
        spec = {"selector": f"app == 'app{number}'", "types": ["Ingress"], "ingress": ingress}
        yield (
            f"policy/global/p{number}",
            {"apiVersion": V3, "kind": "GlobalNetworkPolicy", "metadata": {"name": f"p{number}"}, "spec": spec},
        )


def publish(broker: Broker, objects: Objects) -> int:
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.max_inflight_messages_set(IN_FLIGHT)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    sent, last = 0, None
    for topic, value in objects:
        last = client.publish(f"{ROOT}/{topic}", json.dumps(value), qos=1, retain=True)
        sent += 1
        if not sent % IN_FLIGHT:
            last.wait_for_publish()
    if last is not None:
        last.wait_for_publish()
    client.disconnect()
    client.loop_stop()
    return sent


def measured(broker: Broker, folder: Path, wanted: int) -> tuple[float, float]:
    """RSS in MiB once everything is known and the kernel is written, and the seconds until then."""
    log = folder / "agent.log"
    environment = {
        **os.environ,
        "NODENAME": NODE,
        "FELIX_MQTTHOST": "127.0.0.1",
        "FELIX_MQTTPORT": str(broker.port),
        "FELIX_MQTTPEERS": "Enabled",
        "FELIX_NFTABLESMODE": "Enabled",
        "FELIX_SNAPSHOTQUIETTIME": "5",
        "FELIX_SNAPSHOTTIMEOUT": "120",
    }
    began = time.monotonic()
    with log.open("w") as output:
        command = ("setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "felixpy", "run")
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        while not (b"ready" in log.read_bytes() and _got(environment) >= wanted):
            assert process.poll() is None, log.read_text()[-2000:]
            time.sleep(1)
        took = time.monotonic() - began
        time.sleep(10)
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / (1 << 20), took
    finally:
        process.terminate()
        process.wait()


def _got(environment: dict[str, str]) -> int:
    """How many objects the agent has; 0 until it is in sync."""
    command = (sys.executable, "-m", "felixpy", "status", "--json")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    said = json.loads(done.stdout) if done.stdout.startswith("{") else {}
    return int(said.get("got", 0)) if said.get("state") == "in-sync" else 0


def main(arguments: list[str]) -> None:
    own, others, asked = (*map(int, arguments), *DEFAULTS[len(arguments) :])
    enter_private_namespaces()
    with tempfile.TemporaryDirectory() as text, running(Path(text), BROKER) as broker:
        sent = publish(broker, policies(asked)) + publish(broker, local(own))
        for remotes in dict.fromkeys((0, min(10_000, others), others)):
            sent += publish(
                broker, remote(own + (10_000 if remotes > 10_000 else 0), remotes - (remotes > 10_000) * 10_000)
            )
            mebibytes, seconds = measured(broker, Path(text), sent)
            print(
                f"{own} local, {remotes} remote, {asked} policies: {mebibytes:.0f} MiB, in sync after {seconds:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
