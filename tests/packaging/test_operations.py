"""The README's service section and the commands of docs/operations.md, as they stand there, on a fresh Debian.

The tests but the first share a booted machine, which each finds with felixpy ``serving`` or ``bare`` of it. Debian
packages are fetched over the network of the machine that runs the tests, without the right to change it; everything
else has a network of its own. Replaced are an editor and ``git``: there is neither a person nor a clone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.packaging.debian import ROOT, Machine, booted

README, OPERATIONS = ROOT / "README.md", ROOT / "docs/operations.md"

# What a node has before anybody thinks of felixpy. Beyond the uplink is an outside host, without routes to workloads.
UPLINK = """
[Match]
Name=eth0
[Network]
Address=192.0.2.1/24
Address=2001:db8::1/64
Gateway=192.0.2.254
Gateway=2001:db8::fe
IPv6AcceptRA=no
LinkLocalAddressing=no
"""
OUTSIDE = """
ip netns add outside
ip link add eth0 type veth peer name outside netns outside
ip -n outside link set outside up
ip -n outside addr add 192.0.2.254/24 dev outside
ip -n outside addr add 2001:db8::fe/64 dev outside nodad
systemctl start systemd-networkd
"""

# What a CNI plugin does for the workload of config/examples/first-workload.yaml.
WORKLOAD = """
ip netns add web
ip link add cali1 type veth peer name eth0 netns web
ip link set cali1 addrgenmode none up
ip -n web link set eth0 addrgenmode none up
ip -n web addr add 10.48.0.1/32 dev eth0
ip -n web addr add fd00:48::1/128 dev eth0 nodad
ip -n web route add 169.254.1.1 dev eth0 scope link
ip -n web route add default via 169.254.1.1 dev eth0
ip -n web addr add fe80::2/64 dev eth0 nodad
ip addr add fe80::1/64 dev cali1 nodad
ip -n web route add default via fe80::1 dev eth0
"""

ECHO = """
import socket, threading
server = socket.create_server(("::", 7), family=socket.AF_INET6, dualstack_ipv6=True)
def answer(connection):
    while data := connection.recv(64):
        connection.sendall(data)
while True:
    threading.Thread(target=answer, args=server.accept()[:1], daemon=True).start()
"""

# One connection for as long as it lasts, and how often it was answered.
FLOW = """
import pathlib, socket, sys, time
connection = socket.create_connection((sys.argv[1], 7), timeout=10)
count = 0
while connection.send(b"x") and connection.recv(64):
    count += 1
    pathlib.Path("/run/flow" + sys.argv[2]).write_text(str(count))
    time.sleep(0.02)
"""

REPLACED = r"""
git() {
    [ "$1" = checkout ] || return
    sed -i -E "s/^(__)?version(__)? = .*/\1version\2 = \"${2#v}\"/" pyproject.toml felixpy/__init__.py
}
cd /usr/src/felixpy
"""
FETCHES = re.compile(r"\bapt-get (update|install (?!.*/dist/))")
WRITES = "/run/writes"


def commands(page: Path, *where: str) -> list[str]:
    """The lines of the first block below these lines of a page, each below the one before."""
    below = "\n" + page.read_text()
    for line in where:
        assert f"\n{line}" in below, f"{page.name} has no '{line}'"
        below = below.partition(f"\n{line}")[2]
    return below.partition("\n```\n")[2].partition("\n```\n")[0].splitlines()


def edited(command: str) -> str:
    """An editor is a person, who writes what the comment says."""
    return re.sub(r"^editor (\S+) +# ([^,;]+)$", r"echo '\2' >> \1", command)


def follow(machine: Machine, lines: list[str], network: int | None = None) -> str:
    """Run commands one after another, as a new user pastes them."""
    said = ""
    for line in lines:
        uses = network if FETCHES.search(line) else None
        said += machine.run(f"{REPLACED}{edited(line)}", network=uses)
    return said


@contextmanager
def fresh_node(folder: Path) -> Iterator[Machine]:
    with booted(folder, "fresh") as machine:
        name = machine.run("hostname").strip()
        machine.run(f"echo 127.0.1.1 {name} >> /etc/hosts")
        machine.write("/etc/resolv.conf", Path("/etc/resolv.conf").read_text())
        machine.write("/etc/systemd/network/10-eth0.network", UPLINK)
        machine.run(f"set -e {OUTSIDE}")
        machine.until(lambda: "192.0.2.254" in machine.run("ip route"), "networkd has made the uplink")
        yield machine


@pytest.fixture(params=["machine"])
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One on which nobody has installed anything."""
    with fresh_node(tmp_path_factory.mktemp("fresh")) as machine:
        yield machine


@pytest.fixture(scope="module", params=["machine"])
def machine(tmp_path_factory: pytest.TempPathFactory, machine_network: int) -> Iterator[Machine]:
    with fresh_node(tmp_path_factory.mktemp("shared")) as machine:
        follow(machine, commands(OPERATIONS, "## Install")[:2], machine_network)
        start_outside(machine)
        yield machine


@pytest.fixture
def bare(machine: Machine) -> Machine:
    """Without felixpy and its settings, and with the checkout of the version that is tested."""
    if machine.run("command -v felixpy", check=False):
        follow(machine, commands(OPERATIONS, "## Remove"))
    machine.run(f"rm -rf /etc/felixpy /etc/default/felixpy; {REPLACED}git checkout v0.1.0")
    return machine


@pytest.fixture
def serving(machine: Machine, request: pytest.FixtureRequest) -> Machine:
    """With felixpy as the operations page installs it, and connections of its workload that go on."""
    if machine.run("systemctl is-active felixpy", check=False) != "active\n":
        request.getfixturevalue("bare")
        install(machine)
    return machine


def install(machine: Machine) -> None:
    block = commands(OPERATIONS, "## Install", "Then say who the node is")
    plan = next(line for line in block if line.startswith("felixpy plan"))
    block[block.index(plan)] = f"{plan.partition('  ')[0]} || test $? = 2"
    follow(machine, [*commands(OPERATIONS, "## Install")[2:], *block])
    ready(machine)
    start_flows(machine)


def answered(machine: Machine) -> list[int]:
    return [int(machine.run(f"cat /run/flow{family}") or 0) for family in (4, 6)]


def flows_go_on(machine: Machine) -> None:
    """The same connections as ever, in both families."""
    before = answered(machine)
    machine.until(lambda: all(new > old for new, old in zip(answered(machine), before, strict=True)), "flows go on")


def start_flows(machine: Machine) -> None:
    for family, address in ((4, "192.0.2.254"), (6, "2001:db8::fe")):
        unit = f"flow{family}"
        machine.run(f"systemctl stop {unit}; systemctl reset-failed {unit}; rm -f /run/{unit}", check=False)
        machine.run(f"systemd-run -q -u {unit} ip netns exec web python3 /var/tmp/flow.py {address} {family}")
    machine.until(lambda: machine.run("ls /run/flow4 /run/flow6", check=False).count("No such") == 0, "flows")


def start_outside(machine: Machine) -> None:
    machine.write("/var/tmp/echo.py", ECHO)
    machine.write("/var/tmp/flow.py", FLOW)
    machine.run(f"set -e {WORKLOAD}")
    machine.run("systemd-run -q -u echo ip netns exec outside python3 /var/tmp/echo.py")
    machine.until(lambda: ":7" in machine.run("ip netns exec outside ss -Hltn"), "the outside host listens")


def watch_writes(machine: Machine) -> None:
    for name, command in (("nft", "nft monitor"), ("ip", "ip monitor route address rule")):
        machine.run(f"systemd-run -q -u watch-{name} -p StandardOutput=truncate:{WRITES}-{name} stdbuf -oL {command}")
    time.sleep(0.3)


def writes(machine: Machine) -> str:
    time.sleep(0.3)
    machine.run("systemctl stop watch-nft watch-ip")
    return machine.run(f"cat {WRITES}-nft {WRITES}-ip")


def ready(machine: Machine) -> None:
    assert machine.run("systemctl is-active felixpy") == "active\n"
    assert 'Status: "ready; stream in-sync"' in machine.run("systemctl status --no-pager felixpy")


def test_from_nothing_to_a_running_service_by_the_readme(fresh: Machine, machine_network: int) -> None:
    assert fresh.run("command -v python3 gcc make iptables felixpy", check=False) == ""
    follow(fresh, commands(README, "## As a service"), machine_network)
    ready(fresh)
    said = fresh.run("felixpy check")  # exit code 0: not even a warning
    assert "0 failures, 0 warnings" in said
    assert "in-sync 3/3" in fresh.run("felixpy status", check=False)


def test_installing_by_the_operations_page_comes_to_the_same(bare: Machine) -> None:
    assert commands(OPERATIONS, "## Install") == [
        line.removeprefix("sudo ").partition("  ")[0] for line in commands(README, "## As a service")[:3]
    ]
    install(bare)
    flows_go_on(bare)


def test_settings_are_changed_under_a_running_agent(serving: Machine) -> None:
    follow(serving, commands(OPERATIONS, "## Change settings"))
    serving.until(lambda: '"settings changed"' in serving.journal(), "the settings are taken")
    flows_go_on(serving)


@pytest.mark.parametrize("version", ["0.2.0", "0.1.0"], ids=["upgrade", "rollback"])
def test_another_version_takes_over_without_a_write(serving: Machine, version: str) -> None:
    checkout, *rest = commands(OPERATIONS, "## Upgrade and rollback")
    watch_writes(serving)
    pid = serving.show("felixpy", "MainPID")
    said = follow(serving, [checkout.replace("v0.2.0", f"v{version}"), *rest])
    assert f"felixpy {version}\n" in said
    ready(serving)
    assert serving.show("felixpy", "MainPID") != pid
    assert writes(serving) == ""
    flows_go_on(serving)
    serving.run("felixpy plan")  # exit code 0: there is nothing to do


def test_another_back_end_keeps_connections(serving: Machine) -> None:
    assert "fpy-" in serving.run("iptables-save")
    watch_writes(serving)
    follow(serving, commands(OPERATIONS, "## Change the back-end"))
    ready(serving)
    # The tools fail where a set goes between their reading of a table and of the names in it.
    saved = "iptables-save && ip6tables-save || echo again: fpy-"
    serving.until(lambda: "fpy-" not in serving.run(saved), "the old one is removed")
    assert "table ip felixpy" in serving.run("nft list tables")
    assert "add table ip6 felixpy" in writes(serving)  # and so writes are seen at all
    flows_go_on(serving)


def test_a_drained_node_has_nothing_of_felixpy_and_comes_back(serving: Machine) -> None:
    serving.run("mv /etc/felixpy/resources/first-workload.yaml /var/tmp/")
    serving.until(lambda: "10.48.0.1" not in serving.run("ip route; nft list ruleset"), "the endpoint is gone")
    said = follow(serving, commands(OPERATIONS, "## Drain a node"))
    assert "dev cali" not in said and " . cali" not in said
    assert nothing_left(serving)
    assert serving.run("systemctl is-active felixpy", check=False) == "inactive\n"
    assert serving.run("systemctl is-enabled felixpy", check=False) == "disabled\n"
    serving.run("cp /var/tmp/first-workload.yaml /etc/felixpy/resources/ && systemctl enable --now felixpy")
    ready(serving)
    start_flows(serving)
    flows_go_on(serving)


def nothing_left(machine: Machine) -> bool:
    said = machine.run(
        "nft list tables; iptables-save; ip6tables-save; ip route show proto 222; ip -6 route show proto 222"
    )
    return not re.search(r"felixpy|fpy|10\.48|fd00:48", said)


def test_removal(serving: Machine) -> None:
    follow(serving, commands(OPERATIONS, "## Remove"))
    assert nothing_left(serving)
    assert serving.run("command -v felixpy; systemctl cat felixpy 2>/dev/null", check=False) == ""


def files(machine: Machine) -> set[str]:
    found = machine.run("find /etc /opt /usr /var/lib -xdev -not -path '/usr/src/*' -not -path '/var/lib/*/*'")
    return {name for name in found.split("\n") if not name.endswith((".pyc", "__pycache__"))}


def test_the_debian_package_is_built_apart_from_the_system(bare: Machine) -> None:
    before = files(bare)
    follow(bare, commands(OPERATIONS, "### As a Debian package")[:1])
    assert {name for name in files(bare) ^ before if "felixpy" not in name} == set()
    assert "./usr/local" not in bare.run("dpkg --contents /usr/src/felixpy/dist/felixpy_*.deb")


def test_the_debian_package_installs_upgrades_and_is_removed(bare: Machine) -> None:
    before = files(bare) | {"/var/lib/felixpy"}  # what an agent keeps there stays
    follow(bare, commands(OPERATIONS, "### As a Debian package"))
    assert bare.run("systemctl is-enabled felixpy", check=False) == "disabled\n"
    bare.run(
        "echo 'FelixHostname = \"node1\"' >>/etc/felixpy/felixpy.toml"
        " && cp /usr/src/felixpy/config/examples/first-workload.yaml /etc/felixpy/resources/"
    )
    bare.run("systemctl enable --now felixpy")
    ready(bare)
    bare.run("felixpy check")
    pid = bare.show("felixpy", "MainPID")
    bare.run("dpkg --install /usr/src/felixpy/dist/felixpy_*.deb")
    bare.until(lambda: bare.show("felixpy", "MainPID") not in (pid, "0"), "the newer version runs")
    bare.until(lambda: bare.show("felixpy", "ActiveState") == "active", "it is ready")
    assert "node1" in bare.run("cat /etc/felixpy/felixpy.toml")
    bare.run("systemctl stop felixpy && felixpy cleanup && apt-get purge -y felixpy")
    assert nothing_left(bare)
    assert {name for name in files(bare) - before if "felixpy" in name} == {
        "/etc/felixpy",
        "/etc/felixpy/resources",
        "/etc/felixpy/resources/first-workload.yaml",
    }
