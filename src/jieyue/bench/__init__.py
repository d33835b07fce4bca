"""Measurements on this machine: speed, memory and equality, always against the obvious alternative."""
