"""Configuration: the schema of all keys, recipes resolved against it, and what every command line shares."""
