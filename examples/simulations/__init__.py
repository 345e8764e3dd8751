"""Simulate what retries, jitter, budgets and limits do to a service: `make simulate`."""
