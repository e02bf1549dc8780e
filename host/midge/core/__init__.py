"""What a broker decides: sessions, routing, retained messages, in-flight windows, queues, limits.
Sans-IO: knows no socket, no clock, no thread; time (s since the epoch) and what lasts are passed in and out.
"""
