"""device/midge_update.py and device/midge_boot.py without a network: the power goes at every write to the flash."""

import json
import subprocess

import brokers

SCRIPT = brokers.ROOT / "tests" / "device" / "on_board" / "update_power_cut.py"


def test_the_power_may_go_at_every_write_to_the_flash():
    # The heap holds the flash, and an image of it for each start.
    done = subprocess.run([brokers.micropython(), "-X", "heapsize=8M", SCRIPT], cwd=brokers.ROOT, capture_output=True,
                          text=True, timeout=50, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    # Before it come complaints of the collector, which closes a file of the flash that is gone.
    said, cuts, old, new = json.loads(done.stdout.splitlines()[-1])
    assert said == "cuts" and cuts > 60 and old > 50 and new >= 1 and old + new == cuts
