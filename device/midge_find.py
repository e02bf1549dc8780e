"""Finds a host by mDNS (RFC 6762) in plain UDP, for MicroPython 1.22+ and CPython: a name, or whoever offers MQTT.
It must not know what is done with the address; it remembers it in a file, or in whatever the caller gives."""

# from midge_find import find
# host, port = find(cache="/host.txt")            # whoever announces _mqtt._tcp; OSError: nobody did in time
# host, port = find("laptop.local", cache="/host.txt")
# client = Client("kitchen", host, port)
# ... and when that address doesn't answer: find(..., fresh=True)
#
# cache is a file's name, or an object with read() -> bytes and write(bytes), such as RTCCache here, whose content
# survives deep sleep. With an address in it nothing is sent, and the radio is needed for MQTT alone.
#
# We ask from an ordinary port, not from 5353: then whoever answers does so to us alone (RFC 6762 §6.7), no group has
# to be joined, and no filter of the radio that swallows multicast (ESP32, IDF issue 2403) is in the way.
import random
import socket
import struct
import time

_GROUP = ("224.0.0.251", 5353)
_SERVICE = "_mqtt._tcp.local"
_A, _PTR, _SRV = 1, 12, 33
# Asked again after 1, 2, 4 ... s in RFC 6762 §5.2; a board is awake for less, and a lost datagram is common on Wi-Fi.
_AGAIN_MS = 300


class RTCCache:
    # The RTC's memory, of which we take *size* bytes from *at* on (an ESP32 has 2048).
    def __init__(self, at=2000, size=48):
        from machine import RTC

        self.rtc = RTC()
        self.at = at
        self.size = size

    def read(self):
        return self.rtc.memory()[self.at : self.at + self.size]

    def write(self, data):
        memory = self.rtc.memory()
        memory += bytes(max(0, self.at - len(memory)))
        data = (data + bytes(self.size))[: self.size]
        self.rtc.memory(memory[: self.at] + data + memory[self.at + self.size :])


class _FileCache:
    def __init__(self, path):
        self.path = path

    def read(self):
        with open(self.path, "rb") as file:
            return file.read()

    def write(self, data):
        with open(self.path, "wb") as file:
            file.write(data)


# (address, port). *server*: whom to ask, for networks without multicast and for tests.
def find(name=_SERVICE, timeout_ms=3000, cache=None, fresh=False, server=_GROUP):
    if isinstance(cache, str):
        cache = _FileCache(cache)
    if cache and not fresh:
        found = _recall(cache)
        if found:
            return found
    found = _ask(name, timeout_ms, server)
    if cache:
        line = b"%s %d\n" % (found[0].encode(), found[1])
        cache.write(line + b"%d\n" % (sum(line) & 255))  # a write that a power cut ends must not be believed
    return found


def _recall(cache):
    try:
        line, check = cache.read().split(b"\n")[:2]
        address, port = line.split(b" ")
        if int(check) == sum(line + b"\n") & 255:
            return address.decode(), int(port)
    except (OSError, ValueError):
        pass  # there is none yet, or it is no address


def _ask(name, timeout_ms, server):
    number = random.getrandbits(16)
    kind = _PTR if name.startswith("_") else _A
    query = struct.pack(">HHHHHH", number, 0, 1, 0, 0, 0) + _encode(name) + struct.pack(">HH", kind, 1)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.settimeout(_AGAIN_MS / 1000)
        address = socket.getaddrinfo(server[0], server[1])[0][-1]
        for _ in range(max(1, timeout_ms // _AGAIN_MS)):
            asked = time.time()
            try:
                sock.sendto(query, address)
                while time.time() - asked <= 1:  # answers to others keep none of ours away
                    found = _read(sock.recv(1500), number, name)
                    if found:
                        return found
            except OSError:
                pass  # nobody within this time, or the network isn't up yet
        raise OSError("nobody answers for " + name)
    finally:
        sock.close()


def _encode(name):
    return b"".join(bytes((len(label),)) + label.encode() for label in name.split(".")) + b"\0"


# The address and port in an answer; None: it is none of ours, or holds no address.
def _read(data, number, name):
    if len(data) < 12:
        return None
    try:
        answered, flags, questions, *counts = struct.unpack(">HHHHHH", data[:12])
        if answered != number or not flags & 0x8000:
            return None
        at = 12
        for _ in range(questions):
            at = _name(data, at)[1] + 4
        addresses = {}
        services = {}
        pointers = []
        for _ in range(sum(counts)):
            owner, at = _name(data, at)
            kind = data[at] << 8 | data[at + 1]
            length = data[at + 8] << 8 | data[at + 9]
            at += 10
            if at + length > len(data):
                return None
            if kind == _A and length == 4:
                addresses[owner] = ".".join(str(byte) for byte in data[at : at + 4])
            elif kind == _SRV:
                services[owner] = (_name(data, at + 6)[0], data[at + 4] << 8 | data[at + 5])
            elif kind == _PTR and owner == name.lower():
                pointers.append(_name(data, at)[0])
            at += length
    except (IndexError, ValueError):
        return None  # cut short, or no DNS at all
    if name.lower() in addresses:
        return addresses[name.lower()], 1883
    for pointer in pointers:
        host, port = services.get(pointer, (None, 0))
        if host in addresses:
            return addresses[host], port
    return None


# The name at data[at:], in lower case since DNS compares so, and where it ends.
def _name(data, at):
    labels = []
    end = 0
    while data[at]:
        if data[at] >= 0xC0:  # the rest stands earlier (RFC 1035 §4.1.4)
            end = end or at + 2
            before = at
            at = (data[at] & 63) << 8 | data[at + 1]
            if at >= before:
                raise ValueError("a pointer that doesn't point back")
            continue
        labels.append(bytes(data[at + 1 : at + 1 + data[at]]).decode().lower())
        at += 1 + data[at]
    return ".".join(labels), end or at + 1
