"""What goes onto a board: the modules that a role's program imports, compiled, under names that the board takes."""

import ast

import pytest

from midge.boards import bundle
from midge.boards.profiles import firmware_directory, load_all
from midge.boards.simulate import BoardError, device_directory

OURS = {path.stem for path in device_directory().glob("*.py")} | {"basics", "board"}


def imported(path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return names & OURS


@pytest.mark.parametrize("role", bundle.ROLES)
def test_a_role_has_all_that_its_program_imports(role):
    templates = firmware_directory() / "templates"
    there = set(bundle.ROLES[role]) | {"midge_boot"}
    pending, needed = [templates / f"{role}.py"], set()
    while pending:
        for name in imported(pending.pop()) - needed:
            needed.add(name)
            path = templates / f"{name}.py"
            pending.append(path if path.exists() else device_directory() / f"{name}.py")
    needless = {"wifi"} if role == "serial" else set()  # a board without a radio does without
    # What midge_client and midge_broker can use, if it is there, is a role's choice.
    optional = {"midge_mqtt5", "midge_large", "midge_outbox", "midge_wake", "midge_broker_v5", "midge_broker_store"}
    assert needed - there - needless - optional == set()


@pytest.mark.parametrize("architecture", sorted({profile.mpy_arch for profile in load_all().values()}))
def test_files_compile_for_each_boards_processor(architecture, tmp_path):
    native = tmp_path / "native.py"
    native.write_text("import micropython\n@micropython.native\ndef double(x):\n    return 2 * x\n")
    data = bundle.compile_file(native, architecture)
    assert data[:2] == b"M\x06" and data[2] >> 2 != 0, "it names the processor"
    plain = bundle.compile_file(device_directory() / "midge_boot.py", architecture)
    assert plain[2] >> 2 == 0, "runs on any"


def test_a_version_is_known_by_what_is_in_it(tmp_path):
    one, same = bundle.Bundle({"a.mpy": b"1", "b": b"2"}), bundle.Bundle({"b": b"2", "a.mpy": b"1"})
    assert one.id == same.id and one.manifest() == same.manifest()
    assert one.id != bundle.Bundle({"a.mpy": b"1", "b": b"3"}).id != bundle.Bundle({"a.mpy": b"1"}).id


def test_what_can_not_go_onto_a_board_is_refused(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("def")
    with pytest.raises(BoardError, match=r"broken.py doesn't compile: (.|\n)*SyntaxError"):
        bundle.load([broken])
    for name in ("with space.txt", ".hidden", "manifest.json", "x.part"):
        (tmp_path / name).touch()
        with pytest.raises(BoardError, match="can't have this name"):
            bundle.load([tmp_path / name])
    (tmp_path / "twice.py").touch()
    (tmp_path / "twice.mpy").touch()
    with pytest.raises(BoardError, match=r"there is another twice\.mpy"):
        bundle.load([tmp_path / "twice.py", tmp_path / "twice.mpy"])
    with pytest.raises(BoardError, match="no role 'toaster'"):
        bundle.make("toaster")
    with pytest.raises(BoardError, match=r"reads .mpy version 5, mpy-cross here makes 6"):
        bundle.check_version(b"M\x06\x00", 0x1F05)
    with pytest.raises(BoardError, match=r"isn't a .mpy file"):
        bundle.check_version(b"import x", 2822)
