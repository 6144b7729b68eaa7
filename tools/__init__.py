"""Command lines: each parses its flags, calls one function, and holds no logic."""
