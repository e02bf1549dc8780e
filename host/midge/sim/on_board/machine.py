"""`machine` for the examples where there is none: RTC memory and the pins are files in $MIDGE_BOARD, deep sleep is the
program's end. Takes the place of the unix port's own, which has none of these."""

import os
import sys

FOLDER = os.getenv("MIDGE_BOARD")
DEEPSLEEP_RESET = 4


class RTC:
    def memory(self, data=None):
        if data is None:
            try:
                with open(FOLDER + "/rtc", "rb") as file:
                    return file.read()
            except OSError:
                return b""
        with open(FOLDER + "/rtc", "wb") as file:
            file.write(data)


class ADC:
    CORE_TEMP = 4

    def __init__(self, pin):
        pass

    def read_u16(self):
        return 14_000


class Pin:
    OUT = 1

    def __init__(self, number, mode=None):
        self.number = number

    def value(self, on):
        print("pin", self.number, int(on))


def deepsleep(ms=0):
    print("deep sleep", ms)
    sys.exit(0)


def reset_cause():
    return DEEPSLEEP_RESET


# The chip starts anew: whoever gives the board its power (tests/board_on_a_cable.py) starts the process again.
def reset():
    os.system("kill -KILL $PPID")


# RP2: its boot loader shows itself as a drive.
def bootloader():
    os.mkdir(FOLDER + "/RPI-RP2")
    with open(FOLDER + "/RPI-RP2/INFO_UF2.TXT", "w") as file:
        file.write("UF2 Bootloader v3.0\nModel: Raspberry Pi RP2\nBoard-ID: RPI-RP2\n")
    reset()


# Its time isn't kept here; how often it was fed is, in a file.
class WDT:
    def __init__(self, timeout):
        self.fed = 0

    def feed(self):
        self.fed += 1
        with open(FOLDER + "/fed", "w") as file:
            file.write(str(self.fed))


class Timer:
    def __init__(self, number):
        pass

    def init(self, period, callback):
        print("timer feeds the watchdog")
