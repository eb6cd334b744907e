"""Registers the engine's pytest plug-in under the name of its entry point, so that a bare clone works too."""

pytest_plugins = ["gauntlet.pytest_plugin"]
