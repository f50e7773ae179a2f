"""Engine settings: a decoder without an adapter, refusals, little KV memory, compiled mode."""

from __future__ import annotations

import pytest

from qm_vllm import QuickMergeConfig, engine_args
from qm_vllm.api import SCHEDULER
from qm_vllm.engine import facts
from qm_vllm.engine.facts import no_inject, no_native, refuse
from qm_vllm.engine.worker import QuickMergeWorkerMixin
from qm_vllm_eval.serving.host_memory import offloading
from qm_vllm_patches import checks
from qm_vllm_patches.settings import CacheFacts
from tests.engines import engine, make_tiny_model, random_prompt, scheduler_of
from tests.integration.generate import greedy, run
from tests.settings import settings

OPTIONS = {"skip_tokenizer_init": True}


def test_decoder_without_adapter(tmp_path):
    folder = make_tiny_model("opt", tmp_path)
    ids = random_prompt(500, 1)
    with engine(folder, QuickMergeConfig(ratio=0.4), **OPTIONS) as llm:
        ((_, report),) = run(llm, [ids], greedy(4))
        assert report["status"] == "untouched"
        assert "no adapter" in report["reason"]
        assert '"native" or "prefill"' in report["reason"]
        ((_, report),) = run(llm, [ids], greedy(4, delivery="native"))
        assert "depends on positions" in report["reason"]  # they are learned, and added
        ((got, report),) = run(llm, [ids], greedy(12, delivery="prefill", details=True))
        assert report["status"] == "compressed", report
        assert report["kept_tokens"] == 200
        assert report["saliency"] == "entropy"
        kept = [ids[i] for i in report["details"]["kept_indices"]]
        ((want, _),) = run(llm, [kept], greedy(12, enabled=False))
        assert got == want
        ((_, report),) = run(llm, [ids], greedy(4, delivery="prefill", saliency="query"))
        assert report["status"] == "untouched"
        assert "saliency='query' needs attention" in report["reason"]
        ((_, report),) = run(llm, [ids], greedy(4, delivery="prefill", max_error=0.3))
        assert "max_error=0.3 needs attention" in report["reason"]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, None),
        ({"pipeline_parallel": 2}, "pipeline"),
        ({"context_parallel": 2}, "context"),
        ({"runner": "pooling"}, "pooling"),
        ({"uses_mla": True}, "MLA"),
        ({"is_moe": True}, None),
        ({"has_lora": True}, None),
    ],
)
def test_unsupported_settings_are_refused_with_a_sentence(changes, word):
    refusal = refuse(settings(**changes))
    assert (refusal is None) if word is None else (word in refusal)


@pytest.mark.parametrize(
    ("changes", "inject", "native"),
    [
        ({}, None, None),
        ({"is_moe": True, "expert_parallel": True}, "mixture-of-experts", None),
        ({"has_lora": True}, "LoRA", None),
        ({"quantised": True}, None, "quantised"),
        ({"full_graphs": True}, None, "FULL_AND_PIECEWISE"),
        ({"speculative": True}, "speculative", "speculative"),
        ({"kinds": ("FullAttentionSpec", "MambaSpec")}, None, "MambaSpec"),
        ({"block_sizes": (32, 16)}, None, "blocks of"),
        ({"groups": 3, "block_sizes": (32, 32, 32)}, "KV-cache groups", None),
    ],
)
def test_each_delivery_says_why_it_cannot_work(changes, inject, native):
    ours = {name: changes[name] for name in changes if hasattr(settings(), name)}
    cache = {name: value for name, value in changes.items() if name not in ours}
    values = {"groups": 1, "block_bytes": 1, "kinds": ("FullAttentionSpec",), **cache}
    made = settings(**ours), CacheFacts(**values)
    for reason, word in ((no_inject(*made), inject), (no_native(*made), native)):
        assert (reason is None) if word is None else (word in reason)


def test_a_worker_without_our_connector_is_refused():
    other = type("MultiConnector", (), {})()
    with pytest.raises(RuntimeError, match=r"needs QuickMergeConnector .* not MultiConnector"):
        QuickMergeWorkerMixin().model_loaded(other, settings(), None, None, None)


OURS, OFFLOADS = "QuickMergeConnector", "OffloadingConnector"


@pytest.mark.parametrize(
    ("company", "scheduler", "sentence"),
    [
        ((), None, None),
        ((OURS, OFFLOADS), SCHEDULER, None),
        ((OFFLOADS, OURS), SCHEDULER, "before all others"),
        ((OURS, OURS), SCHEDULER, "must be there once"),
        ((OURS, "NixlConnector"), SCHEDULER, "hands the KV of whole prompts from one engine"),
        ((OURS, OFFLOADS, "LMCacheConnectorV1"), SCHEDULER, "by the ids of tokens"),
        ((OURS, "LMCacheMPConnector"), SCHEDULER, "was not tried"),
        ((OURS, "SimpleCPUOffloadConnector"), SCHEDULER, "was not tried"),
        ((OURS, OFFLOADS), None, "scheduler_cls must be"),
    ],
)
def test_company_that_cannot_work_is_refused_with_a_sentence(company, scheduler, sentence):
    refusal = refuse(settings(company=company, scheduler=scheduler))
    assert (refusal is None) if sentence is None else (sentence in refusal)


def test_an_engine_does_not_start_in_the_wrong_order(tiny_models):
    arguments = engine_args(QuickMergeConfig(), [offloading()])
    arguments["kv_transfer_config"]["kv_connector_extra_config"]["connectors"].reverse()
    with pytest.raises(Exception, match="before all others"), engine(
        tiny_models("llama"), **OPTIONS, **arguments
    ):
        pass


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_bytes_of_a_block_are_those_of_all_ranks(ranks):
    """Two KV heads: of four ranks two hold the same one, and both copies are counted."""
    own = settings(tensor_parallel=ranks, num_kv_heads=max(1, 2 // ranks))
    block = own.num_layers * 2 * own.block_size * own.num_kv_heads * own.head_size * 4
    cache = CacheFacts(1, block, ("FullAttentionSpec",), (32,), (None,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(facts, "tokenizer_of", lambda settings: None)
        assert facts.read_facts(own, cache).block_bytes == block * ranks


def test_a_vllm_that_does_not_fit_is_refused_with_a_sentence(monkeypatch):
    assert all(finding.ok for finding in checks.check())
    checks.require()
    monkeypatch.setitem(checks.HOOKS, "get_finished", 2)
    monkeypatch.setattr(checks, "MIN_VERSION", (0, 90))
    with pytest.raises(RuntimeError, match=r"does not fit \(vLLM version.*hook get_finished"):
        checks.require()


def test_bad_engine_options_stop_the_start_with_a_sentence(tiny_models):
    from qm_vllm import engine_args

    arguments = engine_args()
    options = arguments["kv_transfer_config"]["kv_connector_extra_config"]["quickmerge"]
    options["ratio"] = 7
    with pytest.raises(Exception, match="ratio=7"), engine(
        tiny_models("llama"), **OPTIONS, **arguments
    ):
        pass


def test_vllm_preempts_under_pressure_and_tokens_stay_the_same(tiny_models):
    """Blocks for the beginnings of three requests: vLLM itself preempts, the job is done again."""
    prompts = [random_prompt(640, seed) for seed in (1, 2, 3)]
    config = QuickMergeConfig(ratio=0.5, max_live_jobs=1)
    with engine(tiny_models("llama"), config, **OPTIONS) as llm:
        want = run(llm, prompts, greedy(300))
    preempted = []
    with engine(
        tiny_models("llama"), config, num_gpu_blocks_override=36, max_model_len=1024, **OPTIONS,
        enable_prefix_caching=False,
    ) as llm:
        scheduler = scheduler_of(llm)
        original = scheduler._preempt_request

        def watch(request, *args, **kwargs):
            preempted.append(request.request_id)
            return original(request, *args, **kwargs)

        scheduler._preempt_request = watch
        got = run(llm, prompts, greedy(300))
    assert preempted
    assert [tokens for tokens, _ in got] == [tokens for tokens, _ in want]


def test_an_engine_with_another_scheduler_serves_what_it_can(tiny_models):
    config = QuickMergeConfig(ratio=0.4)
    arguments = engine_args(config) | {
        "scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"
    }
    ids = random_prompt(400, 1)
    with engine(tiny_models("llama"), **arguments, **OPTIONS) as llm:
        (_, ours), (_, native) = run(
            llm, [ids, ids], [greedy(4), greedy(4, delivery="native")]
        )
    assert ours["status"] == "compressed"
    assert native["status"] == "untouched"
    assert "scheduler_cls" in native["reason"]


@pytest.mark.slow
def test_compiled_engine_keeps_all_tokens_like_plain(tiny_models):
    prompts = [random_prompt(500, 4)]
    several = [random_prompt(500, seed) for seed in (4, 5, 6)]
    natively_cut = greedy(32, ratio=0.4, delivery="native", details=True, head_share=0.0)
    with engine(tiny_models("llama"), enforce_eager=False, **OPTIONS) as llm:
        plain = run(llm, prompts, greedy(32))
    with engine(
        tiny_models("llama"), QuickMergeConfig(ratio=1.0), enforce_eager=False, **OPTIONS
    ) as llm:
        ours = run(llm, prompts, greedy(32))
        cut = run(llm, prompts, greedy(32, ratio=0.4))
        ((whole, report),) = run(llm, prompts, greedy(32, ratio=1.0, delivery="native"))
        assert report["delivery"] == "native"
        natively = run(llm, several, natively_cut)
    assert whole == plain[0][0]
    assert ours[0][0] == plain[0][0]
    with engine(tiny_models("llama"), QuickMergeConfig(), **OPTIONS) as llm:
        assert run(llm, prompts, greedy(32, ratio=0.4))[0][0] == cut[0][0]
        eager = run(llm, several, natively_cut)
    for (compiled, first), (tokens, second) in zip(natively, eager, strict=True):
        one, other = (set(each["details"]["kept_indices"]) for each in (first, second))
        assert len(one ^ other) <= 6  # of tokens that rank alike some are exchanged
        assert tokens[0] == compiled[0]
        assert one != other or tokens == compiled


def test_a_calibration_of_another_model_stops_the_start(tiny_models, tmp_path):
    from qm_vllm.calibration import Calibration, ModelShape
    from qm_vllm.config import ConfigError

    file = tmp_path / "other.json"
    Calibration("m", ModelShape("LlamaForCausalLM", 12, 64, 4, 2, 512), 7, 2, {}).save(file)
    config = QuickMergeConfig(calibration=str(file))
    with (
        pytest.raises(ConfigError, match=r"made for LlamaForCausalLM, 12 layers.*has.*6 layers"),
        engine(tiny_models("llama"), config, skip_tokenizer_init=True),
    ):
        pass
