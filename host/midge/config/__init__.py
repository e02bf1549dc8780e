"""The configuration file: its keys, their defaults and checks, and errors that say what to do.
Knows the meaning of each key, not how the parts carry it out.

A new key is one line in `keys.py`: the checks, the errors, `--print-config` and docs/configuration.md follow it.
"""

from midge.config.access import AccessSection, JwtSection
from midge.config.bridges import Address, Bridge, BridgeTopic, parse_address
from midge.config.errors import ConfigError
from midge.config.history import History
from midge.config.keys import (
    Config,
    DiscoverySection,
    HttpSection,
    LimitsSection,
    Listener,
    ListenerLimits,
    LogSection,
    StoreSection,
    SysSection,
)
from midge.config.load import load, parse

__all__ = [
    "AccessSection",
    "Address",
    "Bridge",
    "BridgeTopic",
    "Config",
    "ConfigError",
    "DiscoverySection",
    "History",
    "HttpSection",
    "JwtSection",
    "LimitsSection",
    "Listener",
    "ListenerLimits",
    "LogSection",
    "StoreSection",
    "SysSection",
    "load",
    "parse",
    "parse_address",
]
