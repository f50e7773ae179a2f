"""The commands from outside, as far as they go without an engine."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from qm_vllm import QuickMergeConfig, engine_args
from qm_vllm.cli.common import configuration
from qm_vllm.cli.inspect import page_data
from qm_vllm.cli.main import app
from qm_vllm.cli.serve import server_arguments
from qm_vllm.errors import UserError
from qm_vllm.reports import report_of

COMMANDS = ("demo", "generate", "serve", "inspect", "doctor")


@pytest.fixture
def run():
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, list(arguments))


@pytest.mark.parametrize("command", COMMANDS)
def test_help(run, command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_help_imports_neither_torch_nor_vllm():
    code = (
        "import sys, qm_vllm, qm_vllm.cli.main\n"
        "print(sorted({'torch', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version(run):
    assert run("--version").output.strip() == "0.1.0"


def test_serve_puts_our_flags_before_the_users():
    arguments = server_arguments("m", QuickMergeConfig(ratio=0.3), ["--port", "8001"])
    assert arguments[:3] == ["serve", "m", "--kv-transfer-config"]
    transfer = json.loads(arguments[3])
    assert transfer["kv_connector_extra_config"]["quickmerge"]["ratio"] == 0.3
    assert arguments[4:12] == [
        "--worker-cls", "qm_vllm.engine.worker.QuickMergeWorker",
        "--scheduler-cls", "qm_vllm_patches.scheduler.make_scheduler",
        "--middleware", "qm_vllm.http_options.RefuseBadOptions",
        "--middleware", "qm_vllm.http_reports.AddReports",
    ]
    assert arguments[-2:] == ["--port", "8001"]


@pytest.mark.parametrize(
    "flag",
    ["--worker-cls", "--worker-cls=x", "--scheduler-cls=x", "--kv-transfer-config.a=1"],
)
def test_serve_refuses_flags_that_the_plug_in_sets(flag):
    with pytest.raises(UserError, match="leave it out"):
        server_arguments("m", QuickMergeConfig(), [flag])


@pytest.mark.parametrize("flag", [["--kv-transfer-config"], ["--kv_transfer_config"]])
def test_serve_puts_another_connector_beside_ours(flag):
    other = {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}
    arguments = server_arguments(
        "m", QuickMergeConfig(), ["--port", "1", *flag, json.dumps(other), "-tp", "2"]
    )
    transfer = json.loads(arguments[3])
    assert transfer["kv_connector"] == "MultiConnector"
    ours, last = transfer["kv_connector_extra_config"]["connectors"]
    assert ours == engine_args(QuickMergeConfig())["kv_transfer_config"]
    assert last == other
    assert arguments.count("--kv-transfer-config") == 1
    assert arguments[-4:] == ["--port", "1", "-tp", "2"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--kv-transfer-config"], "followed by a JSON object"),
        (["--kv-transfer-config", "{"], "followed by a JSON object"),
        (["--kv-transfer-config=3"], "must name a connector"),
        (["--kv-offloading-size", "3"], "name vLLM's OffloadingConnector"),
    ],
)
def test_serve_says_what_is_wrong_with_another_connector(flags, sentence):
    with pytest.raises(UserError, match=sentence):
        server_arguments("m", QuickMergeConfig(), flags)


def test_serve_passes_unknown_flags_through(run):
    result = run("serve", "m", "--ratio", "0.3", "-tp", "2", "--port=1", "--show-arguments")
    assert result.exit_code == 0
    assert result.output.splitlines()[-3:] == ["-tp", "2", "--port=1"]


def test_serve_off_leaves_requests_alone_unless_they_ask(run):
    lines = run("serve", "m", "--off", "--show-arguments").output.splitlines()
    extra = json.loads(lines[3])["kv_connector_extra_config"]
    assert extra["quickmerge"]["enabled"] is False


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("serve", "--port", "1"), "name the model"),
        (("serve", "m", "--ratio", "3"), "ratio=3.0"),
        (("serve", "m", "--delivery", "mail"), "delivery='mail' is unknown"),
        (("demo", "--ratio", "0"), "ratio=0.0"),
        (("demo", "--answer", "x"), "--answer needs --question"),
        (("demo", "--text", "nowhere.txt", "--question", "q"), "cannot read nowhere.txt"),
        (("demo", "--text", "nowhere.txt"), "--text needs --question"),
        (("demo", "--json", "no/such/folder/x.json"), "does not exist"),
        (("inspect", "--input", "nowhere.txt", "--out", "x.html"), "cannot read nowhere.txt"),
    ],
)
def test_mistakes_end_with_a_sentence(run, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 1
    assert sentence in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_generate_with_only_bad_lines_starts_no_engine(run, tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_text('{"id": 1}\nnonsense\n')
    result = run("generate", "--model", "m", "--input", str(source), "--output", str(target))
    assert result.exit_code == 1
    assert "line 1:" in result.output
    assert "line 2: not valid JSON" in result.output
    assert "0 written, 2 failed, 0 were in the output already" in result.output


def test_generate_with_nothing_left_to_do(run, tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_text('{"id": 1, "prompt": "x"}\n')
    target.write_text('{"id": 1, "text": "y", "quickmerge": {}}\n')
    result = run("generate", "--model", "m", "--input", str(source), "--output", str(target))
    assert result.exit_code == 0
    assert "1 were in the output already" in result.output


class FakeEngine:
    """Says "ok" to every prompt, and stops after so many batches."""

    def __init__(self, batches):
        self.batches, self.sizes = batches, []
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=99))

    def get_tokenizer(self):
        return SimpleNamespace(encode=str.split, chat_template=None)

    def generate(self, prompts, params, use_tqdm):
        if len(self.sizes) == self.batches:
            raise RuntimeError("EngineCore died")
        self.sizes.append(len(prompts))
        return [
            SimpleNamespace(outputs=[SimpleNamespace(text="ok", finish_reason="stop")],
                            kv_transfer_params={"quickmerge": {}})
            for _ in prompts
        ]


def test_generate_goes_on_where_it_stopped(run, tmp_path, monkeypatch):
    source, target = tmp_path / "in", tmp_path / "out"
    lines = [json.dumps({"id": i, "prompt": "x"}) for i in range(10)]
    source.write_text("\n".join([*lines[:7], "nonsense", *lines[7:], lines[3], ""]))
    arguments = ("generate", "--model", "m", "--input", str(source), "--output", str(target),
                 "--batch-size", "4", "--ratio", "0.3")
    engines = [FakeEngine(1), FakeEngine(9)]
    started = []

    def start(model, config, **options):
        started.append(config)
        return engines[len(started) - 1]

    monkeypatch.setattr("qm_vllm.local_engine.start", start)
    monkeypatch.setattr("qm_vllm.local_engine.sampling", lambda *args, **more: None)
    first = run(*arguments)
    assert first.exit_code == 1
    assert "it goes on from here" in " ".join(first.output.split())
    assert target.read_text().count("\n") == 4
    second = run(*arguments)
    assert second.exit_code == 1
    assert "line 8: not valid JSON" in second.output
    assert "line 12: the id 3 stands on line 4 already" in second.output
    assert "6 written, 2 failed, 4 were in the output already" in second.output
    assert [json.loads(line)["id"] for line in target.open()] == list(range(10))
    assert [engine.sizes for engine in engines] == [[4], [4, 2]]
    third = run(*arguments)
    assert "0 written, 2 failed, 10 were in the output already" in third.output
    assert started == [QuickMergeConfig(ratio=0.3)] * 2


def test_a_configuration_takes_only_what_was_given():
    assert configuration(ratio=None, min_tokens=9) == QuickMergeConfig(min_tokens=9)
    assert configuration("cache", ratio=None) == QuickMergeConfig.preset("cache")
    assert configuration("cache", alpha=0.2) == QuickMergeConfig(delivery="native", alpha=0.2)


def test_options_of_the_server_reach_the_engine(run):
    result = run("serve", "m", "--preset", "cache", "--max-error", "0.4", "--show-arguments")
    assert result.exit_code == 0, result.output
    assert '"delivery": "native"' in result.output
    assert '"max_error": 0.4' in result.output
    assert '"ratio": null' in result.output
    assert "preset='x' is unknown; allowed: cache" in run("serve", "m", "--preset", "x").output


def test_every_option_of_the_configuration_is_a_flag_of_the_server(run):
    given = {
        "min_tokens": 300, "ratio": 0.5, "max_kept": 900, "alpha": 0.4, "max_error": 0.2,
        "min_kept": 2, "protect_first": 5, "protect_last": 33, "protect_ranges": [[100, 140]],
        "keep_roles": ["system", "user"], "saliency": "query", "encoder_layers": 9,
        "window_layers": 3, "score_layers": [2, 5], "logit_scale": 20.0,
        "head_share": 0.3, "layer_share": 0.5, "grouping": "knn", "hint": "Who said what?",
        "merge": "mean", "epsilon": 0.1, "delivery": "prefill", "positions": "compact",
        "encoder_chunk_tokens": 512, "max_source_tokens": 4000, "max_live_jobs": 2,
        "job_memory_share": 0.2, "memo_bytes": 1000, "allow_options": ["details", "saliency"],
    }
    flags = {"enabled": "--off", "protect_special": "--no-protect-special",
             "query_visible": "--query-blind", "details": "--details",
             "encoder_batch": "--encoder-batch", "strict_version": "--strict-version"}
    arguments = list(flags.values())
    for name, value in given.items():
        text = value if not isinstance(value, list) else (
            ",".join(value) if isinstance(value[0], str) else json.dumps(value)
        )
        arguments += ["--" + name.replace("_", "-"), str(text)]
    result = run("serve", "m", *arguments, "--show-arguments")
    assert result.exit_code == 0, result.output
    extra = json.loads(result.output.splitlines()[3])["kv_connector_extra_config"]["quickmerge"]
    assert {name: extra[name] for name in given} == given
    defaults = QuickMergeConfig().to_dict()
    assert {name: extra[name] for name in flags} == {n: not defaults[n] for n in flags}
    assert set(given) | set(flags) | {"calibration"} == set(extra)


@pytest.mark.parametrize(("command", "flags"), [
    ("demo", ("--ratio",)),
    ("generate", ("--ratio", "--max-kept", "--alpha", "--max-error", "--preset", "--min-tokens",
                  "--query-visible", "--query-blind", "--hint", "--calibration")),
    ("inspect", ("--ratio", "--max-kept", "--alpha", "--max-error", "--preset", "--saliency",
                 "--query-visible", "--query-blind", "--hint")),
])
def test_commands_have_the_options_that_they_use(run, monkeypatch, command, flags):
    monkeypatch.setenv("COLUMNS", "200")
    shown = run(command, "--help").output
    assert [flag for flag in flags if flag not in shown] == []
    assert "--job-memory-share" not in shown


def test_a_flag_with_a_list_that_is_none_is_a_sentence(run):
    result = run("serve", "m", "--score-layers", "five", "--show-arguments")
    assert result.exit_code == 1
    assert "--score-layers='five' is not a JSON list" in " ".join(result.output.split())


def test_a_request_without_a_report_means_the_plug_in_is_off():
    with pytest.raises(UserError, match="not active"):
        report_of(SimpleNamespace(kv_transfer_params=None))


TOKENIZER = SimpleNamespace(all_special_ids=[9], decode=lambda ids: f"<{ids[0]}>")
REPORT = {
    "status": "compressed",
    "kept_tokens": 2,
    "details": {"kept_indices": [0, 3], "scores": [2.0, 4.0, 6.0, 2.0], "groups": [0, 0, 1, 1]},
}


def test_page_data_stretches_scores_and_marks_the_protected():
    config = QuickMergeConfig(protect_first=1, protect_last=1)
    data = page_data(TOKENIZER, [5, 6, 9, 7], REPORT, config)
    assert data["tokens"] == ["<5>", "<6>", "<9>", "<7>"]
    assert data["kept"] == [True, False, False, True]
    assert data["scores"] == [0.0, 0.5, 1.0, 0.0]
    assert data["protected"] == [True, False, True, True]
    assert data["groups"] == [0, 0, 1, 1]
    assert "details" not in data["report"]


def test_turns_that_stayed_whole_are_protected_on_the_page():
    config = QuickMergeConfig(protect_first=0, protect_last=1, protect_special=False)
    report = REPORT | {"kept_turns": [["system", 1, 3]]}
    data = page_data(TOKENIZER, [5, 6, 9, 7], report, config)
    assert data["protected"] == [False, True, True, True]


def test_page_data_of_a_selection_has_no_merged_tokens():
    data = page_data(TOKENIZER, [5, 6, 9, 7], REPORT, QuickMergeConfig(merge="select"))
    assert data["groups"] == [0, -1, -1, 1]


def test_page_data_of_the_native_delivery_has_no_merged_tokens():
    details = {name: REPORT["details"][name] for name in ("kept_indices", "scores")}
    data = page_data(TOKENIZER, [5, 6, 9, 7], REPORT | {"details": details}, QuickMergeConfig())
    assert data["groups"] == [0, -1, -1, 1]


def test_page_data_refuses_a_report_about_another_prompt():
    with pytest.raises(UserError, match="speaks of 4 tokens, the prompt has 2"):
        page_data(TOKENIZER, [5, 6], REPORT, QuickMergeConfig())
    with pytest.raises(UserError, match="no details"):
        page_data(TOKENIZER, [5, 6], {"status": "compressed"}, QuickMergeConfig())
