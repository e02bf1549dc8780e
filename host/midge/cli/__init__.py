"""The `midge` command: finds the module of the subcommand and hands it the arguments.
Knows nothing of what a subcommand does; modules are imported only when called, so that start-up stays short.
"""

import importlib
import os
import sys

# One module each, with `run(argv: list[str]) -> int`; the text is its line in `midge --help`.
COMMANDS = {
    "broker": "run the broker on this machine",
    "pub": "publish messages (options as mosquitto_pub's)",
    "sub": "subscribe and print what arrives (options as mosquitto_sub's)",
    "rr": "ask, and wait for the answer (options as mosquitto_rr's)",
    "serve": "answer requests with what a command prints",
    "bench": "load a broker, or compare two: speed, latency, loss, duplicates, order",
    "top": "watch a broker and its boards: clients, rates, queues, drops, heaps",
    "doctor": "what is wrong with this set-up, and what to do about it",
    "passwd": "manage a password file (options as mosquitto_passwd's)",
    "bridge": "turn Mosquitto's bridges into ours (midge bridge import mosquitto.conf)",
    "completion": "make the shell's Tab key know all this (midge completion bash)",
    "find": "list the brokers on the network and the boards on USB",
    "boards": "flash, deploy, set, log, update: boards on USB and on the network",
    "sim": "simulate a fleet of boards; how long does a battery last?",
    "demo": "run the whole thing here: a broker, three simulated boards and what they say",
}

_HELP = """\
MQTT for boards: the host side.

usage: midge COMMAND [OPTION ...]
       midge --version

commands:
{commands}

examples:
  midge sub -v -t '#'                        print every message, in one terminal
  midge pub -t kitchen/lamp -m on -q 1       publish one, from another

'midge COMMAND --help' tells a command's options."""

# What a shell reports for a process that was ended by SIGINT or SIGPIPE: 128 + the signal's number.
_EXIT_INTERRUPTED = 130
_EXIT_BROKEN_PIPE = 141


def main(argv: list[str] | None = None) -> int:
    """Runs `midge ARGV` and returns its exit code; 2 is a command line that names no command of ours."""
    argv = sys.argv[1:] if argv is None else argv
    if "_ARGCOMPLETE" in os.environ:
        from midge.cli.completion import complete

        complete()
    name = argv[0] if argv else "--help"
    if name in ("--help", "-h", "help"):
        print(_help())
        return 0 if argv else 2
    if name == "--version":
        from midge import __version__

        print(f"midge {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"midge: no command '{name}'; the commands are: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return _run(name, argv[1:])


def _run(name: str, argv: list[str]) -> int:
    try:
        code = importlib.import_module(f"midge.cli.{name}").run(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`midge sub | head -1`). The interpreter flushes stdout once more
        # at its end; that must not raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_BROKEN_PIPE
    return int(code)


def _help() -> str:
    commands = "\n".join(f"  {name:10} {text}" for name, text in COMMANDS.items())
    return _HELP.format(commands=commands)
