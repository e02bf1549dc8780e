"""What a board's program takes from its settings and its last start, whether it has a client or a broker.
It must not know which.
"""
import midge_boot as boot


# None: a board without a radio, or a computer.
def find_network():
    try:
        from wifi import WiFi
    except ImportError:
        return None
    return WiFi(boot.settings("wifi.ssid"), boot.settings("wifi.password"), power=boot.settings("wifi.power"),
                hostname=boot.settings("name"), cache=boot.path("wifi.json"))


def find_updater(name, send):
    from midge_update import Updater

    key = boot.settings("update.key")
    return Updater(name, send, key.encode() if key else None)


# What happened before the last start, as long as nobody has been told.
def tell_traceback(name, send):
    text = boot.noted_traceback()
    if text:
        send(name + "/traceback", text.encode(), True)
        boot.forget_traceback()
