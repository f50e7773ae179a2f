"""A second engine on transformers modules: what every method is measured with, outside vLLM."""
