"""Starts a board's program: chooses its version, restarts it when it fails, goes back from one that doesn't connect.
It must not know what the program does, nor how it came to the board. It lies outside of the versions, in /lib.
"""
# On the flash:                       written by
#   /boot.py, /main.py                  midge boards deploy; two lines each, they import this file
#   /lib/midge_boot.mpy                 midge boards deploy
#   /midge_a/, /midge_b/                a version each: app.mpy and what it imports, manifest.json with sizes and hashes
#   /midge_slot.json                    which of them runs; this file, midge_update.py, deploy
#   /midge.json                         settings; midge boards set
#   /midge_traceback.txt                the last exceptions
#
# A version never changes while it is the one that runs: a new one is made in the other directory, and one rename of
# midge_slot.json switches. littlefs renames atomically, also over a file (littlefs DESIGN.md, "The move problem").

import asyncio
import gc
import io
import json
import os
import sys

try:
    from time import sleep_ms, ticks_diff, ticks_ms
except ImportError:  # CPython, in tests
    import time

    def ticks_ms():
        return int(time.monotonic() * 1000)

    def ticks_diff(end, start):
        return end - start

    def sleep_ms(ms):
        time.sleep(ms / 1000)

ROOT = os.getcwd().rstrip("/")
_STATE, _SETTINGS, _TRACEBACK = "midge_slot.json", "midge.json", "midge_traceback.txt"

# A new version gets two starts until it has connected: one may be lost to a power cut that isn't its fault.
_TRIES = 2
# A program that ran so long has recovered; one that fails so often in a row may have left the chip in a state that
# only a reset ends (a driver, a fragmented heap).
_HEALTHY_MS = 600_000
_FAILURES_MAX = 3
# Bytes: it must fit one packet (2,048; a small hub's 1,875). The first exception is worth most, a loop none.
_TRACEBACK_MAX = 1500


# ------------------------------------------------------------------------------------------------- files


def path(name):
    return ROOT + "/" + name


def read_json(name, default=None):
    try:
        with open(path(name)) as file:
            return json.load(file)
    except (OSError, ValueError):
        return default


# All of it or nothing, whenever the power goes.
def write_file(name, text):
    new = path(name + ".new")
    with open(new, "w") as file:
        file.write(text)
    os.rename(new, path(name))


def remove(name):
    try:
        os.remove(path(name))
    except OSError:
        pass


# `settings("broker.port", 1883)`; without a key all of them.
def settings(key=None, default=None):
    value = read_json(_SETTINGS, {})
    for part in key.split(".") if key else ():
        value = value.get(part) if isinstance(value, dict) else None
    return default if value is None else value


# ------------------------------------------------------------------------------------------------- versions
#
# midge_slot.json: {"slot": "a"}, and while "b" is tried {"slot": "a", "trial": "b", "tries": 1, "id": ...}; after it
# failed {"slot": "a", "failed": {"id": ..., "why": ...}} until that has been told.


def state():
    now = read_json(_STATE) or {}
    if now.get("slot") not in ("a", "b"):
        now["slot"] = "a"
    return now


def save(now):
    write_file(_STATE, json.dumps(now))


def directory(slot):
    return "midge_" + slot


def idle(now):
    return "b" if now["slot"] == "a" else "a"


# The version in the other directory is whole: it runs from the next start on, on trial.
def begin_trial(id):
    now = state()
    save({"slot": now["slot"], "trial": idle(now), "tries": _TRIES, "id": id})


# The version that runs has connected. Gives what there is to tell: (identifier, "running" or "failed", why), or None.
def confirm():
    now = state()
    if "trial" in now:
        save({"slot": now["trial"]})
        return now["id"], "running", ""
    failed = now.get("failed")
    if failed:
        save({"slot": now["slot"]})
        return failed["id"], "failed", failed["why"]


def fall_back(why):
    now = state()
    if "trial" in now:
        try:
            save({"slot": now["slot"], "failed": {"id": now["id"], "why": why}})
        except OSError:
            pass  # the flash is full: choose() doesn't run it either


def is_on_trial():
    return "trial" in state()


# Which version this start runs.
def choose():
    now = state()
    if "trial" not in now:
        return now["slot"]
    if now["tries"] <= 0:
        fall_back("it did not connect before the board was reset or hung")
        return now["slot"]
    now["tries"] -= 1
    try:
        save(now)
    except OSError:  # what can't be counted isn't tried
        return now["slot"]
    return now["trial"]


# ------------------------------------------------------------------------------------------------- what went wrong


def note(error):
    try:
        text = io.StringIO()
        _print_exception(error, text)
        text = text.getvalue()[-_TRACEBACK_MAX:]
        print(text)
        noted = noted_traceback()
        if len(noted) + len(text) <= _TRACEBACK_MAX:
            write_file(_TRACEBACK, noted + text)
    except (OSError, MemoryError):
        gc.collect()  # no room: the program is restarted all the same


def _print_exception(error, file):
    if hasattr(sys, "print_exception"):
        sys.print_exception(error, file)
    else:  # CPython
        import traceback

        traceback.print_exception(error, file=file)


def noted_traceback():
    try:
        with open(path(_TRACEBACK)) as file:
            return file.read()
    except OSError:
        return ""


def forget_traceback():
    remove(_TRACEBACK)


# ------------------------------------------------------------------------------------------------- the program


def reset():
    try:
        from machine import reset
    except ImportError:
        raise SystemExit(1) from None
    reset()


# Resets the board when the event loop hangs. Once begun it can't be ended (ESP32, RP2): in the REPL a timer feeds it.
class _Watchdog:
    def __init__(self, seconds):
        self._wdt = None
        if seconds:
            try:
                from machine import WDT

                self._wdt = WDT(timeout=int(seconds * 1000))
            except (ImportError, ValueError):
                pass

    def feed(self):
        if self._wdt:
            self._wdt.feed()

    def feed_for_ever(self):
        if self._wdt:
            from machine import Timer

            # RP2 has timers in software only, -1; ESP32's are 0 to 3.
            timer = Timer(-1 if sys.platform == "rp2" else 0)
            timer.init(period=1000, callback=lambda timer: self._wdt.feed())


async def _feed(watchdog):
    while True:
        watchdog.feed()
        await asyncio.sleep(1)


async def _give_up(seconds):
    await asyncio.sleep(seconds)
    if is_on_trial():
        fall_back("it did not connect within %d s" % seconds)
        reset()


async def _supervise(main, watchdog):
    tasks = [asyncio.create_task(_feed(watchdog))]
    if is_on_trial():
        tasks.append(asyncio.create_task(_give_up(settings("update.trial_s", 120))))
    try:
        await main()
    finally:
        for task in tasks:
            task.cancel()


# Runs `async def main()` of app.py (or of the module that the setting "program" names) for ever.
def run():
    sys.path.insert(0, path(directory(choose())))
    # RP2 counts to 8,388 ms at most.
    watchdog = _Watchdog(settings("watchdog_s", 8))
    failures = 0
    try:
        while True:
            started = ticks_ms()
            try:
                asyncio.run(_supervise(__import__(settings("program", "app")).main, watchdog))
                print("the program has ended")
            except Exception as error:  # noqa: BLE001 - whatever it is, the board goes on
                note(error)
                if is_on_trial():
                    fall_back("%s: %s" % (type(error).__name__, error))
                    reset()
            if ticks_diff(ticks_ms(), started) > _HEALTHY_MS:
                failures = 0
            failures += 1
            if failures >= _FAILURES_MAX:
                reset()
            asyncio.new_event_loop()
            for _ in range(2**failures):
                watchdog.feed()
                sleep_ms(500)
    except KeyboardInterrupt:
        watchdog.feed_for_ever()
        raise
