"""From measured phases to charge: what a wake cycle takes of a battery on a given board, part by part.
Knows currents and times, nothing of how they were measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from midge.boards import profiles
from midge.boards.profiles import Figure, Profile
from midge.boards.simulate import BoardError

MC_PER_MAH = 3600.0
S_PER_DAY = 86_400.0

# s. What the unix port can't tell: a board's processor in TLS's handshake.
TLS_HANDSHAKE_MS = Figure(value=1200, source="micropython-esp32#131 (2017): an ESP32's TLS handshake, about 1.2 s")

# ms in the air for a segment, each way, beyond what listening costs anyway: an upper bound.
AIRTIME_MS = Figure(value=1.3, source="802.11b: 1,500 bytes at 11 Mbit/s with the long preamble; shorter in truth")

# Boards of which nobody has published the time to boot or join are taken to be like this one, and it is said.
_LIKE = "esp32"


@dataclass(frozen=True, slots=True)
class Cost:
    """A part of a cycle: what, for how long, how much. *is_measured*: here, on the unix port and the link."""

    what: str
    ms: float
    mC: float
    is_measured: bool = False


@dataclass(slots=True)
class Consumption:
    """A board's figures as the model uses them; `used` gathers each with its source, `missing` what isn't known."""

    profile: Profile
    used: dict[str, str] = field(default_factory=dict)

    def value(self, key: str, *others: str) -> float:
        """The figure *key*; where the profile has none, one of *others*, or the ESP32's."""
        for name in (key, *others):
            figure = self.profile.current.figures().get(name)
            if figure is not None:
                note = f" (in the place of {key})" if name != key else ""
                self.used[name + note] = f"{figure.value:g}: {figure.source}"
                return figure.value
        if key.endswith("_mA") or key == "deep_sleep_uA":
            raise BoardError(f"{self.profile.name}: firmware/boards has no source for {key}, so nothing can be said")
        like = profiles.find(_LIKE).current.figures()[key]
        self.used[f"{key} (the ESP32's: none is known of this board)"] = f"{like.value:g}: {like.source}"
        return like.value

    # -- parts of a cycle --

    def boot(self) -> Cost:
        ms = self.value("boot_ms")
        return Cost("boot to main.py", ms, ms * self.value("active_mA") / 1000)

    def wifi(self, is_fast: bool) -> Cost:
        """*is_fast*: access point, channel and address are remembered, as device/wifi.py does."""
        key = "connect_wifi_fast_ms" if is_fast else "connect_wifi_ms"
        figures = self.profile.current.figures()
        is_known = key in figures or "connect_wifi_ms" in figures
        ms = self.value(key, "connect_wifi_ms") if is_known else self.value(key)
        charge = figures.get(key.replace("_ms", "_mC"))
        if charge is not None:
            self.used[key.replace("_ms", "_mC")] = f"{charge.value:g}: {charge.source}"
        mC = charge.value if charge is not None else ms * self.value("rx_mA") / 1000
        return Cost("Wi-Fi, remembered" if is_fast else "Wi-Fi, with a scan and DHCP", ms, mC)

    def handshake(self) -> Cost:
        """The processor's part of TLS; its round trips are in the exchange."""
        ms = TLS_HANDSHAKE_MS.value
        self.used["TLS handshake"] = f"{ms:g} ms: {TLS_HANDSHAKE_MS.source}"
        return Cost("TLS, computing", ms, ms * self.value("rx_mA") / 1000)

    def exchange(self, ms: float, segments: float) -> Cost:
        """TCP and MQTT: the radio listens all the time, and sends for a moment."""
        listening = ms * self.value("rx_mA") / 1000
        extra_mA = max(0.0, self.value("tx_mA", "rx_mA") - self.value("rx_mA"))
        self.used["airtime"] = f"{AIRTIME_MS.value:g} ms a segment: {AIRTIME_MS.source}"
        return Cost("TCP and MQTT", ms, listening + segments * AIRTIME_MS.value * extra_mA / 1000, is_measured=True)

    # -- a day --

    def sleeping(self, costs: list[Cost], interval_s: float) -> float:
        """mAh a day of a board that starts a cycle every *interval_s* and sleeps between them."""
        awake_s = sum(cost.ms for cost in costs) / 1000
        asleep_s = max(0.0, interval_s - awake_s)
        mC = sum(cost.mC for cost in costs) + asleep_s * self.value("deep_sleep_uA") / 1000
        return mC / MC_PER_MAH * S_PER_DAY / max(interval_s, awake_s)

    def always_on(self, has_power_save: bool, busy_ms: float, interval_s: float) -> float:
        """mAh a day of a board that keeps its connection. *busy_ms*: the radio is fully on, once in *interval_s*."""
        rx_mA = self.value("rx_mA")
        idle_mA = self.value("modem_sleep_mA", "rx_mA") if has_power_save else rx_mA
        mean_mA = idle_mA + max(0.0, rx_mA - idle_mA) * min(1.0, busy_ms / 1000 / interval_s)
        return mean_mA * 24
