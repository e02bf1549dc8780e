"""The log: one line per event on standard error, as text or as JSON. Never a payload.
Knows how a line is written, not what is worth one.

Who logs about a connection says `extra=about(client, address, ...)`: the text begins with it, JSON has its fields.
About anything else it says `extra=fields(...)`: they are JSON's only, the text says it in its own words.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import time
import traceback
from types import TracebackType
from typing import Any, Literal

Format = Literal["text", "json"]

# s that a line about a connection may wait for others. What a kill of the broker may cost the log.
_WAIT_S = 0.1

_encode = json.JSONEncoder(default=str).encode  # json.dumps would make an encoder for each line


style: Format = "text"  # set by `set_up`


def about(client: str | None, address: str, **values: object) -> dict[str, object]:
    """For `extra=`: whom a line is about, and what more a program may want to know of it (JSON only)."""
    return {"about": {"client": client, "address": address, **values}}


def fields(**values: object) -> dict[str, object]:
    """For `extra=`: what a program may want to know of it."""
    return {"about": values}


def set_up(level: str, chosen: Format) -> None:
    """All that is logged goes to standard error from now on. May be called again, after a reload."""
    global style
    style = chosen
    # What no line shows needn't be found out for each (logging's documented switches, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    handler = LineHandler()
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    for former in logging.root.handlers:
        former.flush()
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level.upper())


# Of a record that knows nothing: other handlers than ours ask for more than ours does.
_BLANK = logging.makeLogRecord({}).__dict__


class Line(logging.LogRecord):
    """A record for what is logged with each connection: what no line shows isn't found out, which is most of
    what `Logger.info` costs."""

    def __init__(self, logger: logging.Logger, message: str, about: dict[str, object]) -> None:
        self.__dict__.update(_BLANK)
        self.name = logger.name
        self.msg = message
        self.args = ()
        self.levelname = "INFO"
        self.levelno = logging.INFO
        self.created = time.time()
        self.about = about["about"]


class LineHandler(logging.Handler):
    """Writes lines to standard error. In an event loop, what is no warning waits a moment for others: they are
    made and written together, while connections come and go by the thousand."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        waiting = self._waiting
        if type(record) is Line:
            waiting.append(record)
            if len(waiting) == 1:
                try:
                    asyncio.get_running_loop().call_later(_WAIT_S, self.flush)
                except RuntimeError:  # in no event loop
                    self.flush()
            return
        self.flush()  # the order is kept
        self._write([record])

    def flush(self) -> None:
        with self.lock or contextlib.nullcontext():
            waiting, self._waiting = self._waiting, []
            if waiting:
                self._write(waiting)

    def _write(self, records: list[logging.LogRecord]) -> None:
        try:
            sys.stderr.write("".join([f"{self.format(record)}\n" for record in records]))
            sys.stderr.flush()
        except Exception:  # noqa: BLE001 — as logging asks of handlers: a bad line must not end what it tells of
            self.handleError(records[0])


class _Clock:
    """UTC to the millisecond (RFC 3339). The second's text is made once a second."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def text(self, when: float) -> str:
        second = int(when)
        if second != self._second:
            self._second = second
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{int((when - second) * 1000):03}Z"


class TextFormatter(logging.Formatter):
    """`2026-11-25T20:00:00.123Z INFO kitchen@192.0.2.1:50123: connected, ...`"""

    def __init__(self) -> None:
        super().__init__()
        self._clock = _Clock()

    def format(self, record: logging.LogRecord) -> str:
        known: dict[str, Any] = getattr(record, "about", {})
        text = record.getMessage()
        if "client" in known:
            client, address = known["client"], known["address"]
            text = f"{address}: {text}" if client is None else f"{client}@{address}: {text}"
        if record.exc_info is not None and record.exc_info[1] is not None:
            text += f": {_one_line(record.exc_info[1], record.exc_info[2])}"
        return f"{self._clock.text(record.created)} {record.levelname} {escape(text)}"


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, message; client, address and more where it is about a connection."""

    def __init__(self) -> None:
        super().__init__()
        self._clock = _Clock()

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": self._clock.text(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        line.update(getattr(record, "about", {}))
        line["message"] = record.getMessage()
        if record.exc_info is not None and record.exc_info[1] is not None:
            line["error"] = _one_line(record.exc_info[1], record.exc_info[2])
        return _encode(line)


def escape(text: str) -> str:
    """What a terminal or a reader of lines would take for more than a character, written out: MQTT allows
    control characters in client identifiers, and none may forge a line or move the cursor."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _one_line(error: BaseException, at: TracebackType | None) -> str:
    """An error that nobody expected: what it is, and where, innermost first."""
    frames = traceback.extract_tb(at)
    places = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    return f"{type(error).__name__}: {error}" + (f" at {places}" if places else "")
