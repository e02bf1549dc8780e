"""The printed default configuration and docs/configuration.md say what the keys say."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from midge.config import Config, load, parse
from midge.config.reference import markdown, toml
from midge.config.section import Section, sections_of, unit_of

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


def sections() -> Iterator[tuple[str, type[Section]]]:
    for name, (section, _) in sections_of(Config).items():
        yield name, section
        for key, (inner, _) in sections_of(section).items():
            yield f"{name}.{key}", inner


KEYS = [(name, section, key) for name, section in sections() for key in section.model_fields]


def test_the_printed_configuration_is_all_defaults(tmp_path: Path) -> None:
    path = tmp_path / "midge.toml"
    path.write_text(toml())
    assert load(path).model_dump() == Config().model_dump()


def test_every_key_is_printed_and_every_example_can_be_used() -> None:
    with_examples = re.sub(r"(?m)^#(?! |$)", "", toml())
    data = tomllib.loads(with_examples)
    for name, (section, is_list) in sections_of(Config).items():
        table = data[name][0] if is_list else data[name]
        assert list(table) == list(section.model_fields)
    data["listener"][0]["type"] = "tls"  # certificates are for that one
    parse(data, "the examples")


@pytest.mark.parametrize(("name", "section", "key"), KEYS, ids=[f"{name}.{key}" for name, _, key in KEYS])
def test_a_key_has_a_text_and_a_quantity_its_unit(name: str, section: type[Section], key: str) -> None:
    field = section.model_fields[key]
    assert field.description and field.description.endswith(".")
    if re.search(r"bytes|messages|timeout|expiry|keep_alive|interval|_min$|_max$", key):
        assert unit_of(field), f"{name}.{key} counts something: say unit=..."


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8").endswith(f"\n{markdown()}"), "run `make reference`, and commit the page"
