"""From settings to a stored run: everything between the command line and the first block."""
