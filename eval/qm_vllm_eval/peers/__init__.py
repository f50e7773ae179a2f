"""Other people's packages, run in environments of their own as worker processes."""
