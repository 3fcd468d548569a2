"""Devices: meshes, shardings, runs on several hosts, and the compiler's options."""
