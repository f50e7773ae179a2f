"""Files of the published data sets' forms, in which every word ends with its document's number."""

from __future__ import annotations

import json
import random
from pathlib import Path

from qm_vllm_eval.tasks import babilong, data

ANSWER = "keyx{}"
TITLE = "\nT\n"
HALF = 600
"""Words of a document that fills most of a prompt of 768, with a token a word."""


def prose(document: int, words: int, seed: int = 0) -> str:
    """Sentences of long words; each word ends with the number of its document."""
    rng = random.Random(f"{document}-{seed}")
    said = [
        "".join(rng.choice("bdfgklmn") + rng.choice("aeiou") for _ in range(4)) + f"x{document}"
        for _ in range(words)
    ]
    runs = [said[i : i + 9] for i in range(0, words, 9)]
    return " ".join(" ".join(run).capitalize() + "." for run in runs)


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")


def squad(document: int) -> dict:
    return {"title": str(document), "paragraphs": [
        {
            "context": f"{prose(document, 60, part)} The key{part}x{document} was found.",
            "qas": [{
                "question": "What was found?", "answers": [{"text": f"key{part}x{document}"}],
            }],
        }
        for part in range(5)
    ]}


def hotpot(document: int) -> dict:
    return {
        "question": "What was found?", "answer": f"keyx{document}",
        "title_a": "A", "para_a": [prose(document, 40, 1), f" The keyx{document} was found."],
        "title_b": "B", "para_b": [prose(document, 40, 2)],
        "distractors": [["C", [prose(document, 80, part)], []] for part in range(3, 11)],
    }
def lines(rows: list[dict]) -> str:
    return "\n".join(map(json.dumps, rows)) + "\n"


def code(document: int) -> str:
    return prose(document, 1200).replace(". ", "\n    ")


def telling(document: int, words: int) -> str:
    """Prose that says its document's answer once, after two thirds."""
    said = prose(document, words).split(". ")
    said.insert(2 * len(said) // 3, f"The {ANSWER.format(document)} was found")
    return ". ".join(said)


def passages(document: int, name: str, mark: str, words: int, count: int) -> str:
    """Numbered parts, of which the fourth says the answer."""
    return "\n\n".join(
        f"{name} {number}:{mark}{telling(document, words) if number == 4 else text}"
        for number in range(1, count + 1) if (text := prose(document, words, number))
    )


def prompts(document: int) -> dict[str, tuple[str, object]]:
    """Prompt and gold of MiniLongBench's form, by task."""
    answer = ANSWER.format(document)
    about = (
        f"From the given passages.\n{passages(document, 'Passage', TITLE, 150, 9)}"
        "\n\nAnswer the question so.\n\nQuestion: What was found?\nAnswer:"
    )
    shots = "".join(
        f"Question: {prose(document, 9, n)[:-1]} ?\nType: kindx{document}\n" for n in range(120)
    )
    trivia = "".join(
        f"Passage:\n{prose(document, 60, n)}\nQuestion:\nWhat?\nAnswer:\nOne\n\n" for n in range(20)
    )
    own = f"Passage:\n{telling(document, 90)}\nQuestion:\nWhat was found?\nAnswer:\n"
    counted = "".join(f"Paragraph {n}: {prose(document, 90, n)}\n\n" for n in range(1, 7))
    line = f"Complete this. \n{code(document)}\nNext line of code:\n"
    text = telling(document, 1500)
    return {
        **dict.fromkeys(("hotpotqa", "2wikimqa", "musique"), (about, [answer])),
        "qasper": (f"From the given passages.\n{text}\n\nAnswer the question so.\n\nQuestion: What "
                   "was found?\nAnswer:", [answer]),
        "multifieldqa_en": (f"Read.\n\n{text}\n\nNow, answer so.\n\nQuestion: What was found?\n"
                            "Answer:", [answer]),
        "gov_report": (f"Read.\n\nReport:\n{prose(document, HALF)}\n\nNow, write it.\n\nSummary:",
                       [prose(document, 150, 1)]),
        "qmsum": (f"Read.\n\nTranscript:\n{prose(document, HALF)}\n\nNow, answer so.\n\nQuery: Why?"
                  "\nAnswer:", [prose(document, 50, 1)]),
        "trec": (f"Here are some examples of questions.\n\n{shots}Question: What is it ?\nType:",
                 {"answers": [f"kindx{document}"], "all_classes": [f"kindx{document}", "other"]}),
        "triviaqa": (f"Here are some examples.\n\n{trivia}{own}", [f"aliasx{document}", answer]),
        "passage_count": (f"Count.\n\n{counted}Please enter the final count: ", ["6"]),
        "passage_retrieval_en": (
            f"Find.\n\n{passages(document, 'Paragraph', ' ', 120, 9)}\n\nHere is an abstract.\n\nA "
            "thing was found.\n\nPlease enter the number: ", ["Paragraph 4"]),
        "lcc": (line, [f"    returnx{document} nothing"]),
        "repobench-p": (line, [f"    returnx{document} nothing"]),
    }  # fmt: skip


def leval(document: int) -> dict[str, tuple[str, list[str], list[str]]]:
    """Document, questions and answers of L-Eval's form, by task."""
    answer, text, short = ANSWER.format(document), telling(document, 1500), prose(document, HALF)
    exam = ([f"What was it? (A) a (B) b (C) c{n}" for n in range(2)], ["(B) b", "(C) c1"])
    found = (["What was found?", "Which thing was found?"], [answer, answer])
    return {
        "Closed-ended-tasks/quality": (short, *exam),
        "Closed-ended-tasks/sci_fi": (short, ["Is it so?"], ["True [fact: False]"]),
        "Closed-ended-tasks/topic_retrieval_longchat": (
            f"We discuss {answer} now. {prose(document, 1500)}", ["What came first?"], [answer]),
        **{f"Open-ended-tasks/{name}": (text, *found) for name in (
            "scientific_qa", "multidoc_qa", "natural_question", "legal_contract_qa")},
        **{f"Open-ended-tasks/{name}": (short, ["Sum it up."], [prose(document, 150, 1)])
           for name in ("gov_report_summ", "patent_summ")},
    }  # fmt: skip


def meeting(document: int) -> dict:
    turns = [{"speaker": "A", "content": prose(document, 30, n)} for n in range(50)]
    return {
        "topic_list": [], "meeting_transcripts": turns, "general_query_list": [],
        "specific_query_list": [
            {"query": f"What of {n}?", "answer": prose(document, 40, n), "relevant_text_span":
             [[str(n), str(n + 1)], [str(n + 5), str(n + 5)]]} for n in (10, 30)
        ],
    }  # fmt: skip


def story(document: int) -> dict:
    return {
        "metadata": {"passage_id": str(document)}, "document": prose(document, HALF),
        "questions": [
            {"question_text": f"What of {n}?", "question_number": n, "responses": [
                {"response_text": prose(document, 120, 10 * n + who)} for who in range(4)
            ]} for n in (1, 2)
        ],
    }  # fmt: skip


def write_documents(folder: Path, documents: int) -> None:
    """Files of LongBench, L-Eval, SQuALITY, QMSum and bAbI with that many documents each."""
    numbers = range(documents)
    rows: dict[str, list[dict]] = {}
    for i in numbers:
        for task, (prompt, gold) in prompts(i).items():
            rows.setdefault(f"minilongbench_en/{task}", []).append({"prompt": prompt, "gold": gold})
        for task, (text, asked, told) in leval(i).items():
            held = {"input": text, "instructions": asked, "outputs": told}
            rows.setdefault(f"leval/{task}", []).append(held)
    for name, held_rows in rows.items():
        if f"{name}.jsonl" not in data.CODE or not (folder / f"{name}.jsonl").exists():
            write(folder, f"{name}.jsonl", lines(held_rows))
    write(folder, "squality/dev.jsonl", lines([story(i) for i in numbers if i < 3]))
    write(folder, "squality/test.jsonl", lines([story(i) for i in numbers if i >= 3]))
    write(folder, "qmsum/test.jsonl", lines([meeting(i) for i in numbers]))
    for number, name in enumerate(babilong.NAMES, 1):
        write(folder, f"babi/qa{number}_{name}_test.txt", "".join(
            f"1 Maryx{i} went to the officex{i}.\n2 Johnx{i} went to the parkx{i}.\n"
            f"3 Maryx{i} went to the hallx{i}.\n4 Where is Maryx{i}? \thallx{i}\t3\n"
            for i in numbers
        ))  # fmt: skip
    write(folder, data.ARTICLES, "".join(
        f" \n = Title {i} = \n \n {prose(i, 1500)} \n \n = = Part = = \n \n {prose(i, 50, 1)} \n"
        for i in numbers
    ))
