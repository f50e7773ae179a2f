"""Commands of the studies; ``qm-vllm`` shows them where this distribution is installed."""
