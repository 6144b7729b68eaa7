"""Networks: NNX modules to write them, plain dicts to hold their parameters; no mesh, no configuration, no optimizer here."""
