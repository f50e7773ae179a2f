"""What attention is told where a request's first blocks are nobody's."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from qm_vllm_patches.shorter_tables import ShorterTables, leading, shorten

TABLE = torch.tensor([
    [0, 0, 7, 8, 3], [4, 5, 6, 0, 0], [0, 9, 1, 2, 0], [0, 0, 0, 0, 0],
], dtype=torch.int32)
LENGTHS = torch.tensor([70, 40, 60, 5], dtype=torch.int32)


def test_tables_begin_at_the_first_block_that_is_there():
    table, lengths = ShorterTables(16, 1, 4).shorten(TABLE, LENGTHS)
    assert lengths.tolist() == [70 - 32, 40, 60 - 16, 5]
    assert table[0, :3].tolist() == [7, 8, 3]
    assert table[1, :3].tolist() == [4, 5, 6]
    assert table[2, :3].tolist() == [9, 1, 2]
    assert table.shape == TABLE.shape
    assert table.dtype == lengths.dtype == torch.int32


def test_rows_without_any_block_stay_as_they_are():
    """Padding, or a step that is made up when a graph is captured."""
    table, lengths = ShorterTables(16, 1, 4).shorten(TABLE[3:], LENGTHS[3:])
    assert lengths.tolist() == [5]
    assert table.tolist() == TABLE[3:].tolist()


def test_a_kernel_with_smaller_blocks_sees_the_placeholder_in_parts():
    """Block b is 2b and 2b + 1 there, so the placeholder is 0 and 1."""
    table = torch.stack([torch.stack((2 * row, 2 * row + 1), -1).flatten() for row in TABLE])
    assert leading(table, 2).tolist() == [4, 0, 2, 10]
    own, lengths = ShorterTables(8, 2, 4).shorten(table.int(), LENGTHS)
    assert lengths.tolist() == [70 - 32, 40, 60 - 16, 5]
    assert own[0, :6].tolist() == [14, 15, 16, 17, 6, 7]


def test_nothing_is_copied_while_nobody_has_holes():
    tables = ShorterTables(16, 1, 4)
    table, lengths = tables.shorten(TABLE[1:2], LENGTHS[1:2])
    assert table is not None
    assert table.data_ptr() == TABLE[1:2].data_ptr()
    assert lengths.data_ptr() == LENGTHS[1:2].data_ptr()


def test_graphs_find_the_same_place_again():
    """Also after a step with more requests than any before."""
    tables = ShorterTables(16, 1, 4)
    first = [one.data_ptr() for one in tables.shorten(TABLE[:3], LENGTHS[:3])]
    assert [one.data_ptr() for one in tables.shorten(TABLE, LENGTHS)] == first


@dataclass
class Common:
    """The part of vLLM's metadata that is read."""

    block_table_tensor: torch.Tensor
    seq_lens: torch.Tensor
    max_seq_len: int = 70
    seq_lens_cpu_upper_bound: torch.Tensor | None = None
    _num_computed_tokens_cache: torch.Tensor | None = None


class Builder:
    """A backend's, with the block size of its kernel."""

    kv_cache_spec = SimpleNamespace(block_size=16)

    def __init__(self):
        self.got = []

    def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
        self.got.append((common_prefix_len, common_attn_metadata, fast_build))
        return "built"

    def update_block_table(self, metadata, blk_table, slot_mapping):
        self.got.append((metadata, blk_table, slot_mapping))
        return "updated"


@pytest.fixture
def builder():
    one = Builder()
    shorten([SimpleNamespace(metadata_builders=[one])], block_size=16, rows=4)
    return one


def test_a_builder_is_asked_with_shorter_tables(builder):
    common = Common(TABLE, LENGTHS, _num_computed_tokens_cache=LENGTHS)
    asked = builder.build(common_prefix_len=3, common_attn_metadata=common, fast_build=True)
    assert asked == "built"
    ((prefix, got, fast),) = builder.got
    assert (prefix, fast) == (0, True)  # where a prefix is shared, holes need not be
    assert got.seq_lens.tolist() == [38, 40, 44, 5]
    assert got.max_seq_len == 44
    assert got.seq_lens_cpu_upper_bound.tolist() == [38, 40, 44, 5]
    assert got._num_computed_tokens_cache is None
    assert common.seq_lens is LENGTHS  # other groups share it
    assert common.block_table_tensor is TABLE


def test_a_table_alone_is_exchanged_in_the_same_way(builder):
    assert builder.update_block_table("metadata", TABLE, "slots") == "updated"
    ((metadata, table, slots),) = builder.got
    assert (metadata, slots) == ("metadata", "slots")
    assert table[0, :3].tolist() == [7, 8, 3]
