"""Networks: NNX modules to write them, plain dicts to hold their parameters.

The package knows no mesh, no configuration and no optimizer.
"""
