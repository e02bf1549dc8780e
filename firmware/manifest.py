# Freezes device/ into a build of MicroPython (docs/freezing.md):
#     make BOARD=ESP32_GENERIC FROZEN_MANIFEST=/path/to/midge/firmware/manifest.py
# MicroPython's build runs this file; its functions are documented at
# https://docs.micropython.org/en/latest/reference/manifest.html
# A manifest of your own takes parts of it: include("/path/to/midge/firmware/manifest.py", broker=False, serial=False)
options.defaults(port=True, client=True, battery=True, broker=True, serial=True, boot=True)

# What the board's own firmware has: its start, asyncio, drivers. Some boards have a manifest of their own for it, which
# includes the port's.
if options.port:
    try:
        include("$(BOARD_DIR)/manifest.py")
    except Exception:  # noqa: BLE001 - the build's ManifestFileError: there is none
        include("$(PORT_DIR)/boards/manifest.py")


# opt: as mpy-cross -O. 2 strips asserts; 3 line numbers too, as `make mpy` does where memory is tight.
def freeze_modules(*names, opt=2):
    for name in names:
        module(name + ".py", base_path="../device", opt=opt)


if options.client:
    freeze_modules("midge_client", "midge_mqtt5", "midge_large", "midge_umqtt", "midge_find", "wifi")
if options.battery:
    freeze_modules("midge_wake", "midge_outbox")
if options.serial:
    freeze_modules("midge_serial")
if options.boot:
    freeze_modules("midge_boot", "midge_update")
if options.broker:
    freeze_modules("midge_broker", "midge_broker_v5", "midge_broker_store", opt=3)
