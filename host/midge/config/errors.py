"""What is said of a configuration that can't be used: file, line, key, value, and what is allowed.
Knows pydantic's errors; the keys come from the sections.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from midge.config.lines import KeyPath
from midge.config.section import Section, allowed_of, literal, sections_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

# Keys whose values are nobody's business, also in an error.
_SECRET = {"password"}


class ConfigError(Exception):
    """The configuration can't be used; the message names file, line, key, value and what is allowed."""


def explain(
    error: ValidationError, root: type[Section], source: str, lines: Mapping[KeyPath, int]
) -> ConfigError:
    """All that *error* tells of a file whose sections are *root*'s; *lines* may be empty."""
    texts = []
    for line, item in sorted(((_line(e["loc"], lines), e) for e in error.errors()), key=lambda found: found[0]):
        place = f"{source}:{line}" if line else source
        texts.append(f"{place}: {where(item['loc'])}: {_explain(item, root)}")
    return ConfigError("\n".join(texts))


def where(path: KeyPath) -> str:
    """`bridge[1].topics[1].qos`, counted from 1 as a reader does."""
    text = ""
    for part in path:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "the file"


def _line(path: KeyPath, lines: Mapping[KeyPath, int]) -> int:
    """Of the key, or of what should hold it; 0: not known."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 0)


def _explain(item: ErrorDetails, root: type[Section]) -> str:
    path, kind, value = item["loc"], item["type"], item["input"]
    if kind == "extra_forbidden":
        return _unknown(path, root)
    if kind == "missing":
        return f"must be given: {_allowed(path, root)}"
    name = str(path[-1]) if path else ""
    if kind == "list_type" and isinstance(value, dict):
        return f"write [[{name}]], with two brackets: there may be several"
    if kind == "model_type" and isinstance(value, list):
        return f"write [{name}], with one bracket: there is only one"
    message = item["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        allowed = message
    else:
        allowed = _allowed(path, root) or f"{message[0].lower()}{message[1:]}"
    if name in _SECRET:
        return f"its value is not allowed: {allowed}"
    shown = "" if isinstance(value, dict | list) else f"{_shown(value)} is not allowed: "
    return f"{shown}{allowed}"


def _shown(value: Any) -> str:
    text = literal(value) if isinstance(value, bool | int | float | str) else str(value)
    return text if len(text) <= 100 else text[:100] + "..."


def _section_at(path: KeyPath, root: type[Section]) -> type[Section] | None:
    """The section that the table at *path* is."""
    section: type[Section] | None = root
    for part in path:
        if isinstance(part, str) and section is not None:
            section = sections_of(section).get(part, (None, False))[0]
    return section


def _allowed(path: KeyPath, root: type[Section]) -> str:
    section = _section_at(path[:-1], root)
    field = section.model_fields.get(str(path[-1])) if section is not None and path else None
    return allowed_of(field) if field is not None else ""


def _unknown(path: KeyPath, root: type[Section]) -> str:
    name = str(path[-1])
    section = _section_at(path[:-1], root)
    assert section is not None  # pydantic looks for keys only in sections
    close = get_close_matches(name, section.model_fields, n=1)
    if close:
        return f"unknown key; did you mean {close[0]}?"
    homes = [
        f"[[{table}]]" if is_list else f"[{table}]"
        for table, (inner, is_list) in sections_of(root).items()
        if inner is not section and name in inner.model_fields
    ]
    if homes:
        return f"unknown key here; it belongs in {' or '.join(homes)}"
    return f"unknown key; allowed here: {', '.join(section.model_fields)}"
