"""The one room that touches vLLM's own names.

Everything of vLLM that qm_vllm uses is imported here and nowhere else in the product, and handed on
as plain values, functions and base classes. It imports nothing of qm_vllm. :mod:`.symbols` is the
complete list of what is used; a test walks the syntax trees and fails on a name that is missing
there. Importing a module of this package changes nothing in vLLM.
"""
