"""Load on a running server: its process, requests as clients send them, and the answers."""
