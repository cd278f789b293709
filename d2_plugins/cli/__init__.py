"""Commands: one module per command, named after it."""
