"""The vLLM plug-in. Import the modules below only where vLLM is installed."""
