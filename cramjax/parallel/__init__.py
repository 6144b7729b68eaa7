"""Devices and processes: the mesh, and the mesh axis of each array axis.

Only names of axes come in, never a model.
"""
