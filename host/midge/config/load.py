"""Reads a configuration file and checks it.
Knows TOML and files, no key.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from midge.config.errors import ConfigError, explain
from midge.config.keys import Config
from midge.config.lines import KeyPath, lines_of

_TOML_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def load(path: Path) -> Config:
    """Read the file at *path*. ConfigError: it can't be read, isn't TOML, or a key is wrong."""
    data, lines = read_toml(path)
    return parse(data, str(path), path.parent, lines)


def read_toml(path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """What a file holds, and the line of each key. ConfigError: it can't be read, or isn't TOML."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not valid TOML: not UTF-8 ({error.reason})") from None
    text = text.replace("\r\n", "\n")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_syntax_error(path, text, str(error))) from None
    return data, lines_of(text)


def parse(
    data: dict[str, Any], source: str, directory: Path = Path(), lines: Mapping[KeyPath, int] | None = None
) -> Config:
    """Check *data*, which came from *source* (for the errors), a file in *directory*."""
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise explain(error, Config, source, lines or {}) from None
    config._directory = directory
    return config


def _syntax_error(path: Path, text: str, message: str) -> str:
    place = _TOML_PLACE.search(message)
    if place is None:
        return f"{path}: not valid TOML: {message}"
    line = place[1] or text.rstrip().count("\n") + 1
    column = f" (column {place[2]})" if place[2] else ""
    message = message[: place.start()]
    return f"{path}:{line}: not valid TOML: {message[0].lower()}{message[1:]}{column}"
