"""The unit under a real systemd: a Debian 12 machine is booted, and felixpy installed, run and removed in it.

The tests share the machine; each gets it installed, with the settings and resources of an installation and the agent
running, or bare, whatever the one before has left.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from felixpy.demo.patience import stretched
from tests.packaging.debian import Machine, booted

INSTALL = "cd /usr/src/felixpy && PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels make install"
EXPOSURE = 2.2
"""At most this in ``systemd-analyze security``, where 10 is a service without any sandbox."""

MANIFESTS = """
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: p4}
spec: {cidr: 10.48.0.0/16, natOutgoing: true}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: p6}
spec: {cidr: "fd00:48::/32", natOutgoing: true}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: other}
spec: {bgp: {ipv4Address: 192.0.2.2/24, ipv6Address: "2001:db8::2/64"}}
---
apiVersion: projectcalico.org/v3
kind: IPAMBlock
metadata: {name: fd00-48-7---122}
spec: {cidr: "fd00:48:7::/122", affinity: "host:other", allocations: [], unallocated: [], attributes: []}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: web, namespace: default}
spec: {node: n1, interfaceName: cali1, ipNetworks: [10.48.0.1/32, "fd00:48::1/128"]}
"""

NETWORK = """
[Match]
Name=eth0
[Network]
Address=192.0.2.1/24
Address=2001:db8::1/64
Gateway=192.0.2.254
IPv6AcceptRA=no
LinkLocalAddressing=no
"""


UNITS = "/run/systemd/system"
SEEN = "/run/seen-by-workloads"
DOCKER = f'[Service]\nType=oneshot\nExecStart=/bin/sh -c "/sbin/ip route show dev cali1 >{SEEN}"\n'
"""A runtime of workloads: what it sees of the node when it starts."""


class Node(NamedTuple):
    machine: Machine
    before: set[str]
    """Files before felixpy was installed for the first time."""


@pytest.fixture(scope="module", params=["machine"])
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with an uplink that networkd manages and a workload's interface; felixpy was never installed."""
    with booted(tmp_path_factory.mktemp("machine")) as machine:
        machine.write("/etc/systemd/network/10-eth0.network", NETWORK)
        machine.run("ip link add eth0 type veth peer name peer0 && ip link set peer0 up")
        machine.run("ip link add cali1 type veth peer name peer1 && ip link set peer1 up && ip link set cali1 up")
        machine.run("systemctl start systemd-networkd")
        machine.until(lambda: "192.0.2.254" in machine.run("ip route"), "networkd has made the uplink")
        yield Node(machine, files(machine))


@pytest.fixture
def bare(node: Node) -> Machine:
    """The machine without felixpy and without its settings."""
    machine = node.machine
    own = f"{UNITS}/felixpy.service.d {UNITS}/felixpy-wait.service.d {UNITS}/docker.service {SEEN}"
    machine.run("systemctl stop felixpy felixpy-wait docker", check=False)
    machine.run("if [ -e /opt/felixpy ]; then felixpy cleanup && cd /usr/src/felixpy && make uninstall; fi")
    machine.run(f"rm -rf /etc/felixpy /etc/default/felixpy {own} && systemctl daemon-reload")
    return machine


@pytest.fixture
def machine(node: Node) -> Machine:
    """The machine with felixpy as it was installed, with resources, running."""
    machine = node.machine
    machine.run(f"test -x /opt/felixpy/bin/felixpy || {{ {INSTALL}; }}")
    machine.run("systemctl stop felixpy felixpy-wait docker", check=False)
    machine.run(f"rm -rf {UNITS}/felixpy.service.d {UNITS}/felixpy-wait.service.d {UNITS}/docker.service {SEEN}")
    machine.run("install -m 600 /usr/src/felixpy/config/felixpy.toml /etc/felixpy/felixpy.toml")
    machine.run("rm -rf /etc/felixpy/resources && mkdir /etc/felixpy/resources && systemctl daemon-reload")
    machine.write("/etc/felixpy/resources/node.yaml", MANIFESTS)
    machine.run("systemctl reset-failed")
    restarted(machine)
    return machine


def files(machine: Machine) -> set[str]:
    return set(
        machine.run("find /etc /opt /usr /var/lib -xdev -not -path '*/usr/src/*' -not -name '*.pyc'").split("\n")
    )


def active(machine: Machine) -> bool:
    return machine.show("felixpy", "ActiveState") == "active"


def set_up(machine: Machine, unit: str, *lines: str) -> None:
    machine.write(f"{UNITS}/{unit}.service.d/test.conf", "\n".join(("[Service]", *lines, "")))
    machine.run("systemctl daemon-reload")


def restarted(machine: Machine, environment: str = "") -> None:
    """Start felixpy with this environment and wait until it is ready."""
    machine.write("/etc/default/felixpy", f"NODENAME=n1\n{environment}\n")
    machine.run("systemctl restart felixpy")


def without_source(machine: Machine) -> None:
    """Felixpy stopped, after a start that was complete; the next one waits, like one whose broker is away."""
    machine.until(lambda: machine.show("felixpy-wait", "ActiveState") != "activating", "nothing waits for a start")
    machine.run("systemctl stop felixpy && felixpy cleanup && rm -r /etc/felixpy/resources")


def test_install_puts_a_service_that_systemd_understands_and_starts_nothing(bare: Machine) -> None:
    machine = bare
    machine.run(INSTALL)
    assert machine.run("systemctl is-enabled felixpy", check=False).strip() == "disabled"
    assert machine.run("systemd-analyze verify felixpy.service felixpy-wait.service") == ""
    assert not active(machine)
    assert re.fullmatch(r"felixpy \d+\.\d+\.\d+\n", machine.run("felixpy version"))


def test_install_again_keeps_the_settings(machine: Machine) -> None:
    machine.write("/etc/default/felixpy", "NODENAME=n1\n")
    installed = files(machine)
    machine.run(INSTALL)
    assert machine.run("cat /etc/default/felixpy") == "NODENAME=n1\n"
    assert files(machine) == installed


def test_sandbox_is_tight(machine: Machine, record_property: Callable[[str, object], None]) -> None:
    said = machine.run("systemd-analyze security --no-pager felixpy.service", check=False)
    exposure = re.search(r"Overall exposure level for felixpy.service: ([\d.]+)", said)
    assert exposure, said
    record_property("exposure", exposure[1])
    assert float(exposure[1]) <= EXPOSURE, said


def test_a_start_waits_for_the_source_and_workloads_wait_for_the_start(machine: Machine) -> None:
    """A start may last longer than TimeoutStartSec."""
    without_source(machine)
    machine.write(f"{UNITS}/docker.service", DOCKER)
    seconds = int(stretched(3))
    set_up(machine, "felixpy", f"TimeoutStartSec={seconds}", f"WatchdogSec={seconds + 1}")
    set_up(machine, "felixpy-wait", "TimeoutStartSec=infinity")  # its limit is another test's
    machine.run("systemctl start --no-block felixpy docker")
    machine.until(lambda: "not ready: IPv4, IPv6" in machine.show("felixpy", "StatusText"), "the agent waits")
    machine.run(f"sleep {seconds + 2}")
    assert machine.show("felixpy", "ActiveState") == "activating"
    assert "not ready: IPv4, IPv6" in machine.show("felixpy", "StatusText")
    assert machine.show("felixpy", "NRestarts") == "0"
    assert not machine.run(f"ls {SEEN}", check=False).startswith("/")
    machine.write("/etc/felixpy/resources/node.yaml", MANIFESTS)
    machine.until(lambda: active(machine), "the service is active")
    assert machine.show("felixpy", "StatusText").startswith("ready; stream in-sync")
    assert "10.48.0.1" in machine.run("ip route show dev cali1")
    assert "fd00:48::1" in machine.run("ip -6 route show dev cali1")
    machine.until(lambda: "10.48.0.1" in machine.run(f"cat {SEEN}", check=False), "the workloads have started")


def test_workloads_do_not_wait_for_ever(machine: Machine) -> None:
    without_source(machine)
    machine.write(f"{UNITS}/docker.service", DOCKER)
    set_up(machine, "felixpy-wait", "TimeoutStartSec=2")
    machine.run("systemctl start --no-block felixpy docker")
    machine.until(lambda: machine.run(f"ls {SEEN}", check=False).startswith("/"), "docker has started")
    assert machine.show("felixpy-wait", "Result") == "timeout"
    assert machine.show("felixpy", "ActiveState") == "activating"
    machine.write("/etc/felixpy/resources/node.yaml", MANIFESTS)
    machine.until(lambda: active(machine), "the service is active")


def test_it_runs_with_two_capabilities_and_little_else(machine: Machine) -> None:
    status = machine.run(f"cat /proc/{machine.show('felixpy', 'MainPID')}/status")
    for name in ("CapEff", "CapPrm", "CapBnd"):
        assert re.search(rf"^{name}:\t0+3000$", status, re.M), status  # bits 12 and 13: NET_ADMIN, NET_RAW
    assert re.search(r"^NoNewPrivs:\t1$", status, re.M)
    assert re.search(r"^Seccomp:\t2$", status, re.M)


def test_it_can_tell_the_name_of_another_writer(machine: Machine) -> None:
    """A process of root with all capabilities, seen from the agent's mounts with the agent's two."""
    pid = machine.show("felixpy", "MainPID")
    rights = "--bounding-set=-all,+net_admin,+net_raw --inh-caps=-all"
    assert machine.run(f"nsenter --target={pid} --mount setpriv {rights} cat /proc/1/comm") == "systemd\n"


@pytest.mark.parametrize(
    ("settings", "look"),
    [
        ("FELIX_NFTABLESMODE=Disabled\nFELIX_IPTABLESBACKEND=Legacy", "iptables-legacy-save; ip6tables-legacy-save"),
        ("FELIX_NFTABLESMODE=Disabled\nFELIX_IPTABLESBACKEND=NFT", "iptables-nft-save; ip6tables-nft-save"),
        ("FELIX_NFTABLESMODE=Enabled", "nft list tables"),
    ],
    ids=["legacy", "nft", "nftables"],
)
def test_every_back_end_works_in_the_sandbox(machine: Machine, settings: str, look: str) -> None:
    machine.run("sysctl -q net.ipv4.ip_forward=0 net.ipv4.conf.cali1.proxy_arp=0 net.ipv6.conf.cali1.accept_ra=1")
    restarted(machine, settings)
    assert re.search(r"fpy-|ip6 felixpy", machine.run(look)), machine.journal()
    assert machine.run("sysctl -n net.ipv4.ip_forward net.ipv4.conf.cali1.proxy_arp net.ipv6.conf.cali1.accept_ra") == (
        "1\n1\n0\n"
    )
    invocation = machine.show("felixpy", "InvocationID")
    said = machine.run(f"journalctl --output=cat _SYSTEMD_INVOCATION_ID={invocation}").splitlines()
    lines = [json.loads(line) for line in said if line.startswith("{")]
    assert lines
    bad = [line for line in lines if line["level"] in ("warning", "error")]
    assert bad == []


def test_another_user_can_run_it_with_nftables(machine: Machine) -> None:
    set_up(machine, "felixpy", "User=nobody")
    machine.run("chown nobody /etc/felixpy/felixpy.toml && systemctl stop felixpy")
    machine.run("nft delete table ip felixpy; sysctl -q net.ipv6.conf.cali1.accept_ra=1", check=False)
    restarted(machine, "FELIX_NFTABLESMODE=Enabled")
    assert "10.48.0.1" in machine.run("nft list table ip felixpy")
    assert machine.run("sysctl -n net.ipv6.conf.cali1.accept_ra") == "0\n"
    assert machine.run(f"ps -o user= -p {machine.show('felixpy', 'MainPID')}").strip() == "nobody"


def test_a_frozen_agent_is_replaced_and_the_kernel_keeps_its_state(machine: Machine) -> None:
    set_up(machine, "felixpy", f"WatchdogSec={int(stretched(4))}")
    restarted(machine)
    frozen = machine.show("felixpy", "MainPID")
    machine.run(f"kill -STOP {frozen}")
    machine.until(lambda: machine.show("felixpy", "MainPID") not in (frozen, "0") and active(machine), "another agent")
    assert "Watchdog timeout" in machine.run("journalctl -u felixpy --no-pager")
    assert "10.48.0.1" in machine.run("ip route show dev cali1")


def test_reload_takes_the_settings_file_and_refuses_a_bad_one(machine: Machine) -> None:
    pid = machine.show("felixpy", "MainPID")
    machine.write("/etc/felixpy/felixpy.toml", 'DefaultEndpointToHostAction = "Accept"\nMQTTHost = "later.example"\n')
    machine.run("systemctl reload felixpy")
    machine.until(lambda: '"settings changed"' in machine.journal(), "the settings are taken")
    assert "MQTTHost" in machine.journal()
    assert "settings take effect at the next start" in machine.journal()
    machine.write("/etc/felixpy/felixpy.toml", 'DefaultEndpointToHostAction = "Perhaps"\n')
    machine.run("systemctl reload felixpy")
    machine.until(lambda: '"settings stay as they were"' in machine.journal(), "the bad value is reported")
    assert active(machine)
    assert machine.show("felixpy", "MainPID") == pid


@pytest.mark.parametrize("told", [True, False], ids=["with-our-file", "without"])
def test_networkd_leaves_routes_to_other_nodes(machine: Machine, told: bool) -> None:
    """Without the file networkd removes them, which shows that the file is what keeps them. (IPv4 would show nothing:
    networkd takes the interface's last address away for a moment, and the kernel all routes with it.)
    """
    ours = "/usr/local/lib/systemd/networkd.conf.d/50-felixpy.conf"
    machine.run("systemctl restart felixpy && systemctl stop felixpy")
    assert "fd00:48:7::/122" in machine.run("ip -6 route show dev eth0")
    machine.run("true" if told else f"mv {ours} /tmp/kept")
    try:
        machine.run("systemctl restart systemd-networkd && networkctl reconfigure eth0")
        links = "networkctl --no-pager --no-legend list"
        machine.until(lambda: "configured" in machine.run(f"{links} eth0"), "networkd has configured the uplink")
        machine.until(lambda: "192.0.2.254" in machine.run("ip route"), "the default route is back")
        machine.until(
            lambda: ("fd00:48:7::/122" in machine.run("ip -6 route show dev eth0")) == told, f"the route stays: {told}"
        )
        assert "unmanaged" in machine.run(f"{links} cali1")
    finally:
        machine.run("true" if told else f"mv /tmp/kept {ours}")


def test_networkd_leaves_interfaces_of_workloads_and_tunnels(machine: Machine) -> None:
    """A file of somebody else matches every interface; another one, which is nobody's, shows that it does."""
    tunnels = ("vxlan.calico", "vxlan-v6.calico")
    machine.write("/etc/systemd/network/90-all.network", "[Match]\nName=*\n[Network]\nLinkLocalAddressing=no\n")
    try:
        for number, name in enumerate(tunnels):
            machine.run(
                f"ip link add {name} type vxlan id {4096 + number} dstport {4789 + number} && ip link set {name} up"
            )
        machine.run("ip link add theirs type veth peer name theirs1 && ip link set theirs up && networkctl reload")
        shown = "networkctl --no-pager --no-legend list"
        machine.until(lambda: "unmanaged" not in machine.run(f"{shown} theirs"), "networkd takes what is nobody's")
        for name in ("cali1", *tunnels):
            assert "unmanaged" in machine.run(f"{shown} {name}"), name
    finally:
        machine.run("rm /etc/systemd/network/90-all.network; ip link del theirs", check=False)
        for name in tunnels:
            machine.run(f"ip link del {name}", check=False)
        machine.run("networkctl reload")


def test_a_stop_is_quick_and_leaves_the_kernel_as_it_is(machine: Machine) -> None:
    machine.run("systemctl enable --quiet felixpy && systemctl restart felixpy && systemctl stop felixpy")
    assert machine.show("felixpy", "Result") == "success"
    assert "10.48.0.1" in machine.run("ip route show dev cali1")


def test_removal_leaves_the_settings_only(machine: Machine, node: Node) -> None:
    machine.run("systemctl stop felixpy && felixpy cleanup")
    machine.run("cd /usr/src/felixpy && make uninstall")
    assert machine.run("ip route show dev cali1") == ""
    assert "felixpy" not in machine.run("nft list tables")
    assert machine.run("systemctl is-active felixpy", check=False).strip() == "inactive"
    kept = {"/etc/default/felixpy", "/etc/felixpy", "/etc/felixpy/felixpy.toml", "/etc/felixpy/resources"}
    left = {name for name in files(machine) - node.before if "felixpy" in name}
    assert left == kept | {"/etc/felixpy/resources/node.yaml", "/var/lib/felixpy"}
