import midge_boot

midge_boot.run()
