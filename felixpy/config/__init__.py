"""Settings: one typed declaration per setting, from which parsing, precedence, documentation and help follow.

Precedence, highest first: environment, file, FelixConfiguration ``node.<name>``, the oldest FelixConfiguration with a
matching ``nodeSelector``, FelixConfiguration ``default``, built-in default. Nothing here keeps state: who wants the
settings after a change resolves all sources again.
"""

from felixpy.config.live import LiveSettings
from felixpy.config.resolve import ProblemKind, SettingProblem, resolve, resolve_stream
from felixpy.config.settings import DECLARATIONS, DEFAULT_MARK_MASK, Declaration, Settings
from felixpy.config.sources import SettingsFileError, SettingsSource, load_environment, load_toml
from felixpy.config.table import settings_table_markdown
from felixpy.config.values import (
    AllowAction,
    ChainInsertMode,
    DatastoreType,
    DenyAction,
    EndpointToHostAction,
    EndpointWithoutProfileAction,
    Failsafe,
    IptablesBackend,
    MasqAgentSources,
    MqttPeers,
    NATOutgoingExclusions,
    NFTablesMode,
    PortRange,
    ProgramClusterRoutes,
    Rate,
    ServiceLoopPrevention,
    TableRange,
    tables_of,
)

__all__ = [
    "DECLARATIONS",
    "DEFAULT_MARK_MASK",
    "AllowAction",
    "ChainInsertMode",
    "DatastoreType",
    "Declaration",
    "DenyAction",
    "EndpointToHostAction",
    "EndpointWithoutProfileAction",
    "Failsafe",
    "IptablesBackend",
    "LiveSettings",
    "MasqAgentSources",
    "MqttPeers",
    "NATOutgoingExclusions",
    "NFTablesMode",
    "PortRange",
    "ProblemKind",
    "ProgramClusterRoutes",
    "Rate",
    "ServiceLoopPrevention",
    "SettingProblem",
    "Settings",
    "SettingsFileError",
    "SettingsSource",
    "TableRange",
    "load_environment",
    "load_toml",
    "resolve",
    "resolve_stream",
    "settings_table_markdown",
    "tables_of",
]
