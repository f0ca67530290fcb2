"""The tasks, one module each, and the commands that convert and calibrate."""
