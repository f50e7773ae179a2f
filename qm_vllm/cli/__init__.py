"""The command ``qm-vllm``. Importing it imports neither vLLM nor torch."""
