"""Ego4D NLQ through the AR prior: features are merged, the prior points at time bins.

:mod:`.manifest` writes what ``qm-vllm train-prior`` trains on, :mod:`.reduce` makes K states of N
features, :mod:`.decode` turns a trained prior's time bins into five windows.
"""
