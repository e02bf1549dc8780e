"""Links to other brokers: the boards', other people's.
Knows MQTT as a client of both sides; stores nothing itself.
"""

from midge.bridge.bridge import Bridge

__all__ = ["Bridge"]
