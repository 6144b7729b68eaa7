"""Measurements of the project by itself; nothing else imports it."""
