"""MQTT 3.1, 3.1.1 and 5.0: bytes to packets and packets to bytes, sans-IO.
Knows nothing of sockets, sessions or time.
"""
