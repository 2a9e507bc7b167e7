"""Settings: Felix's names, words and precedence; problems that name setting, source and value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from felixpy.config import (
    DECLARATIONS,
    AllowAction,
    ChainInsertMode,
    DenyAction,
    EndpointToHostAction,
    IptablesBackend,
    LiveSettings,
    NATOutgoingExclusions,
    NFTablesMode,
    PortRange,
    ProblemKind,
    ProgramClusterRoutes,
    SettingProblem,
    Settings,
    SettingsFileError,
    SettingsSource,
    load_environment,
    load_toml,
    resolve,
    resolve_stream,
    settings_table_markdown,
)
from felixpy.config.values import MAX_FAILSAFES, MAX_INTERFACE_PREFIXES, MAX_PREFIXES, MAX_TABLE_RANGES
from felixpy.model.net import Net, parse_address
from felixpy.model.resources import FelixConfiguration, Kind, ResourceKey


def environment(**variables: str) -> tuple[Settings, tuple[SettingProblem, ...]]:
    return resolve([load_environment(variables)])


def configuration(name: str, created: str = "", **spec: Any) -> FelixConfiguration:
    return FelixConfiguration(ResourceKey(Kind.FELIX_CONFIGURATION, name), spec, created)


@pytest.mark.parametrize(
    ("variable", "text", "attribute", "value"),
    [
        ("FELIX_IPV6SUPPORT", "false", "ipv6_support", False),
        ("felix_ipv6support", "No", "ipv6_support", False),
        ("FELIX_Ipv6Support", "0", "ipv6_support", False),
        ("FELIX_HEALTHENABLED", "Y", "health_enabled", True),
        ("FELIX_HEALTHENABLED", " t ", "health_enabled", True),
        ("FELIX_IPV4SUPPORT", "f", "ipv4_support", False),
        ("NODENAME", "node1", "nodename", "node1"),
        ("FELIX_FELIXHOSTNAME", "Node1.Example.Org", "nodename", "node1.example.org"),
        ("FELIX_INTERFACEPREFIX", "cali, tap,", "interface_prefix", ("cali", "tap")),
        ("FELIX_IPFORWARDING", "disabled", "ip_forwarding", False),
        ("FELIX_DEFAULTENDPOINTTOHOSTACTION", "ACCEPT", "default_endpoint_to_host_action", EndpointToHostAction.ACCEPT),
        ("FELIX_IPTABLESFILTERDENYACTION", "Reject", "iptables_filter_deny_action", DenyAction.REJECT),
        ("FELIX_NFTABLESFILTERALLOWACTION", "Return", "nftables_filter_allow_action", AllowAction.RETURN),
        ("FELIX_WORKLOADSOURCESPOOFING", "any", "workload_source_spoofing_any", True),
        ("FELIX_NATOUTGOINGEXCLUSIONS", "IPPoolsAndHostIPs", "nat_outgoing_exclusions",
         NATOutgoingExclusions.IP_POOLS_AND_HOST_IPS),
        ("FELIX_NATPORTRANGE", "1000:2000", "nat_port_range", PortRange(1000, 2000)),
        ("FELIX_NATPORTRANGE", "1000", "nat_port_range", PortRange(1000, 1000)),
        ("FELIX_NATPORTRANGE", "none", "nat_port_range", None),
        ("FELIX_NATOUTGOINGADDRESS", "192.0.2.1", "nat_outgoing_address", parse_address("192.0.2.1")),
        ("FELIX_NATOUTGOINGADDRESSIPV6", "2001:db8::1", "nat_outgoing_address_ipv6", parse_address("2001:db8::1")),
        ("FELIX_IPTABLESNATOUTGOINGINTERFACEFILTER", "eth+", "iptables_nat_outgoing_interface_filter", "eth+"),
        ("FELIX_EXTERNALNODESCIDRLIST", "192.0.2.1, 10.0.0.0/8,2001:db8::/32", "external_nodes_cidr_list",
         (Net.parse("192.0.2.1"), Net.parse("10.0.0.0/8"), Net.parse("2001:db8::/32"))),
        ("FELIX_DEVICEROUTEPROTOCOL", "223", "device_route_protocol", 223),
        ("FELIX_IPV4NORMALROUTEPRIORITY", "1024", "ipv4_normal_route_priority", 1024),
        ("FELIX_PROGRAMCLUSTERROUTES", "Disabled", "program_cluster_routes", ProgramClusterRoutes.DISABLED),
        ("FELIX_PROGRAMCLUSTERROUTES", "EnabledIPIPOnly", "program_cluster_routes", ProgramClusterRoutes.IPIP),
        (
            "FELIX_PROGRAMCLUSTERROUTES",
            "EnabledNoEncapOnly",
            "program_cluster_routes",
            ProgramClusterRoutes.NO_ENCAPSULATION,
        ),
        ("FELIX_NFTABLESMODE", "enabled", "nftables_mode", NFTablesMode.ENABLED),
        ("FELIX_IPTABLESBACKEND", "nft", "iptables_backend", IptablesBackend.NFT),
        ("FELIX_CHAININSERTMODE", "Append", "chain_insert_mode", ChainInsertMode.APPEND),
        ("FELIX_ROUTEREFRESHINTERVAL", "10.5", "route_refresh_interval", 10.5),
        ("FELIX_ROUTEREFRESHINTERVAL", "1m30s", "route_refresh_interval", 90.0),
        ("FELIX_ROUTEREFRESHINTERVAL", "1h0.5m250ms", "route_refresh_interval", 3630.25),
        ("FELIX_ROUTEREFRESHINTERVAL", "none", "route_refresh_interval", 0.0),
        ("FELIX_ROUTEREFRESHINTERVAL", "0", "route_refresh_interval", 0.0),
        ("FELIX_REPORTINGINTERVALSECS", "5", "reporting_interval_secs", 5.0),
        ("FELIX_LOGSEVERITYSCREEN", "Debug", "log_severity_screen", "DEBUG"),
        ("FELIX_LOGSEVERITYSCREEN", "none", "log_severity_screen", "NONE"),
        ("FELIX_RESOURCEDIRECTORY", "/tmp/x", "resource_directory", Path("/tmp/x")),
        ("FELIX_MQTTTOPICROOT", "a/b", "mqtt_topic_root", "a/b"),
        ("FELIX_MQTTPASSWORD", " none ", "mqtt_password", " none "),
        ("FELIX_MQTTCAFILE", "none", "mqtt_ca_file", None),
        ("FELIX_HEALTHHOST", "", "health_host", "localhost"),
        ("FELIX_HEALTHHOST", "::1", "health_host", "::1"),
        ("FELIX_PROMETHEUSMETRICSHOST", "fe80::1%eth0", "prometheus_metrics_host", "fe80::1%eth0"),
        ("FELIX_MQTTHOST", "mqtt_1.broker-x.Example.org.", "mqtt_host", "mqtt_1.broker-x.Example.org."),
    ],
)  # fmt: skip
def test_a_variable_sets_its_setting(variable: str, text: str, attribute: str, value: Any) -> None:
    settings, problems = environment(**{variable: text})
    assert problems == ()
    assert settings == replace(Settings(), **{attribute: value})


@pytest.mark.parametrize(
    ("variable", "text", "reason"),
    [
        ("FELIX_IPV6SUPPORT", "maybe", "is neither true nor false"),
        ("FELIX_HEALTHPORT", "65536", "is out of range"),
        ("FELIX_HEALTHPORT", "9099.5", "is not a whole number"),
        ("FELIX_ROUTEREFRESHINTERVAL", "-1", "is not a duration"),
        ("FELIX_ROUTEREFRESHINTERVAL", "nan", "is not a duration"),
        ("FELIX_ROUTEREFRESHINTERVAL", "1m30", "is not a duration"),
        ("FELIX_ROUTEREFRESHINTERVAL", "1d", "is not a duration"),
        ("FELIX_MQTTKEEPALIVE", "none", "is not possible here"),
        ("FELIX_INTERFACEPREFIX", "none", "is not possible here"),
        ("FELIX_INTERFACEPREFIX", "a b", "no interface name starts with"),
        ("FELIX_INTERFACEPREFIX", ",", "no interface name starts with"),
        ("FELIX_NATOUTGOINGADDRESS", "2001:db8::1", "is not an IPv4 address"),
        ("FELIX_NATOUTGOINGADDRESSIPV6", "192.0.2.1", "is not an IPv6 address"),
        ("FELIX_NATPORTRANGE", "2000:1000", "its ends are swapped"),
        ("FELIX_NATPORTRANGE", "0:10", "is out of range"),
        ("FELIX_NATPORTRANGE", "1000:", "is not a range"),
        ("FELIX_EXTERNALNODESCIDRLIST", "10.0.0.1/8", "has host bits set"),
        ("FELIX_DEVICEROUTEPROTOCOL", "256", "is out of range"),
        ("FELIX_IPTABLESBACKEND", "ebtables", "is not one of the legal words"),
        ("FELIX_CHAININSERTMODE", "none", "is not possible here"),
        ("FELIX_MQTTTOPICROOT", "a/#", "does not have that form"),
        ("FELIX_MQTTTOPICROOT", "/a/", "does not have that form"),
        ("NODENAME", "node 1", "is not a valid name"),
        ("FELIX_HEALTHHOST", "a..b", "is neither an address nor a DNS name"),
        ("FELIX_HEALTHHOST", "[::1]", "is neither an address nor a DNS name"),
        ("FELIX_PROMETHEUSMETRICSHOST", "a" * 64 + ".x", "is neither an address nor a DNS name"),
        ("FELIX_MQTTHOST", "mqtt://broker", "is neither an address nor a DNS name"),
    ],
)
def test_a_bad_value_is_a_problem_and_leaves_the_default(variable: str, text: str, reason: str) -> None:
    settings, (problem,) = environment(**{variable: text})
    assert settings == Settings()
    assert problem.kind is ProblemKind.BAD_VALUE
    assert problem.fatal
    assert reason in problem.reason
    assert problem.expected
    sentence = str(problem)
    assert problem.setting in sentence
    assert "environment" in sentence
    assert text in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("attribute", "most", "entry"),
    [
        ("interface_prefix", MAX_INTERFACE_PREFIXES, "c{}"),
        ("failsafe_inbound_host_ports", MAX_FAILSAFES, "{}"),
        ("failsafe_outbound_host_ports", MAX_FAILSAFES, "{}"),
        ("external_nodes_cidr_list", MAX_PREFIXES, "2001:db8::{:x}"),
        ("route_table_ranges", MAX_TABLE_RANGES, "{}"),
    ],
)
def test_a_list_has_a_limit_and_a_longer_one_is_a_short_problem(attribute: str, most: int, entry: str) -> None:
    name = DECLARATIONS[attribute].variable
    listed = [entry.format(number) for number in range(1, most + 2)]
    settings, problems = environment(**{name: ",".join(listed[:-1])})
    assert (len(getattr(settings, attribute)), problems) == (most, ())
    settings, (problem,) = environment(**{name: ",".join(listed)})
    assert settings == Settings()
    assert f"has {most + 1} entries, and may have {most}" in problem.reason
    assert len(str(problem)) < 400


def test_every_list_setting_is_known_to_have_a_limit() -> None:
    lists = {name for name, value in asdict(Settings()).items() if isinstance(value, tuple)}
    plain = {"nat_port_range", "log_action_rate_limit"}  # of a fixed number of parts
    assert lists - plain == {
        "interface_prefix",
        "failsafe_inbound_host_ports",
        "failsafe_outbound_host_ports",
        "external_nodes_cidr_list",
        "route_table_ranges",
    }


@pytest.mark.parametrize("protocol", [1, 2, 4, 11, 12, 16, 18, 42, 84, 99, 186, 189, 192, 196])
def test_the_protocol_of_other_routing_programs_is_refused(protocol: int) -> None:
    settings, (problem,) = environment(FELIX_DEVICEROUTEPROTOCOL=str(protocol))
    assert settings.device_route_protocol == 222
    assert "another routing program" in problem.reason


def test_a_password_is_never_shown() -> None:
    settings, problems = environment(FELIX_MQTTPASSWORD="s3cret", FELIX_MQTTHOST="broker")
    assert (settings.mqtt_password, settings.mqtt_enabled, problems) == ("s3cret", True, ())
    assert "s3cret" not in repr(settings)
    _, (problem,) = resolve([SettingsSource("x.toml", {"mqttPassword": {"a": "s3cret"}})])
    assert "s3cret" not in str(problem) + repr(problem)
    _, (problem,) = resolve([SettingsSource("FelixConfiguration default", {"mqttPassword": "s3cret"}, local=False)])
    assert problem.kind is ProblemKind.LOCAL_ONLY
    assert "s3cret" not in str(problem) + repr(problem)


def test_unknown_settings_and_settings_without_effect_are_told_apart_and_not_fatal() -> None:
    settings, problems = environment(FELIX_FOO="1", FELIX_BPFENABLED="true", FELIX_IPTABLESLOCKTIMEOUT="1")
    assert settings == Settings()
    assert {(problem.setting, problem.kind) for problem in problems} == {
        ("FOO", ProblemKind.UNKNOWN),
        ("BPFENABLED", ProblemKind.NO_EFFECT),
        ("IPTABLESLOCKTIMEOUT", ProblemKind.NO_EFFECT),
    }
    assert not any(problem.fatal for problem in problems)
    assert "setting BPFENABLED (environment): has no effect in felixpy yet" in [str(problem) for problem in problems]
    assert len({*problems, *environment(FELIX_FOO="1")[1]}) == 3


def test_what_the_kubelet_tells_of_a_service_is_nobody_s_setting() -> None:
    given = {
        "FELIX_MQTT_PORT": "tcp://10.96.0.5:1883",
        "FELIX_MQTT_SERVICE_HOST": "10.96.0.5",
        "FELIX_MQTT_SERVICE_PORT": "1883",
        "FELIX_MQTT_SERVICE_PORT_MQTT": "1883",
        "FELIX_MQTT_PORT_1883_TCP": "tcp://10.96.0.5:1883",
        "FELIX_MQTT_PORT_1883_TCP_PROTO": "tcp",
        "FELIX_MQTT_PORT_1883_TCP_PORT": "1883",
        "FELIX_MQTT_PORT_1883_TCP_ADDR": "10.96.0.5",
        "FELIX_PORT": "tcp://10.96.0.6:80",
        "FELIX_SERVICE_HOST": "10.96.0.6",
    }
    assert environment(**given) == (Settings(), ())


def test_a_variable_with_underscores_is_no_setting_and_says_which_one_it_may_be() -> None:
    settings, (problem,) = environment(FELIX_MQTT_PORT="1884")
    assert settings == Settings()
    assert (problem.kind, problem.fatal) == (ProblemKind.UNKNOWN, False)
    assert "FELIX_MQTTPORT" in str(problem)


def test_felix_hostname_wins_over_nodename() -> None:
    assert environment(NODENAME="a", FELIX_FELIXHOSTNAME="b")[0].nodename == "b"
    assert environment(NODENAME="a", FELIX_FELIXHOSTNAME="")[0].nodename == "a"


def test_every_setting_has_one_declaration_and_names_of_its_own() -> None:
    assert list(DECLARATIONS) == list(Settings.__struct_fields__)
    names = [name.lower() for declaration in DECLARATIONS.values() for name in (declaration.name, *declaration.also)]
    assert len(names) == len(set(names))
    assert all(declaration.doc.endswith(".") and declaration.parser.expected for declaration in DECLARATIONS.values())


def test_a_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "felixpy.toml"
    path.write_text(
        'IPv6Support = false\nroute_refresh_interval = "30s"\nInterfacePrefix = ["cali", "tap"]\n'
        "[mqtt]\nMQTTPort = 1884\nmqttTLS = true\nMQTTKeepalive = 5\n"
    )
    settings, problems = resolve([load_toml(path)])
    assert problems == ()
    assert settings == Settings(
        ipv6_support=False, route_refresh_interval=30.0, interface_prefix=("cali", "tap"), mqtt_port=1884,
        mqtt_tls=True, mqtt_keepalive=5.0,
    )  # fmt: skip
    assert load_toml(tmp_path / "missing.toml").values == {}


@pytest.mark.parametrize("text", [b"a = ", b"\xff", b"a = 1\na = 2", b"a = 1" + b"0" * 5000])
def test_a_broken_toml_file_is_one_sentence(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "felixpy.toml"
    path.write_bytes(text)
    with pytest.raises(SettingsFileError, match=r"felixpy\.toml: the settings file is not TOML: ") as caught:
        load_toml(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(SettingsFileError, match="cannot be read"):
        load_toml(tmp_path)


@pytest.mark.parametrize("value", [{"a": 1}, [[1]], [None], ["a", 1.5]])
def test_a_value_of_a_type_that_no_setting_has_is_a_bad_value(value: object) -> None:
    settings, (problem,) = resolve([SettingsSource("FelixConfiguration default", {"nftablesMode": value}, local=False)])
    assert settings == Settings()
    assert problem.kind is ProblemKind.BAD_VALUE
    assert not problem.fatal


OPTIONAL_PATHS = ("EndpointStatusPathPrefix", "ControlSocket")


@pytest.mark.parametrize("name", OPTIONAL_PATHS)
@pytest.mark.parametrize("text", ["", " ", "none", "None"])
def test_an_empty_path_is_none_in_a_file_and_not_set_in_the_environment(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "felixpy.toml"
    path.write_text(f'{name} = "{text}"\n')
    attribute = next(each.attribute for each in DECLARATIONS.values() if each.name == name)
    settings, problems = resolve([load_toml(path)])
    assert (getattr(settings, attribute), problems) == (None, ())
    settings, problems = environment(**{f"FELIX_{name.upper()}": text})
    expected = getattr(Settings(), attribute) if not text.strip() else None
    assert (getattr(settings, attribute), problems) == (expected, ())


def test_an_empty_path_in_the_stream_is_none_and_an_empty_variable_does_not_win_over_it() -> None:
    environ = load_environment({"FELIX_ENDPOINTSTATUSPATHPREFIX": ""})
    for value in ("", "none"):
        one = configuration("default", endpointStatusPathPrefix=value)
        settings, problems = resolve_stream([environ], [one], "n1", {})
        assert (settings.endpoint_status_path_prefix, problems) == (None, ())
    settings, problems = resolve(
        [SettingsSource("x.toml", {"ResourceDirectory": "", "HealthHost": "", "NATOutgoingAddress": ""})]
    )
    assert (settings, problems) == (Settings(), ())


def test_precedence_from_environment_to_default() -> None:
    name = "routeRefreshInterval"
    environ = load_environment({"FELIX_ROUTEREFRESHINTERVAL": "1"})
    file = SettingsSource("x.toml", {name: 2})
    objects = [
        configuration("default", **{name: "6s"}),
        configuration("b", "2026-01-02T00:00:00Z", nodeSelector="zone == 'a'", **{name: "5s"}),
        configuration("a", "2026-01-01T00:00:00Z", nodeSelector="has(zone)", **{name: "4s"}),
        configuration("z", "2025-01-01T00:00:00Z", nodeSelector="zone == 'b'", **{name: "9s"}),
        configuration("c", nodeSelector="all()", **{name: "9s"}),
        configuration("node.n1", **{name: "3s"}),
        configuration("node.n2", **{name: "9s"}),
    ]
    found = []
    for base, present in [([environ, file], objects), ([file], objects), ([], objects), ([], objects[:5]),
                          ([], [objects[0], objects[1], objects[3]]), ([], objects[:1]), ([], [])]:  # fmt: skip
        for order in (present, present[::-1]):
            settings, problems = resolve_stream(base, order, "n1", {"zone": "a"})
            assert problems == ()
        found.append(settings.route_refresh_interval)
    assert found == [1, 2, 3, 4, 5, 6, 90]


def test_a_bad_value_in_the_stream_falls_through_to_the_next_source() -> None:
    objects = [configuration("node.n1", maxIpsetSize="x", ipv6Support=None, logSeverityScreen=""),
               configuration("default", maxIpsetSize=1234, ipv6Support=False, logSeverityScreen="Debug")]  # fmt: skip
    settings, (problem,) = resolve_stream([], objects, "n1", {})
    assert settings == Settings(max_ipset_size=1234, ipv6_support=False, log_severity_screen="DEBUG")
    assert not problem.fatal
    assert str(problem).startswith(
        "setting MaxIpsetSize (FelixConfiguration node.n1): 'x' is not a whole number; expected"
    )


@pytest.mark.parametrize("name", ["healthHost", "prometheusMetricsHost"])
def test_a_host_in_the_stream_that_no_resolver_takes_is_passed_over(name: str) -> None:
    settings, (problem,) = resolve_stream([], [configuration("default", **{name: "a..b", "healthPort": 1})], "n1", {})
    assert settings == Settings(health_port=1)
    assert problem.kind is ProblemKind.BAD_VALUE
    assert not problem.fatal


def test_names_of_felix_configuration_that_differ_from_felix() -> None:
    spec: dict[str, Any] = {
        "reportingInterval": "1m0s",
        "externalNodesList": ["192.0.2.1"],
        "natPortRange": "1:2",
        "bpfEnabled": False,
    }
    settings, (problem,) = resolve_stream([], [configuration("default", **spec)], "n1", {})
    assert problem.kind is ProblemKind.NO_EFFECT
    assert settings == Settings(
        reporting_interval_secs=60.0, external_nodes_cidr_list=(Net.parse("192.0.2.1"),), nat_port_range=PortRange(1, 2)
    )


@pytest.mark.parametrize("selector", ["zone = 'a'", "", None, 5, ["all()"]])
def test_a_felix_configuration_that_selects_nothing_is_a_problem(selector: object) -> None:
    spec: dict[str, Any] = {"nodeSelector": selector, "healthPort": 1} if selector is not None else {"healthPort": 1}
    settings, (problem,) = resolve_stream([], [configuration("other", **spec)], "n1", {})
    assert settings == Settings()
    assert problem.setting == "nodeSelector"
    assert "FelixConfiguration other" in str(problem)


def test_the_table_has_a_row_per_setting() -> None:
    lines = settings_table_markdown().splitlines()
    assert len(lines) == len(DECLARATIONS) + 2
    assert all(line.count(" | ") == 4 for line in lines[2:])
    assert any(line.startswith("| IPForwarding | `FELIX_IPFORWARDING` | `Enabled` |") for line in lines)


raw_values = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.lists(st.text(max_size=5))
)


@given(
    st.dictionaries(st.sampled_from([item.name for item in DECLARATIONS.values()]) | st.text(max_size=10), raw_values)
)
def test_any_values_give_settings_and_problems(values: dict[str, object]) -> None:
    settings, problems = resolve([SettingsSource("x", values)])
    assert isinstance(settings, Settings)
    for problem in problems:
        assert "\n" not in str(problem)
        hash(problem)


def test_sources_renewed_while_running_change_what_can_change_and_name_the_rest() -> None:
    start = load_environment({"FELIX_MQTTHOST": "a.example", "FELIX_LOGSEVERITYSCREEN": "INFO"})
    settings = replace(resolve([start])[0], nodename="host-name")
    live = LiveSettings(settings, [start])
    later = load_environment({"FELIX_MQTTHOST": "b.example", "FELIX_LOGSEVERITYSCREEN": "DEBUG"})
    assert live.renew([later]) == ("MQTTHost",)
    assert live.take((), {}) == replace(settings, log_severity_screen="DEBUG")
    assert live.renew([start]) == ()


@pytest.mark.parametrize("number", ["3", "80", " 80 "])
def test_the_route_protocol_of_felix_is_taken_as_ours_and_said_once(number: str) -> None:
    settings, problems = resolve([SettingsSource("the environment", {"DeviceRouteProtocol": number})])
    assert settings.device_route_protocol == Settings().device_route_protocol == 222
    (problem,) = problems
    assert not problem.fatal and "felixpy keeps its own number" in str(problem)
