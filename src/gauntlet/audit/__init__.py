"""Auditing a model that somebody handed over: the engine's ordinary cases on the user's files, and what they say."""
