"""FLEET.toml: which boards, over which links, and what happens to them. Its keys, defaults, checks and an example.
Knows no board and no link.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ValidationError, model_validator

from midge.config.errors import ConfigError, explain
from midge.config.load import read_toml
from midge.config.section import Section, key


class FleetSection(Section):
    """The whole."""

    duration_s: float = key(600.0, "How long it lasts, in the boards' time.", unit="s", gt=0)
    speed: float = key(
        60.0,
        "How much faster sleep goes by: at 60 a minute's sleep takes a second. What is awake, links and brokers, "
        "run in real time; so choose intervals that are much longer than a cycle times this.",
        ge=1,
        le=10_000,
    )
    seed: int = key(1, "The same seed: the same phases, jitter, losses and power cuts, as far as two machines' "
                       "speed allows.")  # fmt: skip


class BrokerSection(Section):
    """The broker that all goes to: `midge broker` here, or one that runs already."""

    address: str = key("", 'HOST:PORT of a broker that runs already; "": ours, for the time of the simulation.')
    durability: Literal["commit", "interval", "none"] = key("commit", "Of ours, as [store] of its configuration.")


class LinkSection(Section):
    """A kind of link; each board has its own of that kind."""

    name: str = key(..., "What boards call it.", min_length=1)
    delay_ms: float = key(20.0, "One way.", unit="ms", ge=0, le=60_000)
    jitter_ms: float = key(0.0, "Added at random, from 0 to this.", unit="ms", ge=0, le=60_000)
    loss: float = key(0.0, "Of a TCP segment, from 0 to 1: it comes a retransmission later.", ge=0, le=0.9)
    rto_ms: float = key(1500.0, "The board's first retransmission (ESP-IDF: 1500), doubled each time.", unit="ms",
                        ge=10, le=60_000)  # fmt: skip
    nagle: bool = key(False, "Small segments wait for an acknowledgement (lwIP's default; midge's client says no).")


class BoardsSection(Section):
    """Boards of one kind."""

    name: str = key(..., "Of the kind; the boards are NAME-1, NAME-2 ...; one alone is NAME.", min_length=1,
                    pattern=r"^[A-Za-z0-9_-]+$")  # fmt: skip
    profile: Literal["sensor", "controller", "serial", "hub"] = key(
        "sensor",
        '"sensor": wakes, sends, sleeps (wake()). "controller": always on, by radio. "serial": always on, on a '
        'cable. "hub": a broker on a board, fetched by the host\'s bridge.',
    )
    count: int = key(1, "How many.", ge=1, le=5000)
    link: str = key("", "The [[link]] it is on; not set: no delay, no loss.")
    via: str = key("", "The hub (its NAME in [[boards]]) it talks to; not set: the broker itself.")
    heap_kB: int = key(64, "The board's heap; the 64-bit unix port gets twice as much.", unit="kB", ge=16, le=8192)
    interval_s: float = key(600.0, "Between two cycles or reports, in the boards' time.", unit="s", gt=0)
    messages: int = key(1, "In each cycle or report.", unit="messages", ge=0, le=1000)
    payload_bytes: int = key(24, "Of a message; at least what names it.", unit="bytes", ge=24, le=4096)
    qos: int = key(1, "Of its messages.", ge=0, le=2)
    outbox: Literal["rtc", "file", "memory"] = key(
        "rtc", 'Of a sensor. "rtc": outlives deep sleep. "file": outlives power loss too. "memory": neither.'
    )
    outbox_bytes: int = key(1536, "What it holds; full, the oldest is dropped.", unit="bytes", ge=64, le=1_000_000)
    timeout_ms: int = key(10_000, "Of a sensor's cycle.", unit="ms", ge=100, le=120_000)
    keep_alive_s: int = key(60, "Of boards that are always on, in real time.", unit="s", ge=1, le=65_535)
    commands_s: float = key(0.0, "So often each gets a command at QoS 1, in the boards' time; 0: never.", unit="s",
                            ge=0)  # fmt: skip
    store: bool = key(True, "Of a hub: a journal in its flash.")
    max_clients: int = key(8, "Of a hub: connections at once, the bridge's too.", ge=2, le=64)
    program: str = key("", "A program of yours, relative to this file, in the place of the profile's own. It ends "
                           "with machine.deepsleep(), or runs for ever.")  # fmt: skip
    arguments: list[str] = key(
        ["{name}", "127.0.0.1", "{port}"], "Of your program; {name} and {port} are replaced."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> BoardsSection:
        if self.profile == "hub" and (self.program or self.via or self.commands_s):
            raise ValueError("a hub has no program, via or commands_s")
        if self.profile == "hub" and self.count != 1:
            raise ValueError("each hub is a [[boards]] of its own: count = 1")
        if self.profile == "serial" and (self.via or self.link):
            raise ValueError("a board on a cable has no link and no via")
        return self


class OutageSection(Section):
    """A time in which nothing gets through links of one kind."""

    link: str = key(..., "The [[link]].")
    at_s: float = key(..., "When, in the boards' time.", unit="s", ge=0)
    for_s: float = key(..., "For how long.", unit="s", gt=0)


class PowerCutSection(Section):
    """Boards of one kind lose their power: memory and RTC memory are gone, flash stays."""

    boards: str = key(..., "The [[boards]].")
    at_s: float = key(..., "When, in the boards' time.", unit="s", ge=0)
    for_s: float = key(5.0, "For how long.", unit="s", gt=0)
    share: float = key(1.0, "Of them, chosen at random, from 0 to 1.", gt=0, le=1)


class Fleet(Section):
    """The file."""

    fleet: FleetSection = key(FleetSection(), "The whole.")
    broker: BrokerSection = key(BrokerSection(), "The broker.")
    link: list[LinkSection] = key([], "Kinds of links.")
    boards: list[BoardsSection] = key(..., "Kinds of boards.", min_length=1)
    outage: list[OutageSection] = key([], "Outages of links.")
    power_cut: list[PowerCutSection] = key([], "Power cuts of boards.")

    @model_validator(mode="after")
    def _names_are_known(self) -> Fleet:
        links = [link.name for link in self.link]
        boards = {kind.name: kind for kind in self.boards}
        hubs = [kind.name for kind in self.boards if kind.profile == "hub"]
        for what, names in (("link", links), ("boards", [kind.name for kind in self.boards])):
            if len(set(names)) < len(names):
                raise ValueError(f"two [[{what}]] have the same name")
        for kind in self.boards:
            _check(f"boards {kind.name}: link", kind.link, links)
            _check(f"boards {kind.name}: via", kind.via, hubs)
            if self.broker.address and kind.profile in ("hub", "serial"):
                raise ValueError(f"boards {kind.name}: profile {kind.profile} needs our broker: no broker.address")
        for outage in self.outage:
            _check("outage: link", outage.link, links)
        for cut in self.power_cut:
            _check("power_cut: boards", cut.boards, list(boards))
        return self


def _check(what: str, name: str, names: list[str]) -> None:
    if name and name not in names:
        raise ValueError(f'{what} = "{name}" names none; there is {", ".join(names) or "none"}')


def load(path: Path) -> Fleet:
    """Reads the file at *path*. ConfigError: it can't be read, isn't TOML, or a key is wrong."""
    data, lines = read_toml(path)
    try:
        fleet = Fleet.model_validate(data)
    except ValidationError as error:
        raise explain(error, Fleet, str(path), lines) from None
    for kind in fleet.boards:
        if kind.program and not (path.parent / kind.program).is_file():
            raise ConfigError(f'{path}: boards {kind.name}: program = "{kind.program}": no such file')
    return fleet


EXAMPLE = """\
# A fleet for `midge sim run`. Times ending in _s are the boards' own: at speed 60 a minute of theirs takes a second.

[fleet]
duration_s = 1800
speed = 60          # sleep goes by faster; what is awake runs in real time
seed = 1            # of phases, jitter, losses and power cuts

[broker]
address = ""        # "HOST:PORT" of one that runs already; "": midge broker, for this run
durability = "commit"

[[link]]
name = "wifi"
delay_ms = 10       # one way
jitter_ms = 10      # added at random
loss = 0.01         # of a TCP segment: it comes a retransmission later
rto_ms = 1500       # the board's first retransmission, doubled each time

[[boards]]
name = "garden"
profile = "sensor"  # sensor | controller | serial | hub
count = 8
link = "wifi"
heap_kB = 64        # the board's
interval_s = 300    # between two cycles
messages = 2        # in each
qos = 1
outbox = "rtc"      # rtc: outlives deep sleep | file: power loss too | memory
commands_s = 600    # so often each gets a command; 0: never

[[boards]]
name = "lamp"
profile = "controller"  # always on
link = "wifi"
interval_s = 60
commands_s = 120

[[boards]]
name = "pico"
profile = "serial"  # on a cable
interval_s = 60

[[boards]]
name = "hub"
profile = "hub"     # a broker on a board; the host's bridge fetches from it
link = "wifi"       # between it and the host
store = true        # a journal in its flash

[[boards]]
name = "shed"
profile = "sensor"
count = 2
via = "hub"         # they talk to the hub
link = "wifi"
interval_s = 300
outbox = "file"

[[outage]]          # nothing gets through
link = "wifi"
at_s = 700
for_s = 200

[[power_cut]]       # memory and RTC memory are gone, flash stays
boards = "garden"
at_s = 1100
for_s = 10
share = 0.25        # of them, chosen at random
"""
