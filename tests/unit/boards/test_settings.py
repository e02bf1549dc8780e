"""A board's settings: what is taken, what is refused, and that a secret shows nowhere."""

import pytest

from midge.boards import settings
from midge.boards.simulate import BoardError

SECRET = "correct horse battery"


def never(prompt: str) -> str:
    raise AssertionError(f"asked for {prompt}")


def test_values_are_taken_converted_and_merged():
    taken = settings.take(["name=kitchen", "wifi.ssid=our home", "broker.port=1884", "watchdog_s=0", "app.hue=red"])
    assert taken == {"name": "kitchen", "wifi.ssid": "our home", "broker.port": 1884, "watchdog_s": 0, "app.hue": "red"}
    merged = settings.merge({"name": "board", "wifi": {"ssid": "old", "power": "none"}, "wifi2": 3}, taken)
    assert merged["wifi"] == {"ssid": "our home", "power": "none"} and merged["broker"] == {"port": 1884}
    assert merged["name"] == "kitchen" and merged["wifi2"] == 3
    assert settings.merge(merged, settings.take(["broker.port="])).get("broker") is None


def test_a_secret_is_asked_for_or_comes_from_a_file_or_the_environment(tmp_path):
    asked = []
    taken = settings.take(["wifi.password"], prompt=lambda text: asked.append(text) or SECRET)
    assert taken == {"wifi.password": SECRET}
    assert asked == ["wifi.password: "]
    path = tmp_path / "password"
    path.write_text(SECRET + "\n")
    assert settings.take([f"ap.password=@{path}"], prompt=never) == {"ap.password": SECRET}
    assert settings.take(["update.key=env:KEY"], {"KEY": SECRET}, never) == {"update.key": SECRET}
    assert settings.take(["wifi.password="], prompt=never) == {"wifi.password": None}


@pytest.mark.parametrize(
    "word, why",
    [
        (f"wifi.password={SECRET}", "is a secret, and a command line is kept"),
        ("wifi.password=@/nonexistent/file", "wifi.password: /nonexistent/file: No such file"),
        ("wifi.password=env:NONE", "the environment has no NONE"),
        ("wifi.ssdi=home", "there is no setting 'wifi.ssdi'; there are: name, "),
        ("broker.port=eighty", "'eighty' isn't a number"),
        ("broker.port=70000", "must be 1 to 65,535"),
        ("name=kitchen/lamp", "must be one topic level"),
        ("watchdog_s=60", r"must be 0 to 8\.388"),
        ("wifi.power=low", "'low' isn't one of none, performance, powersave"),
        ("update.key=env:SHORT", "must have 16 characters or more"),
    ],
)
def test_what_can_not_be_is_refused_and_no_secret_is_in_the_words(word, why):
    with pytest.raises(BoardError, match=why) as refused:
        settings.take([word], {"SHORT": "hush"}, never)
    assert SECRET not in str(refused.value) and "hush" not in str(refused.value)


def test_settings_are_shown_without_their_secrets():
    shown = settings.show({
        "name": "kitchen", "wifi": {"ssid": "home", "password": SECRET}, "update": {"key": SECRET},
        "app": {"api_token": SECRET, "colour": "red"},
    })  # fmt: skip
    assert "name = kitchen" in shown and "wifi.ssid = home" in shown and "app.colour = red" in shown
    assert SECRET not in "\n".join(shown)
    assert [line for line in shown if line.endswith("= (set)")] == [
        "app.api_token = (set)", "update.key = (set)", "wifi.password = (set)",
    ]  # fmt: skip


def test_every_key_is_one_that_the_programs_read():
    """A key that nothing on the board reads would be a promise that isn't kept."""
    from midge.boards.profiles import firmware_directory
    from midge.boards.simulate import device_directory

    sources = [*(firmware_directory() / "templates").glob("*.py"), device_directory() / "midge_boot.py"]
    text = "\n".join(path.read_text() for path in sources)
    unread = [name for name in settings.KEYS if f'settings("{name}"' not in text]
    assert unread == []
