"""A line of the log: one per event, as text and as JSON, whatever a client calls itself."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
from collections.abc import Iterator

import pytest

from midge.logs import JsonFormatter, Line, LineHandler, TextFormatter, about, escape, fields

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def record(
    message: str, *args: object, extra: dict[str, object] | None = None, error: bool = False
) -> logging.LogRecord:
    exc_info = sys.exc_info() if error else None
    made = logging.LogRecord("midge.connection", logging.INFO, __file__, 1, message, args, exc_info)
    for name, value in (extra or {}).items():
        setattr(made, name, value)
    return made


def test_a_line_of_text_begins_with_time_level_and_client() -> None:
    who = about("kitchen", "192.0.2.1:50123", user="anna")
    line = TextFormatter().format(record("connected, MQTT %s", "5.0", extra=who))
    assert re.fullmatch(TIME + r" INFO kitchen@192\.0\.2\.1:50123: connected, MQTT 5\.0", line)
    line = TextFormatter().format(record("closed", extra=about(None, "192.0.2.1:50123")))
    assert re.fullmatch(TIME + r" INFO 192\.0\.2\.1:50123: closed", line)
    assert re.fullmatch(TIME + " INFO started", TextFormatter().format(record("started")))


def test_a_line_of_json_has_them_as_fields() -> None:
    line = JsonFormatter().format(record("connected", extra=about("kitchen", "192.0.2.1:50123", event="connected")))
    found = json.loads(line)
    assert re.fullmatch(TIME, found.pop("time"))
    assert found == {
        "level": "info",
        "logger": "midge.connection",
        "client": "kitchen",
        "address": "192.0.2.1:50123",
        "event": "connected",
        "message": "connected",
    }


@pytest.mark.parametrize("client", ["a\nb", "a\r\nb", "\x1b[2J", "\x00", "\x7f\x85", "\u2028", "\u202e", "\ud800"])
def test_no_client_identifier_makes_a_second_line_or_moves_the_cursor(client: str) -> None:
    text = TextFormatter().format(record("%s", client, extra=about(client, "x")))
    assert text.isprintable()
    line = JsonFormatter().format(record("%s", client, extra=about(client, "x")))
    assert line.isprintable() and line.isascii()
    assert json.loads(line)["client"] == json.loads(line)["message"] == client


def test_what_can_be_read_stays_as_it_is() -> None:
    assert escape("Küche/温度 42 °C") == "Küche/温度 42 °C"


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_an_unexpected_error_is_one_line_too_and_says_where(formatter: logging.Formatter) -> None:
    try:
        raise KeyError("first\nsecond")
    except KeyError:
        line = formatter.format(record("failed", error=True))
    assert line.isprintable()
    assert "KeyError" in line and f"{__file__}:" in line and "test_an_unexpected_error" in line


def test_the_time_is_the_record_s() -> None:
    at = record("x")
    at.created = 1_700_000_000.9876
    formatter = TextFormatter()
    assert formatter.format(at).startswith("2023-11-14T22:13:20.987Z ")
    at.created += 60
    assert formatter.format(at).startswith("2023-11-14T22:14:20.987Z ")


def test_what_is_not_about_a_client_has_fields_for_programs_and_its_own_words_for_people() -> None:
    made = record("bridge hub: connected", extra=fields(bridge="hub", address="mqtt://hub.local:1883"))
    assert re.fullmatch(TIME + " INFO bridge hub: connected", TextFormatter().format(made))
    line = json.loads(JsonFormatter().format(made))
    assert (line["bridge"], line["address"]) == ("hub", "mqtt://hub.local:1883")


# -- lines that wait for others --


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """One that writes by our handler, whatever pytest has hung to the root."""
    made = logging.getLogger("test of logs")
    made.propagate = False
    made.setLevel(logging.INFO)
    made.handlers[:] = [LineHandler()]
    made.handlers[0].setFormatter(TextFormatter())
    yield made
    made.handlers.clear()


def line(logger: logging.Logger, text: str) -> None:
    logger.handle(Line(logger, text, about("c", "192.0.2.1:1")))


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().err.splitlines()
    return [re.sub(rf"^{TIME} (INFO c@192\.0\.2\.1:1: |WARNING )", "", line) for line in lines]


def test_lines_about_connections_are_written_together_a_moment_later(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    async def come_and_go() -> None:
        for number in range(3):
            line(logger, f"{number} 100 % {{}}")
        assert told(capsys) == []
        while not (written := told(capsys)):
            await asyncio.sleep(0.01)
        assert written == [f"{number} 100 % {{}}" for number in range(3)]

    asyncio.run(asyncio.wait_for(come_and_go(), 10))


def test_a_warning_is_written_at_once_behind_what_was_before_it(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    async def warn() -> None:
        line(logger, "first")
        logger.warning("second %s", "of two")
        assert told(capsys) == ["first", "second of two"]
        line(logger, "third")

    asyncio.run(warn())
    logger.handlers[0].flush()  # as logging does at the end of a process
    assert told(capsys) == ["third"]


def test_outside_of_an_event_loop_nothing_waits(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    line(logger, "alone")
    assert told(capsys) == ["alone"]
