"""On which line of a TOML file each key stands: tomllib reads the file, and says only what it holds.
Knows the grammar of TOML 1.0, and takes for granted that tomllib has accepted the text.
"""

from __future__ import annotations

import re
import tomllib

# (*key path) as pydantic's errors have it: names, and the position in a list.
KeyPath = tuple[str | int, ...]

_TOKEN = re.compile(
    r'''
    (?P<string> """(?:\\.|[^\\])*?"{3,5} | \'\'\'.*?\'{3,5} | "(?:\\.|[^"\\\n])*" | '[^'\n]*' )
    | (?P<skip> \#[^\n]* | [ \t\r]+ )
    | (?P<newline> \n )
    | (?P<mark> [\[\]{}=,.] )
    | (?P<bare> [^\s\[\]{}=,.\#"']+ )
    ''',
    re.DOTALL | re.VERBOSE,
)


def lines_of(text: str) -> dict[KeyPath, int]:
    """The line, counted from 1, of each key and of each entry of a list."""
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, int]] = []  # text, line
        line = 1
        for match in _TOKEN.finditer(text):
            if match.lastgroup != "skip":
                self._tokens.append((match.group(), line))
            line += match.group().count("\n")
        self._tokens.append(("", line))  # the end
        self._at = 0
        self._lines: dict[KeyPath, int] = {}
        self._counts: dict[KeyPath, int] = {}  # of the tables that stand as [[key]]

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        while self._next:
            if self._next == "\n":
                self._take()
            elif self._next == "[":
                table = self._header()
            else:
                self._pair(table)
        return self._lines

    @property
    def _next(self) -> str:
        return self._tokens[self._at][0]

    def _take(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1][0]

    def _note(self, path: KeyPath, line: int) -> None:
        for length in range(1, len(path) + 1):
            self._lines.setdefault(path[:length], line)

    def _header(self) -> KeyPath:
        """`[a.b]` or `[[a.b]]`: the path of the table that follows."""
        line = self._tokens[self._at][1]
        self._take()
        is_list = self._next == "["
        if is_list:
            self._take()
        names = self._names("]")
        if is_list:
            self._take()
        path: KeyPath = ()
        for number, name in enumerate(names, 1):
            path += (name,)
            if is_list and number == len(names):
                self._counts[path] = self._counts.get(path, 0) + 1
            if path in self._counts:
                path += (self._counts[path] - 1,)
        self._note(path, line)
        return path

    def _names(self, end: str) -> list[str]:
        """A dotted key up to *end*, which is taken too."""
        names = []
        while (token := self._take()) != end:
            if token[0] in "\"'":
                names.append(str(tomllib.loads(f"key = {token}")["key"]))
            elif token != ".":
                names.append(token)
        return names

    def _pair(self, table: KeyPath) -> None:
        line = self._tokens[self._at][1]
        path = (*table, *self._names("="))
        self._note(path, line)
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        if self._next == "[":
            self._list(path)
        elif self._next == "{":
            self._take()
            while self._next != "}":
                if self._next in (",", "\n"):
                    self._take()
                else:
                    self._pair(path)
            self._take()
        else:
            while self._next not in (",", "]", "}", "\n", ""):
                self._take()

    def _list(self, path: KeyPath) -> None:
        self._take()
        position = 0
        while self._next != "]":
            if self._next in (",", "\n"):
                self._take()
                continue
            item = (*path, position)
            self._note(item, self._tokens[self._at][1])
            self._value(item)
            position += 1
        self._take()
