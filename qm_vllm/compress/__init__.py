"""Token compression on plain tensors: pure PyTorch, no vLLM.

:func:`compress` is the whole method; the rest are its parts, which the engine uses one by one.
"""

from qm_vllm.compress.attention_error import AttentionError, sizes_between, smallest_within
from qm_vllm.compress.budget import (
    choose_budget,
    in_blocks,
    keep_order,
    protected_mask,
    protected_positions,
    round_to_blocks,
    select,
)
from qm_vllm.compress.choice import Choice, choose
from qm_vllm.compress.entropy import attention_entropy
from qm_vllm.compress.entropy_lse import attention_entropy_lse
from qm_vllm.compress.evidence import Evidence, absolute_saliency, row_norms
from qm_vllm.compress.fidelity import (
    gamma,
    reconstruction_error,
    retained_norm,
    zero_padded_error,
)
from qm_vllm.compress.grouping import GROUPINGS, group_tokens
from qm_vllm.compress.gumbel import gumbel_softmax_mask, soft_merge
from qm_vllm.compress.head_choice import (
    HeadOrder,
    choose_for_heads,
    end_in_every_head,
    scores_of_heads,
)
from qm_vllm.compress.head_habits import (
    HeadHabits,
    kept_places,
    least_look_back,
    looks_back,
    run_twice,
)
from qm_vllm.compress.layer_budget import layer_sizes, looking_layers
from qm_vllm.compress.leverage import leverage, standing_out
from qm_vllm.compress.merge import MAX_DROPPED_SHARE, merge_states, token_masses
from qm_vllm.compress.normalize import absolute, average_rank, min_max
from qm_vllm.compress.pipeline import Compressed, compress, finish
from qm_vllm.compress.query_attention import QueryAttention
from qm_vllm.compress.saliency import SALIENCIES, needs, score_tokens
from qm_vllm.compress.window_attention import window_attention, window_weights
from qm_vllm.compress.workspace import workspace_bytes

__all__ = [
    "GROUPINGS",
    "MAX_DROPPED_SHARE",
    "SALIENCIES",
    "AttentionError",
    "Choice",
    "Compressed",
    "Evidence",
    "HeadHabits",
    "HeadOrder",
    "QueryAttention",
    "absolute",
    "absolute_saliency",
    "attention_entropy",
    "attention_entropy_lse",
    "average_rank",
    "choose",
    "choose_budget",
    "choose_for_heads",
    "compress",
    "end_in_every_head",
    "finish",
    "gamma",
    "group_tokens",
    "gumbel_softmax_mask",
    "in_blocks",
    "keep_order",
    "kept_places",
    "layer_sizes",
    "least_look_back",
    "leverage",
    "looking_layers",
    "looks_back",
    "merge_states",
    "min_max",
    "needs",
    "protected_mask",
    "protected_positions",
    "reconstruction_error",
    "retained_norm",
    "round_to_blocks",
    "row_norms",
    "run_twice",
    "score_tokens",
    "scores_of_heads",
    "select",
    "sizes_between",
    "smallest_within",
    "soft_merge",
    "standing_out",
    "token_masses",
    "window_attention",
    "window_weights",
    "workspace_bytes",
    "zero_padded_error",
]
