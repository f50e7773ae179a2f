"""``qm-vllm eval``: names its commands, nothing else."""

from __future__ import annotations

import typer

from qm_vllm.cli.engine_flags import PASS_THROUGH
from qm_vllm_eval.cli.booksum import booksum
from qm_vllm_eval.cli.ego4d import ego4d_nlq
from qm_vllm_eval.cli.paper import paper_claims, paper_tables

app = typer.Typer(
    help="Run a data set through vLLM replicas, at several ratios.", no_args_is_help=True
)
app.command(context_settings=PASS_THROUGH)(booksum)
app.command(context_settings=PASS_THROUGH)(ego4d_nlq)
app.command()(paper_tables)
app.command()(paper_claims)
