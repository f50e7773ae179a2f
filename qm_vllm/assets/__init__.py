"""What comes with installed packages: the embedded model, the demo's text, and their cache."""
