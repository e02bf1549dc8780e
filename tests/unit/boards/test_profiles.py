"""The boards' profiles: complete, sourced, and refused with a reason where they aren't."""

import tomllib

import pytest

from midge.boards import profiles
from midge.boards.simulate import BoardError

BOARDS = ["esp32", "esp32-c3", "esp32-s3", "pico", "pico-w", "pico2-w"]


def test_there_is_a_profile_for_each_board_that_we_name():
    assert sorted(profiles.load_all()) == BOARDS


@pytest.mark.parametrize("key", BOARDS)
def test_each_figure_has_a_source_that_can_be_looked_up(key):
    profile = profiles.find(key)
    figures = profile.current.figures()
    assert {"light_sleep_uA", "deep_sleep_uA"} <= set(figures)
    for figure in figures.values():
        says = figure.source.lower()
        assert any(word in says for word in ("datasheet", "esp-idf", "#", "/", "the same")), figure.source
    for table in (profile.flash, profile.heap, profile.broker, profile.power_save, profile.rtc_memory):
        assert len(table.source) > 10
    assert profile.caveat or not profile.has_radio


@pytest.mark.parametrize("key", BOARDS)
def test_the_states_of_a_board_are_in_order(key):
    current = {name: figure.value for name, figure in profiles.find(key).current.figures().items()}
    deepest = [current[name] / 1000 for name in ("deep_sleep_uA", "light_sleep_uA")]
    awake = [current[name] for name in ("active_mA", "rx_mA", "tx_mA", "tx_peak_mA") if name in current]
    assert deepest + awake == sorted(deepest + awake)
    if "modem_sleep_mA" in current:
        assert current["light_sleep_uA"] / 1000 < current["modem_sleep_mA"] < current["rx_mA"]


@pytest.mark.parametrize(
    "machine, key",
    [
        ("ESP32 module with ESP32", "esp32"),
        ("Generic ESP32 module with ESP32", "esp32"),
        ("Generic ESP32S3 module with ESP32-S3", "esp32-s3"),
        ("ESP32S3 module with ESP32S3", "esp32-s3"),
        ("LOLIN_C3_MINI with ESP32-C3FH4", "esp32-c3"),
        ("Raspberry Pi Pico with RP2040", "pico"),
        ("Raspberry Pi Pico W with RP2040", "pico-w"),
        ("Raspberry Pi Pico 2 W with RP2350", "pico2-w"),
        ("linux [GCC 10.2.1 20210130] version", None),
        ("ESP32C6 module with ESP32C6", None),
    ],
)
def test_a_board_is_known_by_what_its_firmware_says(machine, key):
    found = profiles.of_machine(machine)
    assert (found and found.key) == key


def test_names_are_taken_as_people_write_them():
    assert profiles.find("ESP32_S3").key == "esp32-s3"
    with pytest.raises(BoardError, match="no board 'arduino'; there are: esp32, esp32-c3"):
        profiles.find("arduino")


@pytest.mark.parametrize(
    "change, reason",
    [
        (("source =", "sauce ="), "flash.source|sauce"),
        (('method = "uf2"', 'method = "esptool"'), "esptool needs chip, chip_id and offset"),
        (("has_radio = false", "has_radio = maybe"), "Invalid value"),
        (("value = 21, ", "value = -21, "), "current.active_mA.value"),
        (('families = [0xE48BFF56]', "families = []"), "uf2 needs families"),
    ],
)
def test_a_profile_that_is_wrong_is_refused_with_file_and_key(tmp_path, change, reason):
    text = (profiles.firmware_directory() / "boards" / "pico.toml").read_text()
    assert change[0] in text
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(text.replace(change[0], change[1], 1))
    with pytest.raises(BoardError, match=reason) as refused:
        profiles.load(wrong)
    assert str(wrong) in str(refused.value)


def test_the_wheel_brings_the_profiles_with_it():
    pyproject = tomllib.loads((profiles.firmware_directory().parent / "pyproject.toml").read_text())
    assert pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]["firmware"] == "midge/_firmware"
