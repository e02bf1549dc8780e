"""The bounds of each session's queue: the broker's own, or those of a rule that fits its client identifier.
Knows no session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from midge.core.limits import Limits, QueueFull


@dataclass(frozen=True, slots=True)
class SessionRule:
    """What is set here takes the place of the same in `Limits`."""

    client_id: str  # a pattern: * stands for any characters, ? for one, [ab] for one of these
    max_queued_messages: int | None = None
    max_queued_bytes: int | None = None
    queue_full: QueueFull | None = None

    def apply(self, limits: Limits) -> Limits:
        messages, size, full = self.max_queued_messages, self.max_queued_bytes, self.queue_full
        return replace(
            limits,
            max_queued_messages=limits.max_queued_messages if messages is None else messages,
            max_queued_bytes=limits.max_queued_bytes if size is None else size,
            queue_full=limits.queue_full if full is None else full,
        )


class SessionLimits:
    """Of rules that fit the same client, the first counts; a bridge's own comes before all."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits  # the broker's; changed in place by `Broker.set_limits`
        self._rules: list[tuple[SessionRule, Limits]] = []
        self._bridges: dict[str, tuple[SessionRule, Limits]] = {}  # by client identifier

    def of(self, client_id: str) -> Limits:
        if (bridge := self._bridges.get(client_id)) is not None:
            return bridge[1]
        for rule, limits in self._rules:
            if fnmatchcase(client_id, rule.client_id):
                return limits
        return self._limits

    def set_rules(self, rules: Sequence[SessionRule]) -> None:
        """Also after the broker's limits have changed."""
        self._rules = [(rule, rule.apply(self._limits)) for rule in rules]
        self._bridges = {name: (rule, rule.apply(self._limits)) for name, (rule, _) in self._bridges.items()}

    def set_bridge(self, rule: SessionRule) -> None:
        """For the one client identifier of *rule*, which is no pattern."""
        self._bridges[rule.client_id] = (rule, rule.apply(self._limits))

    @property
    def may_refuse(self) -> bool:
        """Some queue doesn't drop its oldest."""
        all_limits = [self._limits, *(limits for _, limits in [*self._rules, *self._bridges.values()])]
        return any(limits.queue_full != "drop-oldest" for limits in all_limits)
