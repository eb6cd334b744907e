"""Maths that attacks and defenses share: pure functions on tensors."""
