"""midge: MQTT for boards, the host side. Version only; every part is imported from its own package."""

__version__ = "0.1.0"
