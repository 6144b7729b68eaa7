"""Configuration: the schema of all keys, resolved recipes, and the parts of every command line."""
