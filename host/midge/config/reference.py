"""The default configuration with its comments, and the page docs/configuration.md, from the keys themselves.
Knows how a section describes its keys, no key.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from midge.config.keys import Config
from midge.config.section import Section, allowed_of, literal, sections_of

_WIDTH = 100

_HEAD = """\
# The configuration of `midge broker`, with every key at its default.
# A key that stands behind a # has no default; what stands there is an example.
# `midge broker --check --config FILE` tells whether a file can be used.
"""


def toml() -> str:
    """What `midge broker --print-config` prints."""
    parts = [_HEAD]
    for name, (section, is_list) in sections_of(Config).items():
        is_example = is_list and not Config.model_fields[name].default
        mark = "#" if is_example else ""
        lines = list(_comment(_doc(section)))
        lines.append(f"{mark}[[{name}]]" if is_list else f"[{name}]")
        for key, field in section.model_fields.items():
            lines += ["", *_comment(field.description or ""), *_comment(_facts(field))]
            inner = sections_of(section).get(key)
            if inner is not None:
                lines += _inner_keys(inner[0])
            value, is_default = _value(field)
            lines += _assignment(mark if is_default else "#", key, value)
        parts.append("\n".join(lines) + "\n")
    return "\n\n".join(parts)


def markdown() -> str:
    """The tables of docs/configuration.md."""
    parts = []
    for name, (section, is_list) in sections_of(Config).items():
        title = f"[[{name}]]" if is_list else f"[{name}]"
        parts += [f"## `{title}`", "", _doc(section), "", *_table(section), ""]
        for key, (inner, _) in sections_of(section).items():
            parts += [f"### `{key}` of `{title}`", "", _doc(inner), "", *_table(inner), ""]
    return "\n".join(parts).rstrip() + "\n"


def _doc(section: type[Section]) -> str:
    return " ".join((section.__doc__ or "").split())


def _facts(field: FieldInfo) -> str:
    return f"{allowed_of(field)}; default: {_default(field)}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "none, it must be given"
    return "not set" if field.default is None else literal(field.default)


def _value(field: FieldInfo) -> tuple[Any, bool]:
    """What to show, and whether the file may say it as it is: else it is an example."""
    if field.is_required():
        return (field.examples or [""])[0], True
    if field.default is None:
        return (field.examples or [""])[0], False
    return field.default, True


def _assignment(mark: str, key: str, value: Any) -> list[str]:
    if isinstance(value, list) and value:
        return [f"{mark}{key} = [", *(f"{mark or '  '}{literal(part)}," for part in value), f"{mark}]"]
    return [f"{mark}{key} = {literal(value)}"]


def _inner_keys(section: type[Section]) -> Iterator[str]:
    for key, field in section.model_fields.items():
        yield from _comment(f"{key}: {field.description} ({_facts(field)})", "#   ")


def _comment(text: str, prefix: str = "# ") -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=prefix,
        subsequent_indent=prefix,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _table(section: type[Section]) -> list[str]:
    rows = ["| key | default | allowed | |", "|---|---|---|---|"]
    for key, field in section.model_fields.items():
        cells = [f"`{key}`", _default(field), allowed_of(field), field.description or ""]
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return rows


_BEGIN = "<!-- The rest is written by `make reference`. -->\n"


def write(page: Path) -> bool:
    """Bring the tables of *page* up to date; True if they weren't."""
    text = page.read_text(encoding="utf-8")
    head, begin, _ = text.partition(_BEGIN)
    if not begin:
        raise ValueError(f"{page} has no line {_BEGIN!r}")
    new = f"{head}{begin}\n{markdown()}"
    page.write_text(new, encoding="utf-8")
    return new != text


if __name__ == "__main__":
    write(Path(sys.argv[1]))
