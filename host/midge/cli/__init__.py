"""The `midge` command: finds the module of the subcommand and hands it the arguments.
Knows nothing of what a subcommand does; modules are imported only when called, so that start-up stays short.
"""
