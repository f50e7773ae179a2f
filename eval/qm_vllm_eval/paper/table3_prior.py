"""Table 3 in the paper's own set-up: an AR prior over encoder states, served by vLLM.

Both methods run in one engine; only the prompts differ: N states of MiniLM, or the ceil(ratio N)
that they merge into, by the method of Tables 1 and 2 (batched) with a fixed budget. The prior's
weights are random: a step's time does not depend on them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qm_vllm_eval.paper.table3_engine import Run, Table3Settings, device, run, start

ENCODER = "minilm"


class PriorBench:
    """An engine with a random prior, an encoder beside it, and a batch of prose."""

    def __init__(self, settings: Table3Settings) -> None:
        import torch

        from qm_vllm.encoders import load_encoder
        from qm_vllm.prior import StatePrompts

        self.settings = settings
        self._cuda = torch.cuda.is_available()
        self.encoder = load_encoder(ENCODER, device="cuda" if self._cuda else "cpu")
        self._folder = tempfile.TemporaryDirectory()  # removed with this object
        folder = Path(self._folder.name)
        random_prior(settings, self.encoder).save_pretrained(folder)
        self._prompts = StatePrompts.from_pretrained(folder)
        self.texts = passages(self.encoder, settings)
        self.llm = start(
            folder, settings, [(settings.tokens, settings.batch)], enable_prompt_embeds=True,
            skip_tokenizer_init=True,
        )
        dtype = str(self.llm.llm_engine.model_config.dtype).removeprefix("torch.")
        self.facts = {"model": self._name(), "dtype": dtype, "device": device()}

    def __call__(self, repeat: int) -> dict[str, Run]:
        """One run of each method by name, in an order that alternates with ``repeat``."""
        layers, encoding = self._timed(lambda: encoded(self.encoder, self.texts))
        merged, merging = self._timed(lambda: merge(layers, self.settings.ratio))
        batches = {"baseline": layers[-1].float(), "quickmerge": merged}
        found: dict[str, Run] = {}
        for name in list(batches)[:: -1 if repeat % 2 else 1]:
            prompts = [self._prompts.prompt(rows) for rows in batches[name].cpu()]
            found[name] = run(self.llm, prompts, self.settings.generated)
            found[name].kept = [rows.shape[0] for rows in batches[name]]
            found[name].phases["encoder"] = encoding
        found["quickmerge"].phases["preprocessing"] = merging
        return found

    def _timed(self, work: Callable[[], Any]) -> tuple[Any, float]:
        """What ``work`` returns, and its seconds, the device's included."""
        import torch

        if self._cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        result = work()
        if self._cuda:
            torch.cuda.synchronize()
        return result, time.perf_counter() - begin

    def _name(self) -> str:
        layers, width, _ = self.settings.prior
        return f"AR prior, {layers} layers, width {width}, on {self.encoder.name} states"


def encoded(encoder: Any, texts: Sequence[Sequence[int]]) -> list[Any]:
    """States [B, N, D] in all L + 1 layers, without those of the special tokens.

    Args:
        encoder: a :class:`qm_vllm.encoders.text.TextEncoder`.
        texts: token ids of B passages of one length N.
    """
    import torch

    from qm_vllm.encoders.forward import run_layers

    rows = [[*encoder.before, *ids, *encoder.after] for ids in texts]
    ids = torch.tensor(rows, device=encoder.device)
    layers = run_layers(
        encoder.model, encoder.name, encoder.num_layers, encoder.hidden_size, input_ids=ids
    )
    first = len(encoder.before)
    return [layer[:, first : first + len(texts[0])] for layer in layers]


def merge(layers: Sequence[Any], ratio: float) -> Any:
    """Saliency (mean over layers) and merge of a batch: [B, ceil(ratio N), D] float32."""
    import torch

    from qm_vllm_eval.baselines.base import Source
    from qm_vllm_eval.baselines.quickmerge import QuickMerge
    from qm_vllm_eval.paper.prepared import scores

    with torch.inference_mode():
        states = layers[-1].float()
        relative, absolute = scores(layers[:-1])
        nothing = states.new_zeros((len(states), 1), dtype=torch.uint8)
        source = Source(states, relative, absolute, nothing, nothing[:, 0].long())
        method = QuickMerge(states.shape[2], factor=1 / ratio, entropy_budget=False)
        return method(source).states


def random_prior(settings: Table3Settings, encoder: Any) -> Any:
    """A prior with random weights that reads the encoder's states and writes its tokens."""
    import torch

    from qm_vllm.prior import PriorConfig, QuickMergePriorForCausalLM

    layers, width, heads = settings.prior
    torch.manual_seed(0)
    return QuickMergePriorForCausalLM(PriorConfig(
        input_size=encoder.hidden_size, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads,
        intermediate_size=round(2.75 * width), num_tokens=len(encoder.tokenizer),
        backward_twin=False, encoder=encoder.name,
    )).eval()


def passages(encoder: Any, settings: Table3Settings) -> list[list[int]]:
    """Token ids [N] of ``batch`` passages, spread evenly over the texts.

    Raises:
        ValueError: the folder of texts holds none, or the texts are too short.
    """
    size, count = settings.tokens, settings.batch
    found: list[list[int]] = []
    texts = _texts(settings.texts)
    for number, text in enumerate(texts):
        wanted = count // len(texts) + (number < count % len(texts))
        for at in range(wanted):
            # Six characters a token are enough for any prose; what is too much is cut.
            begin = (2 * at + 1) * max(0, len(text) - 6 * size) // (2 * wanted)
            ids = encoder.tokenizer(
                text[begin : begin + 8 * size], add_special_tokens=False, verbose=False
            )["input_ids"][:size]
            if len(ids) < size:
                raise ValueError(f"text {number} is too short for a passage of {size} tokens")
            found.append(ids)
    return found


def _texts(folder: Path | None) -> list[str]:
    from qm_vllm.assets.cache import cache_folder
    from qm_vllm.assets.essay import demo_document

    files = sorted((folder or cache_folder() / "texts").glob("*.txt"))
    if folder is not None and not files:
        raise ValueError(f"the folder {folder.name} holds no .txt files")
    return [path.read_text(encoding="utf-8") for path in files] or [demo_document().text]
