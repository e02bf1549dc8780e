"""device/midge_find.py on the unix port and on CPython, against answers that zeroconf writes, on 127.0.0.1."""

import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from zeroconf import DNSAddress, DNSIncoming, DNSOutgoing, DNSPointer, DNSService

import brokers

SERVICE, INSTANCE, HOST = "_mqtt._tcp.local.", "midge on Laptop._mqtt._tcp.local.", "laptop.local."
ANSWERS = {
    "service": [
        DNSPointer(SERVICE, 12, 1, 120, INSTANCE),
        DNSService(INSTANCE, 33, 1, 120, 0, 0, 2883, HOST),
        DNSAddress(HOST, 1, 1, 120, socket.inet_aton("192.168.7.8")),
    ],
    "host": [DNSAddress(HOST, 1, 1, 120, socket.inet_aton("192.168.7.9"))],
    "no address": [DNSPointer(SERVICE, 12, 1, 120, INSTANCE)],
    "nothing": [],
}
# The memory of an ESP32's RTC, in a file: it survives the process as the memory survives deep sleep.
RTC = """
class RTC:
    def memory(self, data=None):
        with open({memory!r}, 'r+b') as file:
            if data is None:
                return file.read()
            assert len(data) <= 2048
            file.write(data)
class machine:
    RTC = RTC
sys.modules['machine'] = machine
"""
PROGRAM = """
import sys
{before}
sys.path.insert(0, 'device')
import midge_find
server = ('127.0.0.1', {port})
try:
    print(midge_find.find({arguments}server=server))
except OSError as error:
    print(error)
"""


class Responder:
    """Answers each question with *answers*; the first *deaf* ones get garbage, somebody else's answer, or nothing."""

    def __init__(self, answers: str, deaf: int = 0):
        self.questions: list[tuple[str, int]] = []
        self._answers = ANSWERS[answers]
        self._deaf = deaf
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                data, address = self._socket.recvfrom(1500)
            except OSError:
                return
            query = DNSIncoming(data)
            self.questions += [(question.name, question.type) for question in query.questions]
            answer = DNSOutgoing(0x8400, multicast=False, id_=query.id)
            for record in self._answers:
                answer.add_answer_at_time(record, 0)
            (packet,) = answer.packets()
            if len(self.questions) <= self._deaf:
                for bad in (b"", packet[:20], packet[:-3], b"\xff\xff" + packet[2:], bytes(12) + b"\xc0\x0c" * 8):
                    self._socket.sendto(bad, address)
            else:
                self._socket.sendto(packet, address)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def responder(request: pytest.FixtureRequest):
    made = Responder(*getattr(request, "param", ("service",)))
    yield made
    made.close()


@pytest.fixture(params=["micropython", "cpython"])
def find(request: pytest.FixtureRequest, responder: Responder):
    """Runs `find(ARGUMENTS)` there and returns what it printed."""
    interpreter = brokers.micropython() if request.param == "micropython" else sys.executable

    def run(arguments: str = "", before: str = "") -> str:
        program = PROGRAM.format(port=responder.port, arguments=arguments, before=before)
        done = subprocess.run([interpreter, "-c", program], cwd=brokers.ROOT, capture_output=True, text=True,
                              timeout=30, check=False)
        return done.stdout.strip() + done.stderr.strip()

    return run


def test_whoever_offers_mqtt_is_found(find, responder: Responder) -> None:
    assert find() == "('192.168.7.8', 2883)"
    assert responder.questions == [("_mqtt._tcp.local.", 12)]


@pytest.mark.parametrize("responder", [("host",)], indirect=True)
def test_a_host_is_found_by_its_name(find, responder: Responder) -> None:
    assert find("'Laptop.local', ") == "('192.168.7.9', 1883)"
    assert responder.questions == [("Laptop.local.", 1)]


@pytest.mark.parametrize("responder", [("service", 2)], indirect=True)
def test_it_asks_again_and_garbage_is_no_answer(find, responder: Responder) -> None:
    assert find() == "('192.168.7.8', 2883)"
    assert len(responder.questions) == 3


@pytest.mark.parametrize("responder", [("no address",), ("nothing",)], indirect=True)
def test_nobody_in_time_is_an_error(find, responder: Responder) -> None:
    assert find("timeout_ms=600, ") == "nobody answers for _mqtt._tcp.local"


def test_the_address_is_remembered_for_the_next_wake(find, responder: Responder, tmp_path: Path) -> None:
    cache = tmp_path / "host.txt"
    arguments = f"cache='{cache}', "
    assert [find(arguments), find(arguments)] == ["('192.168.7.8', 2883)"] * 2
    assert len(responder.questions) == 1, "the second wake asks nobody"
    assert find(arguments + "fresh=True, ") == "('192.168.7.8', 2883)"
    assert len(responder.questions) == 2
    cache.write_bytes(cache.read_bytes()[:-3])
    assert find(arguments) == "('192.168.7.8', 2883)"
    assert len(responder.questions) == 3, "a file that is cut short is not believed"


@pytest.mark.parametrize("stored", [b"", b"\xff" * 2048, b"a program's own " * 128])
def test_the_address_is_remembered_in_the_rtc_s_memory_beside_what_else_is_there(
    find, responder: Responder, tmp_path: Path, stored: bytes
) -> None:
    memory = tmp_path / "rtc"
    memory.write_bytes(stored)
    arguments, rtc = "cache=midge_find.RTCCache(), ", RTC.format(memory=str(memory))
    assert [find(arguments, rtc), find(arguments, rtc)] == ["('192.168.7.8', 2883)"] * 2
    assert len(responder.questions) == 1, "the second wake asks nobody"
    kept = memory.read_bytes()
    assert kept[:2000] == stored[:2000].ljust(2000, b"\0") and len(kept) == 2048
    damaged = bytearray(kept)
    damaged[2005] ^= 1
    memory.write_bytes(damaged)
    assert find(arguments, rtc) == "('192.168.7.8', 2883)"
    assert len(responder.questions) == 2, "what has decayed is not believed"
