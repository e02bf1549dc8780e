# Runs before main.py, also after a soft reset. Nothing is needed here: what could fail is in main.py's supervisor.
