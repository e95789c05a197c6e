"""The commands: options of each, and what it runs. The scripts in launchers/ and the console scripts call them."""
