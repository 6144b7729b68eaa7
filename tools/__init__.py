"""Command lines: each reads flags, calls the library and prints; they hold no logic."""

# Before anything slow: from here on cramjax answers signals.
import cramjax  # noqa: F401
