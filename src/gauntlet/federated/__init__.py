"""Federated learning: users with shards of the training data, a server that sees their updates only."""
