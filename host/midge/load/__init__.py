"""Load for MQTT brokers: clients that compare all that comes with what must come, and the shapes of traffic.

`midge bench` and the benchmarks use it; nothing of the broker does.
"""
