"""Plain values (numbers, texts, bytes, and what is made of them) as bytes and back: pickled, since that is C.
Refuses anything else: a file from elsewhere must not name functions to call.
"""

from __future__ import annotations

import pickle
from io import BytesIO
from typing import Any


class Damaged(Exception):
    """What is in the file can't be ours."""


class _PlainValues(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def encode(values: Any) -> bytes:
    """A value that occurs more than once, such as a payload, is in it once."""
    return pickle.dumps(values, 5)


def decode(data: bytes, what: str) -> Any:
    """Damaged: it isn't what `encode` gave; *what* names it."""
    try:
        return _PlainValues(BytesIO(data)).load()
    except Exception as error:  # damaged bytes make the unpickler raise whatever it likes
        raise Damaged(f"{what}: {error!r}") from error
