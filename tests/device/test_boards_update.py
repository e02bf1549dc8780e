"""A new version over MQTT, to the unix port as the board: killed at every chunk, a version that crashes, one that never
connects, one that isn't signed. The host's broker carries it."""

import json
import queue
import threading
from pathlib import Path

import pytest

from board_on_a_cable import DEADLINE_S, BoardOnACable
from midge.boards import bundle, update
from midge.boards.link import BrokerLink
from midge.boards.simulate import BoardError
from midge.cli import main
from paho_peer import Paho

PROGRAM = """
import asyncio
from board import Board
{extra}
async def main():
    board = Board()
    {before}
    await board.connect()
    await board.publish("version", "{version}", retain=True)
    while True:
        await asyncio.sleep(1)
"""


def program(folder: Path, version: str, before: str = "pass", bytes_more: int = 0) -> bytes:
    # What can't be compressed, so that there are several chunks.
    extra = "".join(f"_{number} = b'{number:0100}'\n" for number in range(bytes_more // 110))
    path = folder / "app.py"
    path.write_text(PROGRAM.format(version=version, before=before, extra=extra))
    return bundle.compile_file(path, None, "app.py")


@pytest.fixture(scope="module")
def files():
    return bundle.make("serial")


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@pytest.fixture
def board(files, folder, host_broker):
    """It runs version "one", deployed before."""
    flash = folder / "flash"
    version = {**files.version, "app.mpy": program(folder, "one")}
    for path, data in {**files.root, **{f"midge_a/{name}": data for name, data in version.items()}}.items():
        (flash / path).parent.mkdir(parents=True, exist_ok=True)
        (flash / path).write_bytes(data)
    (flash / "midge_a" / "manifest.json").write_bytes(bundle.Bundle(version).manifest())
    settings(flash, host_broker.port)
    with BoardOnACable(folder) as board:
        yield board


def settings(flash: Path, port: int, **more: object) -> None:
    (flash / "midge.json").write_text(json.dumps({
        "name": "kitchen", "broker": {"host": "127.0.0.1", "port": port}, "watchdog_s": 0,
        "update": {"trial_s": 60}, **more,
    }))  # fmt: skip


@pytest.fixture
def laptop(host_broker, board):
    paho = Paho(host_broker.port)
    paho.subscribe("kitchen/version", qos=1)
    await_version(paho, "one")
    yield paho
    paho.disconnect()


@pytest.fixture
def link(host_broker):
    with BrokerLink(f"mqtt://127.0.0.1:{host_broker.port}") as link:
        yield link


def await_version(laptop: Paho, version: str) -> None:
    while laptop.receive(DEADLINE_S).payload.decode() != version:
        pass


def state(board: BoardOnACable) -> dict:
    return json.loads((board.flash / "midge_slot.json").read_text())


def test_a_new_version_arrives_is_checked_and_runs(board, laptop, folder, capsys):
    program(folder, "two")
    extra = folder / "words.txt"
    extra.write_text("spoken")
    code = main(["boards", "update", "kitchen", str(folder / "app.py"), str(extra), "--remove", "midge_serial.mpy",
                 "--broker", f"mqtt://127.0.0.1:{laptop.port}"])  # fmt: skip
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "kitchen runs version" in out
    await_version(laptop, "two")
    assert state(board) == {"slot": "b"}
    before, now = ({path.name for path in (board.flash / f"midge_{slot}").iterdir()} for slot in "ab")
    assert now == (before | {"words.txt"}) - {"midge_serial.mpy"}
    manifest = json.loads((board.flash / "midge_b" / "manifest.json").read_text())
    for name, (size, sha256) in manifest["files"].items():
        data = (board.flash / "midge_b" / name).read_bytes()
        assert (len(data), bundle.sha256(data)) == (size, sha256)
    # Whoever asks later is told which version runs, and a second update goes into the first directory.
    program(folder, "three")
    assert main(["boards", "update", "kitchen", str(folder / "app.py"), "--broker", f"127.0.0.1:{laptop.port}"]) == 0
    await_version(laptop, "three")
    assert state(board) == {"slot": "a"}


def test_the_board_may_lose_its_power_after_each_chunk(board, laptop, folder, link, monkeypatch):
    monkeypatch.setattr(update, "_ANSWER_S", 0.4)
    new = bundle.Bundle({"app.mpy": program(folder, "two", bytes_more=4000), "words.txt": b"spoken" * 300})
    job = update.Update(link, "kitchen", new)
    hear = job._hear_at
    seen: list[bytes] = []
    cuts: queue.Queue = queue.Queue()
    switched_early = []

    def hear_and_cut(topic: str, payload: bytes, is_retained: bool) -> None:
        hear(topic, payload, is_retained)
        if payload not in seen:
            seen.append(payload)
            cuts.put(True)

    monkeypatch.setattr(job, "_hear_at", hear_and_cut)

    def kill() -> None:
        while cuts.get():
            board.cut_power()
            switched_early.append((board.flash / "midge_slot.json").exists())

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    job.run(patience_s=60, trial_s=50)
    cuts.put(False)
    thread.join(DEADLINE_S)
    await_version(laptop, "two")
    assert len(seen) >= job.size // update.CHUNK_BYTES
    assert len(switched_early) == len(seen) and not any(switched_early[:-1])
    assert (board.flash / "midge_b" / "words.txt").read_bytes() == new.version["words.txt"]
    assert not [path for path in (board.flash / "midge_b").iterdir() if path.suffix in (".part", ".new")]


@pytest.mark.parametrize(
    "before, why",
    [
        ("1 // 0", "ZeroDivisionError"),
        ("await asyncio.sleep(1000)", "it did not connect within 2 s"),
        ("import machine; machine.reset()", "it did not connect before the board was reset or hung"),
    ],
)
def test_a_version_that_fails_gives_way_to_the_one_before(board, laptop, folder, link, before, why):
    settings(board.flash, laptop.port, update={"trial_s": 2})
    job = update.Update(link, "kitchen", bundle.Bundle({"app.mpy": program(folder, "bad", before)}))
    with pytest.raises(BoardError, match="kitchen went back to its old version: ") as failed:
        job.run(trial_s=50)
    assert why in str(failed.value)
    await_version(laptop, "one")
    assert state(board) == {"slot": "a"}
    # And the next one is welcome.
    settings(board.flash, laptop.port)
    update.Update(link, "kitchen", bundle.Bundle({"app.mpy": program(folder, "two")})).run(trial_s=50)
    await_version(laptop, "two")


def test_with_a_key_only_who_has_it_may_update(board, laptop, folder, link, tmp_path, capsys):
    settings(board.flash, laptop.port, update={"key": "sixteen letters!", "trial_s": 60})
    board.cut_power()
    await_version(laptop, "one")
    new = bundle.Bundle({"app.mpy": program(folder, "two")})
    for key in (None, b"seventeen letters"):
        with pytest.raises(BoardError, match="kitchen refuses it: ValueError: not signed with this board's key"):
            update.Update(link, "kitchen", new, key=key).run()
    key_file = tmp_path / "key"
    key_file.write_text("sixteen letters!\n")
    assert main(["boards", "update", "kitchen", str(folder / "app.py"), "--key-file", str(key_file),
                 "--broker", f"127.0.0.1:{laptop.port}"]) == 0  # fmt: skip
    await_version(laptop, "two")


def test_what_can_not_be_is_refused_in_words(board, laptop, link, tmp_path, capsys):
    bad = update.Update(link, "kitchen", bundle.Bundle({"../main.py": b"x"}))
    with pytest.raises(BoardError, match=r"kitchen refuses it: ValueError: file name '../main.py'"):
        bad.run()
    huge = update.Update(link, "kitchen", bundle.Bundle({"huge.bin": b"x"}))
    huge._begin = huge._begin.replace(b'"huge.bin",1,', b'"huge.bin",%d,' % 10**15)
    with pytest.raises(BoardError, match=r"bytes of flash are needed, \d+ are free"):
        huge.run()
    with pytest.raises(BoardError, match="20 files are too many for one update"):
        update.Update(link, "kitchen", bundle.Bundle({f"file-number-{n}.txt": b"" for n in range(20)}))
    nobody = update.Update(link, "nobody", bundle.Bundle({"app.mpy": b"x"}))
    with pytest.raises(BoardError, match=r"nobody hasn't answered for 0\.2 s"):
        nobody.run(patience_s=0.2)
    assert main(["boards", "update", "kitchen", str(tmp_path / "none.py")]) == 1
    assert "none.py: No such file" in capsys.readouterr().err
    some = tmp_path / "some.txt"
    some.touch()
    assert main(["boards", "update", "kitchen", str(some), "--broker", "127.0.0.1:1"]) == 1
    assert "Connection refused" in capsys.readouterr().err
    assert main(["boards", "update", "kitchen", str(some), "--broker", "http://x"]) == 1
    assert "not a broker's address" in capsys.readouterr().err


def test_a_chunk_that_is_damaged_or_comes_twice_changes_nothing(board, laptop, folder, link):
    new = bundle.Bundle({"app.mpy": program(folder, "two", bytes_more=3000)})
    job = update.Update(link, "kitchen", new)
    send = job._send
    sent = []

    def damage(what: str, payload: bytes) -> None:
        sent.append(what)
        if what == "chunk" and sent.count("chunk") % 3 == 1:
            send(what, payload[:-1] + bytes([payload[-1] ^ 1]))
            send(what, payload[:20])
        send(what, payload)
        if what == "chunk" and sent.count("chunk") % 3 == 2:
            send(what, payload)

    job._send = damage
    job.run(trial_s=50)
    await_version(laptop, "two")
    assert (board.flash / "midge_b" / "app.mpy").read_bytes() == new.version["app.mpy"]
