"""How long a bridge waits until it tries again: within its bounds, not in step with others, and from the start again
after a connection that held."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from midge.bridge import bridge as module
from midge.config import Bridge as Section
from midge.core.broker import Broker
from midge.core.limits import Limits

MIN_S, MAX_S = 0.5, 10.0


class Over(BaseException):
    """Enough was seen."""


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[float]]:
    """Runs a bridge whose connections last so long (s; None: they fail), in no time; how long it waited after each."""

    def run(*lasting: float | None) -> list[float]:
        clock = [1000.0]
        waited: list[float] = []
        left = list(lasting)

        class Link:
            def __init__(self, bridge: Any) -> None:
                vars(self).update(vars(SimpleNamespace(
                    has_cleaned=False, is_done=False, is_too_new=False, was_closed_at_once=False, was_answered=True,
                    acknowledged=1, unacknowledged={},
                )))

            async def run(self) -> str:
                lasts = left.pop(0)
                self.was_up = lasts is not None
                clock[0] += lasts or 0.0
                return "no reason"

        async def sleep(seconds: float) -> None:
            waited.append(seconds)
            clock[0] += seconds
            if not left:
                raise Over

        monkeypatch.setattr(module, "Link", Link)
        monkeypatch.setattr(module.asyncio, "sleep", sleep)
        section = Section.model_validate({
            "name": "b", "address": "mqtt://127.0.0.1:1", "topics": [{"filter": "#"}],
            "reconnect_min": MIN_S, "reconnect_max": MAX_S,
        })
        bridge = module.Bridge(section, Broker(Limits()), lambda: None, lambda: clock[0], lambda _: None, Path)

        async def main() -> None:
            with pytest.raises(Over):
                await bridge._run()

        asyncio.run(main())
        return waited

    return run


def is_about(waited: float, wanted: float) -> bool:
    return 0.8 * wanted <= waited <= 1.2 * wanted


def test_it_doubles_from_the_least_to_the_most(waits: Callable[..., list[float]]) -> None:
    found = waits(*[None] * 10)
    wanted = [0.5, 1, 2, 4, 8, 10, 10, 10, 10, 10]
    assert all(is_about(each, about) for each, about in zip(found, wanted, strict=True)), found
    assert len({each / about for each, about in zip(found, wanted, strict=True)}) > 1, "never in step"


def test_a_connection_that_held_starts_anew_and_a_short_one_does_not(waits: Callable[..., list[float]]) -> None:
    found = waits(None, None, None, 60.0, None, 0.1, 0.1)
    wanted = [0.5, 1, 2, 0.5, 1, 2, 4]
    assert all(is_about(each, about) for each, about in zip(found, wanted, strict=True)), found
