"""Command lines: each parses its flags, calls one function, and holds no logic."""

import cramjax  # noqa: F401  before anything slow: it answers Ctrl-C from here on
