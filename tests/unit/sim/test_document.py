"""A report as Markdown and on a terminal."""

import io

from rich.console import Console

from midge.sim.document import Document


def _paper() -> Document:
    paper = Document("Title")
    paper.heading("Part")
    paper.say("A sentence with `code` and [brackets].")
    paper.table(["what", "how much"], [["a [x]", "1"], ["b", "22"]])
    return paper


def test_markdown_has_a_blank_line_between_parts_and_numbers_to_the_right() -> None:
    assert _paper().markdown() == (
        "# Title\n\n## Part\n\nA sentence with `code` and [brackets].\n\n"
        "| what | how much |\n| --- | ---: |\n| a [x] | 1 |\n| b | 22 |\n"
    )


def test_terminal_shows_the_same_words() -> None:
    out = io.StringIO()
    _paper().print(Console(file=out, width=80))
    for text in ("Title", "Part", "A sentence with `code` and [brackets].", "how much", "22"):
        assert text in out.getvalue()
