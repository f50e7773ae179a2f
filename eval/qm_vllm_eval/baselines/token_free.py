"""Bytes without a tokenizer: the "Token-Free" row of Table 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qm_vllm_eval.baselines.base import Method, Noise, Source, Tokens
from qm_vllm_eval.baselines.fixed_patches import membership, starts

_PADDING = 256


class TokenFree(Method):
    """Charformer's gradient-based subword tokenisation (Tay et al., 2021, arXiv 2106.12672).

    It reads the raw bytes and no frozen encoder: that is the method's nature, so its decoder
    sees nothing of what pretraining knows. Stages (the paper's section 2.1): embedding, a local
    convolution (the paper's stand-in for overlapping blocks, and all there is of positions),
    GBST, mean-pooling to fewer positions, a linear layer. The optional calibration of the block
    scores across positions (2.1.4, quadratic in bytes) is left out. Not causal within the
    kernel, a block and a pool.

    The pools are the same for all sequences of a data set: ``max_bytes / num_positions`` bytes
    each, which need not be whole; a shorter sequence has fewer tokens.

    Args:
        num_positions: tokens of a sequence of max_bytes.
        max_bytes: U, of the data set's longest sequence.
        width: of the embedding and all that follows, W included.
        max_block: M, the largest block in bytes.
        kernel: of the convolution, odd.
    """

    def __init__(
        self, num_positions: int, max_bytes: int, width: int = 128, max_block: int = 4,
        kernel: int = 5,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0 or max_block < 1 or num_positions < 1:
            raise ValueError("kernel must be odd, max_block and num_positions at least 1")
        self.name, self.width, self.max_block = "Token-Free", width, max_block
        self.pool = max(1.0, max_bytes / num_positions)
        self.embed = nn.Embedding(_PADDING + 1, width, padding_idx=_PADDING)
        self.local = nn.Conv1d(width, width, kernel, padding=kernel // 2)
        self.score = nn.Linear(width, 1, bias=False)  # a bias would be the same for all blocks
        self.out = nn.Linear(width, width)

    def forward(self, source: Source, noise: Noise | None = None) -> Tokens:
        """[B, ceil(U / pool), W]; a sequence of u bytes has about u / pool tokens."""
        count = source.raw.shape[1]
        positions = torch.arange(count, device=source.raw.device)
        valid = positions < source.raw_lengths[:, None]
        embedded = self.embed(source.raw.long().masked_fill(~valid, _PADDING))
        mixed = self.local(embedded.transpose(1, 2)).transpose(1, 2)
        mask = valid[..., None].to(mixed.dtype)
        blocks = block_mixture(mixed * mask, mask, self.score, self.max_block)
        member = membership(count, self.pool).to(blocks)
        sizes = member @ mask
        pooled = self.out(member @ (blocks * mask) / sizes.clamp_min(1))
        firsts = starts(count, self.pool).to(source.raw.device)
        lengths = (firsts < source.raw_lengths[:, None]).sum(1).clamp_min(1)
        inside = torch.arange(pooled.shape[1], device=pooled.device) < lengths[:, None]
        return Tokens(pooled * inside[..., None], lengths, pooled.new_zeros(()))


def block_mixture(states: Tensor, mask: Tensor, score: nn.Module, max_block: int) -> Tensor:
    """GBST (Charformer 2.1.1 to 2.1.3): per position, the blocks it is in, softly chosen.

    For each size b = 1..M the sequence is cut into blocks of b, ``X_b = mean``; a block's score
    holds for all its positions; ``X_i = sum_b softmax_b(score(X_b,i)) X_b,i``.

    Args:
        states: [B, U, w], 0 where the mask is.
        mask: [B, U, 1], 1 or 0; a block's mean is over its positions with 1.
        score: from [..., w] to [..., 1].
        max_block: M.

    Returns:
        [B, U, w].
    """
    count = states.shape[1]
    means, scores = [], []
    for size in range(1, max_block + 1):
        short = -count % size
        total, filled = (
            F.pad(part, (0, 0, 0, short)).unflatten(1, (-1, size)).sum(2)
            for part in (states, mask)
        )
        mean = total / filled.clamp_min(1)
        means.append(mean)
        scores.append(_spread(score(mean), size, count))
    shares = torch.cat(scores, -1).softmax(-1)
    mixed = torch.zeros_like(states)
    for size, mean in enumerate(means, 1):
        mixed = mixed + shares[..., size - 1 : size] * _spread(mean, size, count)
    return mixed


def _spread(blocks: Tensor, size: int, count: int) -> Tensor:
    """Each block at all its positions: [B, ceil(U / size), w] to [B, U, w]."""
    return blocks[:, :, None].expand(-1, -1, size, -1).flatten(1, 2)[:, :count]
