"""The command line: a file a command group, loaded when its command is called."""
