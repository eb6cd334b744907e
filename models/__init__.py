"""Architectures: one file each; weights are never here."""
