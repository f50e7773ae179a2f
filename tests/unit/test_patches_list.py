"""vLLM's names stand in one room, and its list of them is complete: read off the syntax trees."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from qm_vllm_patches import symbols

ROOT = Path(__file__).parents[2]
ROOM = ROOT / "patches" / "qm_vllm_patches"
PRODUCT = ROOT / "qm_vllm"
STUDIES = "qm_vllm_eval"
LISTS = {**symbols.IMPORTS, **symbols.OPTIONAL, **symbols.ELSEWHERE}
OWN = {file.name for file in (ROOM / "symbols").glob("*.py")} - {"__init__.py"}
"""Hold the names as text."""

PRIVATE = {
    name for names in symbols.ATTRIBUTES.values() for name in names if name.startswith("_")
} | {
    # Names that say what they are wherever they stand: vLLM's alone.
    "cos_sin_cache", "do_kv_cache_update", "embed_input_ids", "enable_prefix_caching",
    "hf_text_config", "kv_cache_groups", "kv_cache_spec", "kv_connector_extra_config",
    "kv_transfer_config", "lora_request", "mm_features", "num_computed_tokens",
    "num_output_tokens", "num_prompt_tokens", "page_size_bytes", "parallel_config",
    "prompt_embeds", "prompt_token_ids", "rotary_emb", "sampling_params", "self_attn",
    "skip_reading_prefix_cache", "update_block_hashes", "vllm_config",
}
"""Attributes that no other file of the product may touch."""


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imports(file: Path) -> Iterator[tuple[str, str | None]]:
    """(module, name) of each import; a module imported whole has no name."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)


def texts(file: Path) -> Iterator[str]:
    """String constants that are no docstrings."""
    skip = {
        id(node.body[0].value)
        for node in ast.walk(tree(file))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skip:
            yield node.value


def of_vllm(module: str) -> bool:
    return module == "vllm" or module.startswith("vllm.")


def shown(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", files(PRODUCT), ids=shown)
def test_the_product_imports_vllm_nowhere_but_in_its_room(file):
    assert not [module for module, _ in imports(file) if of_vllm(module)]
    assert not [text for text in texts(file) if re.fullmatch(r"vllm(\.\w+)+(:\w+)?", text)]


@pytest.mark.parametrize("file", files(PRODUCT), ids=shown)
def test_the_product_reads_no_attribute_that_is_vllms_alone(file):
    found = {
        node.attr for node in ast.walk(tree(file)) if isinstance(node, ast.Attribute)
    } & PRIVATE
    assert not found - _own_members(file)


def _own_members(file: Path) -> set[str]:
    """Names that the file itself defines on a class of its own."""
    names = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


@pytest.mark.parametrize("file", [*files(PRODUCT), *files(ROOM)], ids=shown)
def test_neither_product_nor_room_knows_the_studies(file):
    assert not [module for module, _ in imports(file) if module.split(".")[0] == STUDIES]


@pytest.mark.parametrize("file", files(ROOM), ids=shown)
def test_the_room_stands_on_vllm_alone(file):
    assert not [module for module, _ in imports(file) if module.split(".")[0] == "qm_vllm"]


@pytest.mark.parametrize("file", files(PRODUCT / "compress"), ids=shown)
def test_pure_tensor_code_knows_neither_engine_nor_room(file):
    allowed = {"qm_vllm.compress", "qm_vllm.config", "qm_vllm.option_checks", "qm_vllm.layers"}
    ours = [module for module, _ in imports(file) if module.split(".")[0].startswith("qm_vllm")]
    assert not [m for m in ours if not any(m == a or m.startswith(a + ".") for a in allowed)]


def test_the_list_of_imports_is_complete_and_holds_nothing_else():
    taken: dict[str, set[str]] = {}
    where: dict[str, set[str]] = {}
    for file in files(ROOM):
        for module, name in imports(file):
            if of_vllm(module):
                taken.setdefault(module, set()).add(name or "__version__")
                where.setdefault(module, set()).add(file.name)
        for text in texts(file) if file.name not in OWN else ():
            module, _, name = text.rpartition(".")
            if of_vllm(module) and name[:1].isupper():  # a class named as text
                taken.setdefault(module, set()).add(name)
                where.setdefault(module, set()).add(file.name)
    listed = {module: set(names) for module, (names, _) in LISTS.items()}
    assert taken == listed
    for module, found in where.items():
        said = set(re.findall(r"\w+\.py", LISTS[module][1]))
        assert found - {"checks.py"} == said, module


ANNOTATED = {
    name for names, _ in LISTS.values() for name in names if name in symbols.ATTRIBUTES
}


def reads(file: Path) -> Iterator[tuple[str, str, int]]:
    """(class of vLLM, attribute, line) for what is annotated as one: parameters and variables."""
    for scope in ast.walk(tree(file)):
        if not isinstance(scope, (ast.FunctionDef, ast.ClassDef)):
            continue
        typed: dict[str, str] = {}
        for node in ast.walk(scope):
            if isinstance(node, ast.arg) and node.annotation is not None:
                typed[node.arg] = ast.unparse(node.annotation)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                typed[node.target.id] = ast.unparse(node.annotation)
        for node in ast.walk(scope):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                kind = typed.get(node.value.id, node.value.id)
                if kind in ANNOTATED:
                    yield kind, node.attr, node.lineno


def test_what_is_read_from_a_vllm_object_is_listed():
    unlisted = {
        f"{kind}.{attribute} ({file.name}:{line})"
        for file in files(ROOM)
        for kind, attribute, line in reads(file)
        if attribute not in symbols.ATTRIBUTES[kind]
    }
    assert not unlisted


def test_every_attribute_in_the_room_is_ours_or_listed():
    """Whatever is read from something that is not typed: its name is at least on the list."""
    listed = {name for names in symbols.ATTRIBUTES.values() for name in names}
    listed |= {name for names, _ in LISTS.values() for name in names}
    own = set().union(*(_own_members(file) for file in files(ROOM)))
    plain = _of_the_language()
    unlisted = {
        f"{node.attr} ({file.name}:{node.lineno})"
        for file in files(ROOM) if file.name not in OWN
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Attribute) and node.attr not in listed | own | plain
    }
    assert not unlisted


def _of_the_language() -> set[str]:
    """Attributes of Python's own types, of torch and of the modules that the room imports."""
    import argparse
    import dis
    import functools
    import hashlib
    import inspect
    import logging

    import torch

    holders: list[object] = [
        str, list, dict, set, tuple, Exception, int, torch, torch.Tensor, torch.nn,
        torch.nn.Module(), torch.nn.functional, torch.distributed, torch.ops,
        argparse, argparse.ArgumentParser, inspect, re,
        inspect.Parameter, inspect.Signature, logging, logging.Logger, logging.getLogger(),
        importlib, property,
        hashlib, hashlib.sha256(), dis, dis.Instruction, functools, torch.Generator,
        type,
    ]
    names = {name for holder in holders for name in dir(holder)}
    # Kernels of vLLM's own library, Prometheus, ASGI, transformers' configuration, our messages.
    return names | {"_C", "fused_add_rms_norm", "rms_norm", "REGISTRY", "unregister", "argv",
                    "state", "vocab_size", "merged"}


def test_listed_attributes_are_used():
    used = {
        node.attr for file in files(ROOM) if file.name not in OWN
        for node in ast.walk(tree(file)) if isinstance(node, ast.Attribute)
    }
    used |= {text for file in files(ROOM) if file.name not in OWN for text in texts(file)}
    used |= {
        node.name for file in files(ROOM)
        for node in ast.walk(tree(file)) if isinstance(node, ast.FunctionDef)
    }
    used |= {
        node.value.value for file in files(ROOM) for node in ast.walk(tree(file))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    idle = {name for names in symbols.ATTRIBUTES.values() for name in names} - used
    assert not idle


def test_hooks_on_the_list_are_those_that_the_connector_overrides():
    (connector,) = [
        node for node in ast.walk(tree(ROOM / "connector.py"))
        if isinstance(node, ast.ClassDef) and node.name == "ConnectorBase"
    ]
    methods = {node.name for node in connector.body if isinstance(node, ast.FunctionDef)}
    ours = {"__init__", "make_scheduler_side", "make_worker_side", "_message", "bind_shadows",
            "_is_shadow", "bind_company"}
    assert methods - ours - {"requires_kv_delivery"} == set(symbols.HOOKS)
