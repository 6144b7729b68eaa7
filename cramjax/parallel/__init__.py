"""Devices: the mesh, and which array axis lies on which mesh axis. Sees axis names only, never a model."""
