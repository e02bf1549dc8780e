"""A report of headings, sentences and tables, for a terminal and as Markdown.
Knows no subject.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

# Of a line of Markdown.
_WIDTH = 115


@dataclass(frozen=True, slots=True)
class Grid:
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(slots=True)
class Document:
    """Text is Markdown: `code`, nothing else."""

    title: str
    parts: list[str | Grid] = field(default_factory=list)

    def heading(self, text: str) -> None:
        self.parts.append(f"## {text}")

    def say(self, text: str) -> None:
        self.parts.append(text)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.parts.append(Grid(head, rows))

    def markdown(self) -> str:
        blocks = [f"# {self.title}"]
        for part in self.parts:
            if isinstance(part, str):
                blocks.append(textwrap.fill(part, _WIDTH, break_long_words=False, break_on_hyphens=False))
                continue
            lines = [part.head, ["---", *["---:"] * (len(part.head) - 1)], *part.rows]
            blocks.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
        return "\n\n".join(blocks) + "\n"

    def print(self, console: Console) -> None:
        console.print(f"[bold]{self.title}[/]")
        for part in self.parts:
            console.print()
            if isinstance(part, str):
                console.print(part.removeprefix("## "), style="bold" if part.startswith("## ") else None,
                              highlight=False, markup=False)  # fmt: skip
                continue
            table = Table(*part.head)
            for column in table.columns[1:]:
                column.justify = "right"
            for row in part.rows:
                table.add_row(*row)
            console.print(table)
