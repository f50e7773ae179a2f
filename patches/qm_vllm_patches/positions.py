"""At which positions vLLM puts a prompt's tokens: with images some models count along several axes.

A picture of 8 x 8 tokens then takes 8 positions on the axes of height and width and one in time;
text behind it goes on from the highest, at the same position on all axes.
"""

from __future__ import annotations

from typing import Any


class Positions:
    """Of the requests that a worker runs.

    Args:
        runner: what vLLM runs the model with.
    """

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.several = bool(runner.vllm_config.model_config.uses_mrope)

    def last(self, request_id: str, tokens: int) -> int:
        """The position of a prompt's last token; asked in a step that computes it.

        Args:
            tokens: of the prompt; its last one is text, and so is all that a request has behind it.

        Raises:
            ValueError: what follows does not go on from there on every axis.
        """
        if not self.several:
            return tokens - 1
        if not hasattr(self.runner, "requests"):  # Model Runner V2 keeps the axes on the device
            index = self.runner.req_states.req_id_to_index[request_id]
            delta = self.runner.model_state.rope_state.prefill_delta.np[index]
            return int(delta) + tokens - 1
        axes = self.runner.requests[request_id].mrope_positions[:, :tokens]
        found = {int(axis[-1]) for axis in axes}
        if found != {int(axes.max())}:
            raise ValueError(
                f"the prompt's last token stands at {sorted(found)} on its axes, and the highest "
                f"position is {int(axes.max())}"
            )
        return found.pop()
