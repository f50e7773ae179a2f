"""The prior as a vLLM model: vLLM's own Llama blocks on the paged KV cache.

vLLM finds it by its architecture's name (``qm_vllm.prior.vllm_plugin``). A request is a prompt
of merged states, embedded by ``qm_vllm.prior.prompts.StatePrompts``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.utils import WeightsMapper

CHECKPOINT = WeightsMapper(
    orig_to_new_prefix={
        # What generating output ids does not need inside the engine stays behind.
        "backward_stack.": None,
        "forward_stack.state_head.": None,
        "forward_stack.input_proj.": None,
        "state_mean": None,
        "state_std": None,
        "forward_stack.model.": "model.",
    }
)
"""Names of a checkpoint of the transformers class to names in here."""


class ServedPrior(LlamaForCausalLM):
    """The forward decoder of ``qm_vllm.prior.model.QuickMergePriorForCausalLM`` in vLLM."""

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load a checkpoint of the transformers class.

        Raises:
            ValueError: its tables are of another shape than its config.json says.
        """
        return super().load_weights(self._checked(CHECKPOINT.apply(weights)))

    def _checked(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        expected = (self.config.vocab_size, self.config.hidden_size)
        for name, weight in weights:
            if name in ("model.embed_tokens.weight", "lm_head.weight") and (
                tuple(weight.shape) != expected
            ):
                raise ValueError(
                    f"the prior's {name} has the shape {list(weight.shape)}, but its config.json "
                    f"says {list(expected)} (output ids x hidden_size); use the two files of one "
                    "training run"
                )
            yield name, weight
