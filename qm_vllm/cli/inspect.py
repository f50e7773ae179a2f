"""``qm-vllm inspect``: which tokens of a prompt stay, as a page to look at."""

from __future__ import annotations

import sys
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

import typer

from qm_vllm import local_engine
from qm_vllm.assets import embedded
from qm_vllm.cli.common import errors, sentences
from qm_vllm.cli.engine_flags import engine_arguments
from qm_vllm.cli.option_flags import takes_options
from qm_vllm.cli.page import build_page
from qm_vllm.config import QuickMergeConfig
from qm_vllm.errors import UserError
from qm_vllm.reports import report_of
from qm_vllm.request_options import request_args
from qm_vllm.special_tokens import special_ids

NO_CHARACTER = "\ufffd"
"""What decoders write for bytes that are no character."""
MOST_JOINED = 16
"""Tokens that are tried as one text: a character has four at most, and may share its last one."""


@takes_options(
    "ratio", "max_kept", "alpha", "max_error", "preset", "saliency", "query_visible", "hint"
)
def inspect(
    context: typer.Context,
    input_file: Annotated[
        str, typer.Option("--input", help="Text file with the prompt; - reads standard input.")
    ],
    output_file: Annotated[Path, typer.Option("--out", help="The HTML page to write.")],
    model: Annotated[
        str | None, typer.Option(help="Model folder or name; the embedded SmolLM2 if left out.")
    ] = None,
    *,
    config: QuickMergeConfig,
    chat: Annotated[
        bool, typer.Option("--chat/--raw", help="Wrap the text in the model's chat template.")
    ] = True,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    max_model_len: Annotated[
        int | None, typer.Option(help="Longest prompt, in tokens; what the model allows if unset.")
    ] = None,
    verbose: Annotated[bool, typer.Option(help="Show vLLM's own log.")] = False,
) -> None:
    """Show a prompt with kept, merged and dropped tokens, coloured by saliency.

    Other flags go to vLLM's engine.
    """
    with sentences():
        engine = {
            "max_model_len": max_model_len, "dtype": dtype,
            "block_size": local_engine.BLOCK_SIZE,
            "enforce_eager": True,  # one request: compiling would take longer than it saves
        } | engine_arguments(context, quiet=not verbose)
        text = _read(input_file)
        if not output_file.resolve().parent.is_dir():
            raise UserError(f"the folder of --out {output_file} does not exist; create it first")
        folder = model or embedded.ensure_model()
        with errors().status("Starting vLLM"):
            llm = local_engine.start(folder, config, quiet=not verbose, **engine)
        try:
            tokenizer = llm.get_tokenizer()
            ids = (
                local_engine.chat_ids(tokenizer, [{"role": "user", "content": text}])
                if chat
                else local_engine.text_ids(tokenizer, text)
            )
            data = page_data(tokenizer, ids, _compress(llm, ids), config)
        finally:
            local_engine.shut_down(llm)
        name = "standard input" if input_file == "-" else Path(input_file).name
        output_file.write_text(build_page(data | {"title": name}), encoding="utf-8")
        kept = data["report"]["kept_tokens"]
        typer.echo(f"{output_file}: {kept} of {len(ids)} tokens kept")


def _read(name: str) -> str:
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not a UTF-8 text file; convert it first") from error
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror}") from error
    if not text.strip():
        raise UserError(f"{name} is empty; give a prompt of some length")
    return text


def _compress(llm: Any, ids: list[int]) -> dict[str, Any]:
    """The report, with details, of one request over these ids.

    Raises:
        UserError: the prompt is too long, or was left untouched.
    """
    limit = local_engine.max_model_len(llm)
    if len(ids) >= limit:
        raise UserError(
            f"the prompt has {len(ids)} tokens and the engine takes fewer than {limit}; "
            "shorten it or raise --max-model-len"
        )
    params = local_engine.sampling(1, request_args(details=True))
    (output,) = llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)
    report = report_of(output)
    if report.get("status") != "compressed":
        raise UserError(f"the prompt was left untouched: {report.get('reason', 'no reason given')}")
    return report


def page_data(
    tokenizer: Any, ids: list[int], report: dict[str, Any], config: QuickMergeConfig
) -> dict[str, Any]:
    """What :func:`qm_vllm.cli.page.build_page` takes, from the report's details.

    Scores are stretched to 0..1. Protected positions are those that the configuration names and
    the turns that stayed whole; with merge="select" a token that is not kept leaves nothing
    behind, so it has no group.

    Raises:
        UserError: the report has no details, or they are not about these ids.
    """
    from qm_vllm.compress import protected_positions  # imports torch, which --help can do without

    details = report.get("details")
    if not isinstance(details, dict):
        raise UserError("the engine's report has no details; update qm-vllm on its side")
    count = len(ids)
    scores, chosen = list(details["scores"]), set(details["kept_indices"])
    kept = [index in chosen for index in range(count)]
    # The native delivery moves what is kept and merges nothing: a kept token is a group of its own.
    groups = list(details.get("groups") or (so_far - 1 for so_far in accumulate(kept)))
    if len(scores) != count or len(groups) != count:
        raise UserError(f"the report speaks of {len(scores)} tokens, the prompt has {count}")
    if config.merge == "select" or "groups" not in details:
        groups = [group if keep else -1 for group, keep in zip(groups, kept, strict=True)]
    special = special_ids(tokenizer)
    protected = protected_positions(
        config,
        count,
        special=[index for index, token in enumerate(ids) if token in special],
        ranges=[(start, stop) for _, start, stop in report.get("kept_turns", ())],
    )
    low, high = min(scores), max(scores)
    span = (high - low) or 1.0
    return {
        "tokens": token_texts(tokenizer, ids),
        "kept": kept,
        "scores": [(score - low) / span for score in scores],
        "groups": groups,
        "protected": protected.tolist(),
        "report": {key: value for key, value in report.items() if key != "details"},
    }


def token_texts(tokenizer: Any, ids: list[int]) -> list[str | None]:
    """The text of each token.

    Characters beyond the most common ones are several tokens, none of which is text by itself. The
    first of these gets the text of all, the others None. Bytes that make no character at all stay
    as the tokenizer shows them.
    """
    texts: list[str | None] = []
    while len(texts) < len(ids):
        start = len(texts)
        text, rest = tokenizer.decode([ids[start]]), 0
        ends = range(start + 2, min(len(ids), start + MOST_JOINED) + 1)
        for stop in ends if NO_CHARACTER in text else ():
            joined = tokenizer.decode(ids[start:stop])
            if NO_CHARACTER not in joined:
                text, rest = joined, stop - start - 1
                break
        texts += [text, *[None] * rest]
    return texts
