"""Helpers shared by evaluations: documents, planted facts, scoring of answers.

Import name ``qm_vllm.eval``. Nothing here downloads a data set; texts come from installed
packages at run time or from files that the user names.
"""
