"""`midge completion SHELL`: what makes the shell's Tab key know midge's commands and options (argcomplete).
Knows each command's options, nothing of what they do. Completing, the shell runs `midge` with `_ARGCOMPLETE` set.
"""

import argparse
import importlib
import os
import sys
from types import ModuleType

from midge.cli import COMMANDS
from midge.cli.options import Option, Table

SHELLS = ("bash", "zsh", "fish")

_EXAMPLES = """\
To have it in every new shell:
  bash    echo 'eval "$(midge completion bash)"' >> ~/.bashrc
  zsh     echo 'eval "$(midge completion zsh)"' >> ~/.zshrc        (behind the line that has compinit)
  fish    midge completion fish > ~/.config/fish/completions/midge.fish
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="midge completion",
        description="Print the completion of midge's commands and options for a shell.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS)
    return parser


def run(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    try:
        from argcomplete.shell_integration import shellcode
    except ImportError:
        print("midge completion: needs argcomplete: pip install 'midge[tools]'", file=sys.stderr)
        return 1
    print(shellcode(["midge"], shell=options.shell))
    return 0


def complete() -> None:
    """Answers the shell that asks, and ends the process. Without argcomplete there is nothing to offer."""
    try:
        import argcomplete
    except ImportError:
        return
    words = os.environ.get("COMP_LINE", "").split()
    argcomplete.autocomplete(_whole_parser(words[1] if len(words) > 1 else ""), always_complete_options="long")


def _whole_parser(command: str) -> argparse.ArgumentParser:
    """All commands, and of the one that is being typed its options: the others' modules needn't be imported."""
    parser = argparse.ArgumentParser(prog="midge")
    parser.add_argument("--version", action="store_true")
    subparsers = parser.add_subparsers()
    for name, text in COMMANDS.items():
        if name != command:
            subparsers.add_parser(name, help=text)
            continue
        module = importlib.import_module(f"midge.cli.{name}")
        if hasattr(module, "OPTIONS"):
            _add_table(subparsers.add_parser(name, help=text, add_help=False), module.OPTIONS)
        else:
            subparsers.add_parser(name, help=text, add_help=False, parents=[_parser_of(module)])
    return parser


def _parser_of(module: ModuleType) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = module._parser()
    return made


def _add_table(parser: argparse.ArgumentParser, table: Table) -> None:
    for _, group in table:
        for option in group:
            if option.names != ("--",):
                _add_option(parser, option)


def _add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    text, dest = option.text.replace("%", "%%"), option.names[0]
    if not option.takes_value:
        parser.add_argument(*option.names, action="append_const", const=1, dest=dest, help=text)
        return
    added = parser.add_argument(*option.names, action="append", dest=dest, help=text)
    added.completer = _completer(option.complete)  # type: ignore[attr-defined]


def _completer(kind: str) -> object:
    from argcomplete.completers import DirectoriesCompleter, FilesCompleter

    if kind == "file":
        return FilesCompleter()
    if kind == "directory":
        return DirectoriesCompleter()
    return lambda **_: kind.split()
