"""Gauntlet: does this backdoor defense really work?

The engine. It knows no attack, defense, model, task or report by name: it discovers them (`gauntlet.registry`).
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
