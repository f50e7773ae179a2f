"""Changes to vLLM's own objects that no public interface allows, one module each.

None yet: every hook in use is public (see ``qm_vllm/engine/compat.py``). A module added here
names the vLLM versions it fits, the attribute it changes and the interface that would
replace it.
"""
