"""A user's own prompts as samples of the studies."""
