"""Settings of Felix that are known here but have no effect yet, so that a user is told so instead of "unknown".

A name moves from here to ``felixpy.config.settings`` in the change that gives it its effect.
"""

from __future__ import annotations

_PREFIXES = (
    "bpf",
    "debug",
    "endpointreporting",
    "etcd",
    "flowlogs",
    "go",
    "ipinip",
    "ipip",
    "istio",
    "localsubnetl2reachability",
    "metadata",
    "prometheus",
    "typha",
    "usagereporting",
    "vxlan",
    "windows",
    "xdp",
)

_NAMES = frozenset(
    name.lower()
    for name in (
        "AWSSrcDstCheck",
        "CgroupV2Path",
        "DataplaneDriver",
        "DataplaneWatchdogTimeout",
        "EarlyLogSeverityScreen",
        "FeatureDetectOverride",
        "FeatureGates",
        "GenericXDPEnabled",
        "HealthTimeoutOverrides",
        "IPv4ElevatedRoutePriority",
        "IPv6ElevatedRoutePriority",
        "InterfaceExclude",
        "IptablesLockFilePath",
        "IptablesLockProbeInterval",
        "IptablesLockProbeIntervalMillis",
        "IptablesLockTimeout",
        "IptablesLockTimeoutSecs",
        "IptablesMangleAllowAction",
        "IptablesPostWriteCheckInterval",
        "IptablesPostWriteCheckIntervalSecs",
        "KubeNodePortRanges",
        "LiveMigrationRouteConvergenceTime",
        "LogDebugFilenameRegex",
        "LogFilePath",
        "LogSeverityFile",
        "LogSeveritySys",
        "MTUIfacePattern",
        "NFTablesFlowTableDataIfacePattern",
        "NFTablesFlowTableOffload",
        "NetlinkTimeout",
        "NetlinkTimeoutSecs",
        "NftablesMangleAllowAction",
        "OpenstackRegion",
        "PolicySyncPathPrefix",
        "ReportingTTL",
        "ReportingTTLSecs",
        "RequireMTUFile",
        "RouteSource",
        "RouteSyncDisabled",
        "SidecarAccelerationEnabled",
        "UseInternalDataplaneDriver",
    )
)


def has_no_effect(name: str) -> bool:
    """Whether a name, in lower case, is a setting of Felix that felixpy knows but does not act upon."""
    return name in _NAMES or name.startswith(_PREFIXES)
