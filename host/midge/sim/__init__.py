"""Fleets of simulated boards: real programs on MicroPython's unix port, behind links that delay and lose, asleep most
of the time; what arrived, and what it would cost a battery. Stands on `boards` and `config`; knows no broker's inside.
"""
