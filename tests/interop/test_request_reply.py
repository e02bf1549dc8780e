"""`midge serve` and `midge rr` with each other and with unmodified paho-mqtt, mosquitto_rr and mosquitto_pub, in MQTT
5.0 and 3.1.1, through our broker and Mosquitto; the board's client asks and answers, too.
"""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import paho.mqtt.client as mqtt
import pytest

import brokers
from paho_peer import Paho, properties

DEADLINE_S = 30
UPPER = ("sh", "-c", 'tr a-z A-Z; echo " $MIDGE_TOPIC"')
MIDGE = [sys.executable, "-m", "midge"]


@pytest.fixture(scope="module", params=[brokers.HOST, brokers.MOSQUITTO_PARAM])
def broker(request: pytest.FixtureRequest) -> Iterator[brokers.RunningBroker]:
    with brokers.START[request.param]() as running:
        yield running


Serve = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def serve(broker: brokers.RunningBroker) -> Iterator[Serve]:
    """Starts `midge serve` and waits until it answers; ended with the test, in good order."""
    with contextlib.ExitStack() as stack:
        yield lambda *argv: start_serve(stack, broker, *argv)


def start_serve(stack: contextlib.ExitStack, broker: brokers.RunningBroker, *argv: str) -> "subprocess.Popen[str]":
    command = [*MIDGE, "serve", "-h", "127.0.0.1", "-p", str(broker.port), *argv]
    process = stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    stack.callback(process.terminate)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("answering on ")
    return process


def ask(broker: brokers.RunningBroker, *argv: str, tool: list[str] | None = None) -> "subprocess.CompletedProcess[str]":
    command = [*(tool or [*MIDGE, "rr"]), "-h", "127.0.0.1", "-p", str(broker.port), "-W", "20", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


@pytest.mark.parametrize("broker", [brokers.HOST, brokers.BOARD, brokers.MOSQUITTO_PARAM], indirect=True)
def test_rr_and_mosquitto_rr_are_answered(broker: brokers.RunningBroker, serve: Serve) -> None:
    serve("-t", "up", "-t", "more/+", "--content-type", "text/x", "--", *UPPER)
    assert ask(broker, "-t", "up", "-m", "hello", "-q", "2", "-F", "%p|%C|%q").stdout == "HELLO up\n|text/x|1\n"
    assert ask(broker, "-V", "311", "-t", "more/a", "-m", "hello").stdout == "HELLO more/a\n\n"
    theirs = ["mosquitto_rr"]
    told = ask(broker, "-t", "up", "-e", "my/answer", "-m", "x", "-F", "%t|%p|%D|%q", "-D", "publish",
               "correlation-data", "17", tool=theirs)  # fmt: skip
    assert told.stdout == "my/answer|X up\n|17|0\n"
    # the convention, by hand
    told = ask(broker, "-V", "311", "-t", "up/request/7", "-e", "up/response/7", "-m", "y", tool=theirs)
    assert told.stdout == "Y up\n\n"


@pytest.mark.parametrize("version", [mqtt.MQTTv311, mqtt.MQTTv5])
def test_paho_is_answered(version: int, broker: brokers.RunningBroker, serve: Serve) -> None:
    serve("-t", "up", "--", *UPPER)
    peer = Paho(broker.port, version=version)
    if version == mqtt.MQTTv5:
        peer.subscribe("back", qos=1)
        asked = properties("PUBLISH", ResponseTopic="back", CorrelationData=b"\xff\0")
        peer.publish("up", "hello", 1, pub_properties=asked)
        answer = peer.receive()
        assert (answer.topic, answer.payload) == ("back", b"HELLO up\n")
        assert answer.properties.CorrelationData == b"\xff\0"
    else:
        peer.subscribe("up/response/me", qos=1)
        peer.publish("up/request/me", "hello", 1)
        assert peer.receive().payload == b"HELLO up\n"
    peer.disconnect()


def test_paho_answers_rr(broker: brokers.RunningBroker) -> None:
    responder = Paho(broker.port, version=mqtt.MQTTv5)

    def answer(client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        correlation = message.properties.CorrelationData
        stray = properties("PUBLISH", CorrelationData=b"another")
        client.publish(message.properties.ResponseTopic, b"not for you", 1, properties=stray)
        told = properties("PUBLISH", CorrelationData=correlation)
        client.publish(message.properties.ResponseTopic, message.payload * 2, 1, properties=told)

    responder.client.on_message = answer
    responder.subscribe("double", qos=1)
    assert ask(broker, "-t", "double", "-m", "ab").stdout == "abab\n"
    responder.disconnect()


@pytest.mark.parametrize("version", ["5", "311"])
def test_a_command_that_fails_is_an_error_for_who_asked(
    version: str, broker: brokers.RunningBroker, serve: Serve
) -> None:
    serve("-t", "fails", "--", "sh", "-c", "echo nothing here >&2; exit 3")
    told = ask(broker, "-V", version, "-t", "fails", "-n")
    assert (told.returncode, told.stdout) == (1, "")
    assert "exit code 3: nothing here" in told.stderr


def test_a_command_that_takes_too_long_is_ended(broker: brokers.RunningBroker, serve: Serve) -> None:
    serve("-t", "slow", "--timeout", "0.3", "--", "sleep", "60")
    told = ask(broker, "-t", "slow", "-n")
    assert (told.returncode, told.stderr) == (1, "Error: no answer within 0.3 s\n")


def test_more_than_may_wait_is_told_that_it_is_busy(broker: brokers.RunningBroker, serve: Serve) -> None:
    serve("-t", "busy", "-j", "1", "--waiting", "1", "--", "sleep", "2")
    peer = Paho(broker.port, version=mqtt.MQTTv5)
    peer.subscribe("back", qos=0)
    for number in range(4):  # QoS 0: the broker holds nothing back
        asked = properties("PUBLISH", ResponseTopic="back", CorrelationData=b"%d" % number)
        peer.publish("busy", "", 0, pub_properties=asked)
    answers = [peer.receive(DEADLINE_S) for _ in range(4)]
    errors = [getattr(each.properties, "UserProperty", []) for each in answers]
    assert errors.count([("error", "busy")]) == 2
    assert errors.count([]) == 2
    peer.disconnect()


def test_responders_of_a_group_share_the_requests(broker: brokers.RunningBroker, serve: Serve) -> None:
    for number in range(2):
        serve("-t", "who", "--group", "farm", "-j", "1", "--", "sh", "-c", f"echo {number}; sleep 0.1")
    peer = Paho(broker.port, version=mqtt.MQTTv5)
    peer.subscribe("back", qos=1)
    for number in range(12):
        asked = properties("PUBLISH", ResponseTopic="back", CorrelationData=b"%d" % number)
        peer.publish("who", "", 1, pub_properties=asked)
    answers = [peer.receive(DEADLINE_S) for _ in range(12)]
    assert {each.properties.CorrelationData for each in answers} == {b"%d" % number for number in range(12)}
    by_responder = [sum(each.payload == b"%d\n" % number for each in answers) for number in range(2)]
    assert min(by_responder) >= 1
    assert sum(by_responder) == 12
    peer.disconnect()


# Mosquitto 2.0 drops what a dead member of a group held.
@pytest.mark.parametrize("broker", ["host"], indirect=True)
def test_what_a_killed_responder_had_begun_goes_to_another_of_its_group(
    broker: brokers.RunningBroker, serve: Serve
) -> None:
    first = serve("-t", "work", "--group", "farm", "-j", "1", "--", "sleep", "60")
    peer = Paho(broker.port, version=mqtt.MQTTv5)
    peer.subscribe("back", qos=1)
    peer.publish("work", "job", 1, pub_properties=properties("PUBLISH", ResponseTopic="back"))
    time.sleep(0.5)  # it has it by then, or is killed before: the answer is the same
    serve("-t", "work", "--group", "farm", "--", "echo", "done")
    first.send_signal(signal.SIGKILL)
    assert peer.receive(DEADLINE_S).payload == b"done\n"
    peer.disconnect()


def test_a_queue_keeps_requests_until_somebody_answers(host_broker: brokers.RunningBroker) -> None:
    peer = Paho(host_broker.port, version=mqtt.MQTTv5)
    peer.subscribe("back", qos=1)
    told = properties("PUBLISH", ResponseTopic="back", CorrelationData=b"7")
    peer.publish("$queue/asked", "early", 1, pub_properties=told)
    with contextlib.ExitStack() as stack:
        start_serve(stack, host_broker, "-t", "$queue/asked", "--", "tr", "a-z", "A-Z")
        answer = peer.receive(DEADLINE_S)
        assert (answer.payload, answer.properties.CorrelationData) == (b"EARLY", b"7")
        assert ask(host_broker, "-t", "$queue/asked", "-m", "late", "-q", "1").stdout == "LATE\n"
    refused = ask(host_broker, "-V", "311", "-t", "$queue/asked", "-m", "late")
    assert (refused.returncode, "a topic that feeds a queue" in refused.stderr) == (1, True)
    peer.disconnect()


def test_a_signal_lets_it_finish_what_it_began(broker: brokers.RunningBroker, serve: Serve, tmp_path) -> None:
    process = serve("-t", "last", "--", "sh", "-c", f"touch {tmp_path}/began; sleep 1; echo done")
    peer = Paho(broker.port, version=mqtt.MQTTv5)
    peer.subscribe("back", qos=1)
    peer.publish("last", "", 1, pub_properties=properties("PUBLISH", ResponseTopic="back"))
    deadline = time.monotonic() + DEADLINE_S
    while not (tmp_path / "began").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert peer.receive(DEADLINE_S).payload == b"done\n"
    assert process.wait(DEADLINE_S) == 0
    peer.disconnect()


def test_a_stale_request_and_what_nobody_waits_for_are_not_run(
    broker: brokers.RunningBroker, serve: Serve, tmp_path
) -> None:
    peer = Paho(broker.port, version=mqtt.MQTTv5)
    peer.publish("stale", "old", 1, retain=True, pub_properties=properties("PUBLISH", ResponseTopic="back"))
    serve("-t", "stale", "--", "sh", "-c", f"cat >> {tmp_path}/ran; echo done")
    peer.publish("stale", "no response topic", 1)
    assert ask(broker, "-t", "stale", "-m", "asked").stdout == "done\n\n"
    assert (tmp_path / "ran").read_text() == "asked"
    peer.publish("stale", "", 1, retain=True)
    peer.disconnect()


BOARD = """
import asyncio, sys
sys.path.insert(0, "device")
from midge_mqtt5 import Client

async def main():
    client = Client("board", "127.0.0.1", int(sys.argv[1]))
    await client.connect()
    print("asked:", (await client.request("up", b"hello", timeout=20)).decode())
    for topic in "down", "board/none":
        try:
            print("asked:", await client.request(topic, b"hello", timeout=20))
        except OSError as error:
            print("no answer:", error)
        await client.serve("board/none", lambda payload: payload.decode().no_such_method())
    await client.serve("board/double", lambda payload: payload * 2)
    print("serving")
    await asyncio.sleep(30)

asyncio.run(main())
"""


def test_the_boards_client_asks_and_answers(broker: brokers.RunningBroker, serve: Serve, tmp_path) -> None:
    serve("-t", "up", "--", *UPPER)
    serve("-t", "down", "--", "sh", "-c", "echo complaint >&2; exit 3")
    program = tmp_path / "board.py"
    program.write_text(BOARD)
    command = [brokers.micropython(), str(program), str(broker.port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=brokers.ROOT) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "asked: HELLO up\n"
            assert process.stdout.readline() == "\n"
            assert process.stdout.readline() == "no answer: exit code 3\n"
            assert process.stdout.readline().startswith("no answer: AttributeError")
            assert process.stdout.readline() == "serving\n"
            told = ask(broker, "-t", "board/double", "-m", "ab", "--json")
            assert json.loads(told.stdout)["payload"] == "abab"
        finally:
            process.kill()
