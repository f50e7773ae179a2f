"""The figures of the pages, made from the committed result files.

    python -m qm_vllm_eval.published            # writes them into the pages of the checkout
    python -m qm_vllm_eval.published --check    # says what differs; exit status 1 if anything does

A page holds tables between ``<!-- begin generated: NAME -->`` and ``<!-- end generated -->`` and
single figures between ``<!-- v:NAME -->`` and ``<!-- /v -->``. The first word of a name is a
maker of :mod:`.catalogue`, the others are its arguments; what a page says there comes from files
under ``eval/results`` and ``benchmarks/results`` and from nowhere else.
"""
