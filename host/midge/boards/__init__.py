"""Everything that handles `device/` from the laptop: so far, boards simulated on MicroPython's unix port.
Knows nothing of the broker or of MQTT.
"""
