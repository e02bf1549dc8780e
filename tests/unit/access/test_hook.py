"""The auth hook: found by its entry point, called off the loop, whatever kind of function it is."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from midge.access.errors import AccessFileError
from midge.access.hook import Hook, Login

SOURCE = """
import asyncio, threading

def plain(login):
    return threading.current_thread().name, login.username

async def later(login):
    await asyncio.sleep(0)
    return threading.current_thread().name, login.username

class Callable:
    async def __call__(self, login):
        return threading.current_thread().name, login.username

instance = Callable()
not_a_function = 5

def broken(login):
    raise RuntimeError("no directory")

async def broken_later(login):
    raise RuntimeError("no directory")

async def takes_nothing():
    return True
"""
NAMES = ("plain", "later", "instance", "not_a_function", "broken", "broken_later", "takes_nothing", "missing")
LOGIN = Login("one", "anna", b"secret", "192.0.2.1:5", 5)


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "hook_package.py").write_text(SOURCE)
    metadata = tmp_path / "hook_package-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: hook-package\nVersion: 1\n")
    lines = [f"{name} = hook_package:{name}" for name in NAMES] + ["unwritten = no_such_module:x"]
    (metadata / "entry_points.txt").write_text("[midge.auth]\n" + "\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("hook_package", None)


@pytest.mark.parametrize("name", ["plain", "later", "instance"])
def test_a_function_is_asked_in_a_thread_of_its_own(name: str) -> None:
    async def ask() -> object:
        return await asyncio.wrap_future(hook.ask(LOGIN))

    hook = Hook(name)
    try:
        answers = [asyncio.run(ask()) for _ in range(2)]
    finally:
        hook.close()
    for thread, username in answers:  # type: ignore[misc]
        assert thread.startswith(f"auth-{name}") and thread != threading.current_thread().name
        assert username == "anna"


@pytest.mark.parametrize("name", ["broken", "broken_later", "takes_nothing"])
def test_what_it_raises_comes_with_the_answer(name: str) -> None:
    hook = Hook(name)
    answer = hook.ask(LOGIN)
    with pytest.raises((RuntimeError, TypeError), match=r"no directory|takes 0 positional arguments"):
        answer.result(10)
    hook.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", r"auth hook 'absent': no installed package has it; there are: broken, .*plain"),
        ("missing", r"'missing' \(hook_package:missing\): AttributeError"),
        ("unwritten", r"'unwritten' \(no_such_module:x\): ModuleNotFoundError"),
        ("not_a_function", r"not a function"),
    ],
)
def test_one_that_can_not_be_used_is_named(name: str, message: str) -> None:
    with pytest.raises(AccessFileError, match=message):
        Hook(name)
