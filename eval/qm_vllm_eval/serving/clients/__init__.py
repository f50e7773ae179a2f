"""Clients that people use, each against a running server: what they send arrives and comes back."""
