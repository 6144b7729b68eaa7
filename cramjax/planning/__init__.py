"""Plans of runs on devices that are not here: memory, speed, and what a budget buys.

Figures come from the step compiled for the device, or by formula if its compiler is not installed.
"""
