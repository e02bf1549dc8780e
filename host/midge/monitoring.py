"""For those who watch the broker: /metrics (Prometheus), /healthz and /readyz on an HTTP listener of their own.
Knows HTTP and names, not where the numbers come from. Imported only where such a listener is asked for.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from midge import __version__
from midge.core import broker as core_broker
from midge.core.broker import Broker
from midge.metrics import read_all

_PREFIX = "midge_"

# (name, whether it is connected) of each bridge
BridgeStates = Callable[[], Iterable[tuple[str, bool]]]


class BrokerCollector(Collector):
    """What the metrics say at the moment of each scrape: nothing is counted twice, nothing between scrapes."""

    def __init__(self, broker: Broker, bridges: BridgeStates, problem: Callable[[], str]) -> None:
        self._broker = broker
        self._bridges = bridges
        self._problem = problem

    def describe(self) -> list[Family]:
        return []  # else registering would collect once

    def collect(self) -> Iterator[Family]:
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for metric, number in read_all(self._broker):
            if not metric.name:
                continue
            family = families.get(metric.name)
            if family is None:
                labels = [metric.label[0]] if metric.label else []
                kind = CounterMetricFamily if metric.is_counter else GaugeMetricFamily
                family = families[metric.name] = kind(_PREFIX + metric.name, metric.help, labels=labels)
            family.add_metric([metric.label[1]] if metric.label else [], number)
        yield from families.values()
        ready = GaugeMetricFamily(_PREFIX + "ready", "1 if /readyz says so, else 0.")
        ready.add_metric([], int(not self._problem()))
        yield ready
        up = GaugeMetricFamily(_PREFIX + "bridge_up", "Whether a bridge is connected.", labels=["bridge"])
        for name, is_connected in self._bridges():
            up.add_metric([name], int(is_connected))
        yield up
        labels = ["version", "python", "form"]
        info = GaugeMetricFamily(_PREFIX + "build_info", "1; the labels say which.", labels=labels)
        form = "pure" if str(core_broker.__file__).endswith(".py") else "compiled"
        info.add_metric([__version__, platform.python_version(), form], 1)
        yield info


class Monitoring:
    """`start`, then `stop`; both once."""

    def __init__(self, broker: Broker, bridges: BridgeStates, problem: Callable[[], str]) -> None:
        """*problem*: why the broker can't do its work at the moment, "" if it can."""
        self._problem = problem
        self._registry = CollectorRegistry()
        self._registry.register(BrokerCollector(broker, bridges, problem))
        ProcessCollector(registry=self._registry)
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, keepalive_timeout=75)

    async def start(self, bind: str, port: int) -> int:
        """The port. OSError if it can't listen."""
        await self._runner.setup()
        await web.TCPSite(self._runner, bind, port).start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")  # whoever gets it knows that the event loop turns

    async def _readyz(self, _: web.Request) -> web.Response:
        problem = self._problem()
        return web.Response(text=f"{problem or 'ok'}\n", status=503 if problem else 200)
