"""Where samples are evaluated: the transformers harness, or real vLLM with the plug-in."""
