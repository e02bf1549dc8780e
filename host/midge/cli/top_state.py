"""What `midge top` knows: a broker's `$SYS` topics as rates and sums, and what is heard of boards.
Knows topics and payloads; neither connections nor terminals.
"""

from __future__ import annotations

from dataclasses import dataclass, field

PREFIX = "$SYS/broker/"
# Of the broker itself, and of boards' brokers behind bridges; and what programs on boards say of themselves, as
# those in device/examples do.
FILTERS = ("$SYS/broker/#", "+/$SYS/broker/#", "+/+/$SYS/broker/#", "+/status", "+/+/status", "+/memory", "+/+/memory")

# Counters that are told as rates: the name here, and the topic of ours and Mosquitto's.
RATES = {
    "messages in": "publish/messages/received",
    "messages out": "publish/messages/sent",
    "packets in": "messages/received",
    "packets out": "messages/sent",
    "bytes in": "bytes/received",
    "bytes out": "bytes/sent",
}
# What a rate is taken from before there are two values of its counter: messages in the last minute.
_LOADS = {
    "messages in": "load/publish/received/1min",
    "messages out": "load/publish/sent/1min",
    "packets in": "load/messages/received/1min",
    "packets out": "load/messages/sent/1min",
    "bytes in": "load/bytes/received/1min",
    "bytes out": "load/bytes/sent/1min",
}
# A board's broker counts PUBLISH packets only, under the names that are packets elsewhere.
_OF_A_BOARD = {"messages in": "messages/received", "messages out": "messages/sent"}
_STATES = ("online", "offline")


class _Rate:
    """What a counter grows by in a second, between its last two values."""

    def __init__(self, value: int, now: float) -> None:
        self._value = value
        self._at = now
        self.per_second: float | None = None

    def update(self, value: int, now: float) -> None:
        if now - self._at < 0.2:  # the retained value, and at once the next
            return
        self.per_second = max(0, value - self._value) / (now - self._at)  # less: the broker started again
        self._value, self._at = value, now


@dataclass
class Board:
    """*seen_at*: when something live came of it last; None: only what was retained."""

    name: str
    state: str = ""
    seen_at: float | None = None
    heap_free: int | None = None  # bytes
    clients: int | None = None
    dropped: int | None = None
    uptime_s: int | None = None


@dataclass
class State:
    """`feed` takes messages; the rest is read."""

    values: dict[str, str] = field(default_factory=dict)  # of $SYS/broker/
    boards: dict[str, Board] = field(default_factory=dict)
    _rates: dict[str, _Rate] = field(default_factory=dict)

    def feed(self, topic: str, payload: bytes, is_retained: bool, now: float) -> str | None:
        """The name of a board that wasn't known before, if this tells of one."""
        text = payload.decode("utf-8", "replace")
        known = len(self.boards)
        if topic.startswith(PREFIX):
            self._feed_broker(topic[len(PREFIX) :], text, now)
            return None
        name = self._feed_board(topic, text)
        if not is_retained:
            for board in self.boards.values():
                if topic.startswith(f"{board.name}/"):
                    board.seen_at = now
        return name if len(self.boards) > known else None

    def _feed_broker(self, name: str, text: str, now: float) -> None:
        if not text:
            self.values.pop(name, None)
            return
        self.values[name] = text
        if name in RATES.values() and text.isdigit():
            if name in self._rates:
                self._rates[name].update(int(text), now)
            else:
                self._rates[name] = _Rate(int(text), now)

    def _feed_board(self, topic: str, text: str) -> str | None:
        before, mark, rest = topic.partition(f"/{PREFIX}")
        if mark:
            self._feed_boards_broker(self._board(before), rest, text)
            return before
        name, _, last = topic.rpartition("/")
        if last == "status" and text in _STATES:
            self._board(name).state = text
            return name
        if last == "memory" and name in self.boards and text.isdigit():
            self.boards[name].heap_free = int(text) * 1024  # device/examples tell kB
        return None

    def _board(self, name: str) -> Board:
        return self.boards.setdefault(name, Board(name))

    @staticmethod
    def _feed_boards_broker(board: Board, name: str, text: str) -> None:
        number = text.split(" ")[0]
        if not number.isdigit():
            return
        attribute = {
            "heap/free": "heap_free",
            "clients/connected": "clients",
            "messages/dropped": "dropped",
            "uptime": "uptime_s",
        }.get(name)
        if attribute:
            setattr(board, attribute, int(number))

    def number(self, *names: str) -> int | None:
        """The first of these topics that is there; Mosquitto has some by another name."""
        for name in names:
            text = self.values.get(name, "").split(" ")[0]
            if text.isdigit():
                return int(text)
        return None

    @property
    def is_board(self) -> bool:
        """Whether it is a board's broker: no other tells what heap is free."""
        return "heap/free" in self.values

    def rate(self, name: str) -> float | None:
        """Per second: of the last interval, else of the last minute."""
        rate = self._rates.get(_OF_A_BOARD.get(name, "") if self.is_board else RATES[name])
        if rate is not None and rate.per_second is not None:
            return rate.per_second
        try:
            return float(self.values[_LOADS[name]]) / 60
        except (KeyError, ValueError):
            return None

    def drops(self) -> dict[str, int]:
        """By cause, where the broker tells it; else the sum."""
        prefix = "messages/dropped/" if self.is_board else "publish/messages/dropped/"
        causes = {name[len(prefix) :]: text for name, text in self.values.items() if name.startswith(prefix)}
        if not causes:
            causes = {"all": self.values.get(prefix[:-1], "")}
        return {name: int(text) for name, text in causes.items() if text.isdigit()}

    def bridges(self) -> dict[str, bool]:
        """Whether each is connected."""
        found = {}
        for name, text in self.values.items():
            if name.startswith("connection/") and name.endswith("/state"):
                found[name[len("connection/") : -len("/state")]] = text == "1"
        return found

    def queues(self) -> dict[str, dict[str, str]]:
        """Durable queues: their figures by name."""
        found: dict[str, dict[str, str]] = {}
        for name, text in self.values.items():
            if name.startswith("queues/"):
                queue, _, figure = name[len("queues/") :].partition("/")
                found.setdefault(queue, {})[figure] = text
        return found

    def as_json(self, now: float) -> dict[str, object]:
        """Everything, for scripts; ages in seconds."""
        boards = []
        for board in self.boards.values():
            told = {name: value for name, value in vars(board).items() if name != "seen_at"}
            boards.append({**told, "seen_s_ago": None if board.seen_at is None else round(now - board.seen_at, 1)})
        return {
            "version": self.values.get("version"),
            "uptime_s": self.number("uptime"),
            "clients": {
                "connected": self.number("clients/connected"),
                "disconnected": self.number("clients/disconnected"),
                "maximum": self.number("clients/maximum"),
            },
            "per_second": {name: self.rate(name) for name in RATES},
            "subscriptions": self.number("subscriptions/count"),
            "retained": self.number("retained messages/count"),
            "queued": {
                "messages": self.number("queued messages/count", "messages/stored"),
                "bytes": self.number("queued messages/bytes", "store/messages/bytes", "messages/queued/bytes"),
            },
            "dropped": self.drops(),
            "memory": self.number("heap/current"),
            "heap_free": self.number("heap/free"),
            "bridges": self.bridges(),
            "queues": self.queues(),
            "boards": boards,
        }
