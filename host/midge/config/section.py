"""What every section of the configuration is made of: keys with a text, a unit, a default and a check.
Knows no key.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from midge.protocol.errors import ProtocolError


class Section(BaseModel):
    """A table of the file. Its docstring is what `--print-config` says of it."""

    # strict: TOML has types, and `port = "1883"` or `port = true` is a slip.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def key(
    default: Any,
    text: str,
    *,
    unit: str = "",
    example: Any = None,
    allowed: str = "",
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    min_length: int | None = None,
    pattern: str | None = None,
) -> Any:
    """One key of a section. *default* `...`: it must be given; *example*: what to show where there is no
    default; *allowed*: what is, where the type and the bounds don't say it."""
    return Field(
        default,
        description=text,
        examples=None if example is None else [example],
        json_schema_extra={"unit": unit, "allowed": allowed},
        ge=ge,
        gt=gt,
        le=le,
        min_length=min_length,
        pattern=pattern,
    )


def checked(check: Callable[[str], None], value: str) -> str:
    """*value*, if it passes a check of midge.protocol.topics. ValueError, which pydantic wants, if it doesn't."""
    try:
        check(value)
    except ProtocolError as error:
        raise ValueError(error.message) from None
    return value


def unit_of(field: FieldInfo) -> str:
    return _extra(field, "unit")


def allowed_of(field: FieldInfo) -> str:
    """What a key may be, for an error or the reference: `bytes, 128 to 268_435_460`."""
    what = _extra(field, "allowed") or _type_of(field.annotation)
    bounds: dict[str, Any] = {}
    for item in field.metadata:
        for name in ("ge", "gt", "le", "min_length"):
            if getattr(item, name, None) is not None:
                bounds[name] = getattr(item, name)
    unit = unit_of(field)
    texts = [unit if unit and what in ("a whole number", "a number") else what]
    if "ge" in bounds and "le" in bounds:
        texts.append(f"{literal(bounds['ge'])} to {literal(bounds['le'])}")
    elif "ge" in bounds:
        texts.append(f"{literal(bounds['ge'])} or more")
    elif "gt" in bounds:
        texts.append(f"more than {literal(bounds['gt'])}")
    elif "min_length" in bounds and what == "a list":
        texts.append("not empty")
    elif "le" in bounds:
        texts.append(f"at most {literal(bounds['le'])}")
    return ", ".join(texts)


def literal(value: Any) -> str:
    """*value* as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:_}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {literal(part)}" for name, part in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(literal(part) for part in value) + "]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def sections_of(section: type[Section]) -> dict[str, tuple[type[Section], bool]]:
    """The keys that are tables themselves: their section, and whether there may be several."""
    found = {}
    for name, field in section.model_fields.items():
        inner, is_list = _without_none(field.annotation), False
        if get_origin(inner) is list:
            inner, is_list = get_args(inner)[0], True
        if isinstance(inner, type) and issubclass(inner, Section):
            found[name] = (inner, is_list)
    return found


def _extra(field: FieldInfo, name: str) -> str:
    extra = field.json_schema_extra
    return str(extra.get(name, "")) if isinstance(extra, dict) else ""


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else annotation
    return annotation


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _type_of(annotation: Any) -> str:
    kind = _without_none(annotation)
    if get_origin(kind) is Literal:
        texts = [literal(choice) for choice in get_args(kind)]
        return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"
    if get_origin(kind) is list:
        return "a list"
    return _NAMES.get(kind, "a table")
