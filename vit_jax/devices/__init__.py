"""Devices: meshes, how arrays lie over them, several hosts, and the compiler's options."""
