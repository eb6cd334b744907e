"""What pytest bench collects: the test and the suites (TOML)."""
