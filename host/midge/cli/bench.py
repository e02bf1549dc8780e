"""`midge bench`: how fast is a broker, and does all that it takes arrive, once and in order? Any broker's, or two
beside each other.
Knows options and how to print; `midge.load` makes the traffic.
"""

from __future__ import annotations

import argparse
import json
import os
import ssl
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote

from midge.cli.options import Options, UsageError
from midge.cli.shared_options import check_tls
from midge.load import flows
from midge.load.clients import SMALL_BYTES, Address, use_root

_EXAMPLES = """\
examples:
  midge bench                                          the broker on this machine, four shapes, QoS 0, 1 and 2
  midge bench -h 192.168.4.1 --pairs 4 --qos 1         4 publishers to 4 subscribers at QoS 1
  midge bench --subscribers 100 --size 4096            1 publisher to 100 subscribers, 4 KB
  midge bench --publishers 100 --window 5              100 publishers to 1 subscriber
  midge bench --compare localhost:1883 localhost:1884  in turns; ratios are the second's to the first's
  midge bench -V 5 --cafile ca.pem -p 8883             MQTT 5.0, over TLS
  midge bench --json > figures.json                    every run's figures

/s: messages delivered a second. p50, p99: from publishing to arrival, while so much is under way; "singly": one
message at a time. lost, dup, order: messages that didn't come, came again, came late. load: how busy this program
was: near 1.00 it was the bottleneck, not the broker. Topics are below midge-bench-NUMBER/.

Exit codes: 0 all well; 1 a message at QoS 1 or 2 was lost, doubled or out of order, or a broker can't be reached;
2 wrong options; 130 interrupted.
"""

_VERSIONS = {"311": 4, "mqttv311": 4, "5": 5, "mqttv5": 5}
_TLS = ("cafile", "capath", "use_os_certs", "certfile", "keyfile", "insecure", "tls_version")
_WINDOW_QOS_0 = 1000  # of small messages; what the slowest subscriber hasn't


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="midge bench",
        description="Load a broker: messages a second, latency, and whether all arrived, once and in order.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    add = parser.add_argument
    add("--help", action="help", help="this text")
    add("-h", "--host", default="localhost", help="the broker's name or address (%(default)s)")
    add("-p", "--port", type=_number(1, 65535), help="its port (1883, with TLS 8883)")
    add("-u", "--username", help="user name")
    add("-P", "--pw", metavar="PASSWORD", help="password")
    add("-V", "--protocol-version", choices=_VERSIONS, default="311", metavar="VERSION", help="311 or 5 (%(default)s)")
    add("--compare", nargs="+", metavar="HOST:PORT", help="instead: two or more brokers, in turns; or mqtt(s)://...")
    add("-q", "--qos", type=_number(0, 2), nargs="+", metavar="QOS", help="0, 1, 2: one or more of them (all)")
    add("--pairs", type=_number(1, 1000), metavar="N", help="N publishers to N subscribers")
    add("--subscribers", type=_number(1, 5000), metavar="N", help="1 publisher to N subscribers")
    add("--publishers", type=_number(1, 1000), metavar="N", help="N publishers to 1 subscriber")
    add("--singly", action="store_true", help="one message at a time: the latency of an idle broker")
    add("--size", type=_number(8, 16_000_000), default=SMALL_BYTES, metavar="BYTES", help="of a payload (%(default)s)")
    add("--window", type=_number(1, 60_000), metavar="N",
        help=f"messages under way of each publisher ({flows.WINDOW}; QoS 0: fewer than {_WINDOW_QOS_0})")  # fmt: skip
    add("--seconds", type=float, default=2.0, metavar="S", help="of publishing in each run (%(default)s)")
    add("--rounds", type=_number(1, 1000), default=1, metavar="N", help="runs of each; figures are medians (1)")
    add("--persistent", action="store_true", help="the subscribers' sessions last: what the broker must keep")
    add("--json", action="store_true", help="print JSON instead of the table")
    _add_tls(parser.add_argument_group("TLS, as with midge pub; any of --cafile, --capath, --tls-use-os-certs "
                                       "and port 8883 turns it on"))
    return parser


def _add_tls(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--cafile", metavar="FILE", help="with the certificates to trust (PEM)")
    add("--capath", metavar="DIR", help="with such files, named by `openssl rehash`")
    add("--tls-use-os-certs", dest="use_os_certs", action="store_true", help="trust the system's certificates")
    add("--cert", dest="certfile", metavar="FILE", help="with our certificate (PEM)")
    add("--key", dest="keyfile", metavar="FILE", help="with its private key (PEM)")
    add("--insecure", action="store_true", help="don't compare the certificate's name with the host's")
    add("--tls-version", choices=("tlsv1.2", "tlsv1.3"), help="this one or later")


def _number(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} isn't a number of {least} to {most}")
        return int(text)

    return number


@dataclass(frozen=True)
class _Scenario:
    name: str
    qos: int
    run: Callable[[Address, float, Callable[[float], None]], flows.Outcome]


def run(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    addresses = _addresses(options)
    scenarios = _scenarios(options)
    use_root(f"midge-bench-{os.getpid()}")
    total_s = len(addresses) * len(scenarios) * options.rounds * options.seconds
    with _Progress(total_s, is_shown=sys.stderr.isatty()) as progress:
        try:
            found = [_measure(one, addresses, options, progress) for one in scenarios]
        except OSError as error:
            progress.stop()
            print(f"midge bench: {_explain(error, addresses)}", file=sys.stderr)
            return 1
    if options.json:
        print(json.dumps(found, indent=1))
    bad = [
        one for row in found for runs in row["runs"].values() for one in runs
        if row["qos"] and (one["lost"] or one["doubled"] or one["disordered"])
    ]  # fmt: skip
    return 1 if bad else 0


def _explain(error: OSError, addresses: list[Address]) -> str:
    where = ", ".join(f"{one.host}:{one.port}" for one in addresses)
    if isinstance(error, ConnectionRefusedError):
        return f"connection refused by {where}: is the broker running? start one with: midge broker"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{where}: the broker's certificate isn't trusted: {error.verify_message}"
    return f"{where}: {error.strerror or error}"


def _context(options: argparse.Namespace, is_asked: bool, port: int = 0) -> ssl.SSLContext | None:
    """What the options of TLS say; None: no TLS. *is_asked*: an address asks for it."""
    wanted = Options()
    for name in _TLS:
        setattr(wanted, name, getattr(options, name))
    wanted.port = port
    wanted.use_os_certs = wanted.use_os_certs or (is_asked and not wanted.is_tls)
    try:
        check_tls(wanted)
        if not wanted.is_tls:
            return None
        from midge.cli.tls_context import make_context

        return make_context(wanted)
    except UsageError as error:
        _parser().error(str(error))


def _addresses(options: argparse.Namespace) -> list[Address]:
    version = _VERSIONS[options.protocol_version]
    if not options.compare:
        tls = _context(options, False, options.port or 0)
        port = options.port or (8883 if tls else 1883)
        return [Address(options.host, port, options.username, options.pw, version, tls)]
    addresses = []
    for text in options.compare:
        scheme, _, rest = text.rpartition("://")
        userinfo, _, location = rest.rpartition("@")
        name, colon, password = userinfo.partition(":")
        host, _, port = location.rpartition(":") if ":" in location else (location, "", "")
        if scheme not in ("", "mqtt", "mqtts") or not host or (port and not port.isdigit()):
            _parser().error(f"--compare: {text!r} isn't HOST:PORT")
        number = int(port or (8883 if scheme == "mqtts" else 1883))
        tls = None if scheme == "mqtt" else _context(options, scheme == "mqtts", number)
        username = unquote(name) if name else options.username
        addresses.append(
            Address(host, number, username, unquote(password) if colon else options.pw, version, tls)
        )
    if len(addresses) < 2:
        _parser().error("--compare needs two brokers or more")
    return addresses


def _scenarios(options: argparse.Namespace) -> list[_Scenario]:
    """What was asked for, or a choice of all."""
    small = 0 if options.size == SMALL_BYTES else options.size
    shapes: list[tuple[str, dict[str, int]]] = []
    if options.pairs:
        shapes.append((f"{options.pairs} to {options.pairs}", {"pairs": options.pairs}))
    if options.subscribers:
        shapes.append((f"1 to {options.subscribers}", {"subscribers": options.subscribers}))
    if options.publishers:
        shapes.append((f"{options.publishers} to 1", {"publishers": options.publishers}))
    is_all = not shapes and not options.singly
    if is_all:
        shapes = [("1 to 1", {}), ("1 to 20", {"subscribers": 20}), ("20 to 1", {"publishers": 20})]
    scenarios = []
    for qos in options.qos or (0, 1, 2):
        for name, given in shapes:
            window = options.window or _window(qos, small, given)
            shape = flows.Shape(qos, window=window, size=small, is_clean=not options.persistent, **given)
            scenarios.append(_Scenario(name, qos, partial(_run_shape, shape)))
        if options.singly or is_all:
            scenarios.append(_Scenario("singly", qos, partial(_run_singly, qos)))
    return scenarios


def _run_shape(shape: flows.Shape, address: Address, seconds: float, tell: Callable[[float], None]) -> flows.Outcome:
    return flows.run(address, seconds, shape, tell)


def _run_singly(qos: int, address: Address, seconds: float, _tell: Callable[[float], None]) -> flows.Outcome:
    return flows.ping_pong(address, seconds, qos)


def _window(qos: int, size: int, shape: dict[str, int]) -> int:
    """As much under way as no broker drops by default: a queue of 1,000 messages, some megabytes."""
    many = max(shape.values(), default=1)
    if qos:
        return max(1, min(flows.WINDOW, 100 // shape.get("publishers", 1) or 1))
    most = _WINDOW_QOS_0 if many == 1 else max(1, _WINDOW_QOS_0 // many)
    return max(1, min(most, 4_000_000 // (size or SMALL_BYTES) // many))


def _measure(
    scenario: _Scenario, addresses: list[Address], options: argparse.Namespace, progress: _Progress
) -> dict[str, Any]:
    """One row: the brokers in turns, so that what else the machine does meets all of them."""
    runs: dict[str, list[dict[str, float]]] = {f"{one.host}:{one.port}": [] for one in addresses}
    for number in range(options.rounds):
        for address in addresses:
            name = f"{address.host}:{address.port}"
            progress.begin(f"QoS {scenario.qos}, {scenario.name}, {name}, {number + 1} of {options.rounds}")
            outcome = scenario.run(address, options.seconds, progress.tell)
            runs[name].append(_figures(outcome))
            progress.end(options.seconds)
    row = {"scenario": scenario.name, "qos": scenario.qos, "size": options.size, "runs": runs}
    if not options.json:
        progress.print(_table(row, progress.is_first_row))
    return row


def _figures(outcome: flows.Outcome) -> dict[str, float]:
    figures = {
        "per_second": outcome.count / outcome.seconds if outcome.seconds else 0.0,
        "delivered": outcome.count,
        "seconds": outcome.seconds,
        "lost": outcome.faults.lost,
        "doubled": outcome.faults.doubled,
        "disordered": outcome.faults.disordered,
        "load_share": outcome.cpu_s / outcome.seconds if outcome.seconds else 0.0,
    }
    if len(outcome.latencies_us) > 1:
        cuts = statistics.quantiles(outcome.latencies_us, n=1000, method="inclusive")
        figures |= {"p50_us": cuts[499], "p90_us": cuts[899], "p99_us": cuts[989], "p99.9_us": cuts[998]}
    return figures


_HEADER = (
    f"{'':8} {'':10} {'broker':24} {'/s':>10} {'p50 ms':>8} {'p99 ms':>8} "
    f"{'lost':>5} {'dup':>5} {'order':>5} {'load':>5}"
)


def _table(row: dict[str, Any], with_header: bool) -> str:
    lines = [_HEADER] if with_header else []
    what = f"{'QoS ' + str(row['qos']):8} {row['scenario']:10}"
    first: list[dict[str, float]] | None = None
    for name, runs in row["runs"].items():
        faults = [int(sum(one[fault] for one in runs)) for fault in ("lost", "doubled", "disordered")]
        ratios = "" if first is None else "  " + ", ".join(
            f"{title} {_median(runs, figure) / _median(first, figure):.2f}x"
            for title, figure in (("/s", "per_second"), ("p50", "p50_us"), ("p99", "p99_us"))
            if _median(first, figure)
        )  # fmt: skip
        lines.append(
            f"{what} {name:24} {_median(runs, 'per_second'):10,.0f} {_median(runs, 'p50_us') / 1000:8.2f} "
            f"{_median(runs, 'p99_us') / 1000:8.2f} {faults[0]:5} {faults[1]:5} {faults[2]:5} "
            f"{_median(runs, 'load_share'):5.2f}{ratios}"
        )
        what = f"{'':8} {'':10}"
        first = first or runs
    return "\n".join(lines)


def _median(runs: list[dict[str, float]], figure: str) -> float:
    return statistics.median(one.get(figure, 0.0) for one in runs)


class _Progress:
    """A bar on stderr while runs last, if somebody looks."""

    def __init__(self, total_s: float, is_shown: bool) -> None:
        self._done_s = 0.0
        self._told_at = 0.0
        self._rows = 0
        self._bar: Any = None
        if is_shown:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=total_s)

    def __enter__(self) -> _Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._bar:
            self._bar.stop()

    @property
    def is_first_row(self) -> bool:
        return self._rows == 0

    def begin(self, what: str) -> None:
        self._told_at = 0.0
        if self._bar:
            self._bar.update(self._task, description=what, completed=self._done_s)

    def tell(self, passed_s: float) -> None:
        if self._bar and passed_s - self._told_at > 0.2:
            self._told_at = passed_s
            self._bar.update(self._task, completed=self._done_s + passed_s)

    def end(self, passed_s: float) -> None:
        self._done_s += passed_s

    def print(self, text: str) -> None:
        self._rows += 1
        print(text, flush=True)
