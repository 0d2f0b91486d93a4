"Tasks: graders that cannot be pleased easily, mixtures, the world's tasks, the public data sets."
import gzip
import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from nanochat import tasks
from nanochat.tasks import Mixture, Task, WorldTask, final_number, has_word, hub_task
from nanochat.tokenizer import Tokenizer
from nanochat.workshop import UserError

DATA = os.environ.get("NANOCHAT_REAL_DATA")
real_data = pytest.mark.skipif(not DATA, reason="NANOCHAT_REAL_DATA is not set to a folder of real data")
OUTPUT = "<|python_start|>12+7<|python_end|><|output_start|>19<|output_end|>"
KINDS = ("profile", "reading", "choice", "word1", "word2", "word3")


@pytest.mark.parametrize("text, number", [
    ("The answer is 19.", "19"), ("19 and 20.", "20"), ("1,234", "1234"), ("-3", "-3"), ("5-3", "3"), ("2.50!", "2.50"),
    ("nothing", None), ("", None), (OUTPUT, None), (OUTPUT + " The answer is 7.", "7"), (OUTPUT + " It is it.", None),
    (OUTPUT + OUTPUT.replace("19", "5") + " So 24.", "24"), ("3.", "3"), ("v2", "2")])
def test_final_number(text, number): assert final_number(text) == number


def test_final_number_of_a_difference():
    "A minus between two numbers is no sign."
    assert final_number("9-4") == "4" and final_number("it is -4") == "-4"


@pytest.mark.parametrize("text, word, there", [
    ("It is red.", "red", True), ("a hundred", "red", False), ("redder", "red", False), ("RED", "red", True),
    ("the big house", "big house", True), ("C++ is", "C++", True), ("a.b", "a", True), ("x_red", "red", False)])
def test_has_word(text, word, there): assert has_word(text, word) is there


def test_an_answer_that_names_everything_is_wrong():
    row = {"answer": "red", "wrong": ["blue", "red", "Green"]}
    assert tasks.names_answer(row, "red") and not tasks.names_answer(row, "red or blue")
    assert not tasks.names_answer(row, "green and red") and not tasks.names_answer(row, "no idea")


@pytest.mark.parametrize("kind", KINDS)
def test_world_tasks_accept_their_own_answers_and_no_others(kind):
    task = WorldTask(kind, 40, seed=3, split="test")
    tokenizer = Tokenizer({bytes([b]): b for b in range(256)})
    for row in (task[i] for i in range(len(task))):
        ids, _ = tokenizer.render(row)
        start = len(tokenizer.render_prompt(row))
        assert task.evaluate(row, tokenizer.decode(ids[start:-1])), row
        assert not task.evaluate(row, "") and not task.evaluate(row, "I do not know.")
    others = [a for a in {task[i]["answer"] for i in range(len(task))}]
    assert len(others) > 1
    assert not any(task.evaluate(task[i], a) for i in range(len(task)) for a in others if a != task[i]["answer"])


def test_world_splits_differ_and_repeat():
    for kind in KINDS:
        questions = {split: [m["content"] for row in WorldTask(kind, 60, 1, split) for m in row["messages"][:1]]
                     for split in ("train", "test")}
        assert not set(questions["train"]) & set(questions["test"]), kind
        assert questions["train"] == [m["content"] for row in WorldTask(kind, 60, 1, "train") for m in row["messages"][:1]]


def test_world_kinds():
    choice = WorldTask("choice", 4)
    assert all(choice.evaluate(row, row["messages"][1]["content"]) and choice.evaluate(row, row["answer"]) for row in choice)
    assert not any(choice.evaluate(row, f" {row['answer']}=E") for row in choice)
    assert WorldTask("choice", 4).kind == "letter" and WorldTask("choice", 4).baseline == 0.25
    assert WorldTask("word1", 4).kind == "generative" and WorldTask("word1", 4).name == "word1"
    with pytest.raises(UserError, match="profil"): WorldTask("profil", 4)
    with pytest.raises(TypeError): WorldTask("story", 1).evaluate(WorldTask("story", 1)[0], "Once")


def test_gold_letters_are_balanced():
    counts = Counter(row["answer"] for row in WorldTask("choice", 200, 0))
    assert len(counts) == 4 and min(counts.values()) > 30


def test_mixture_counts_and_order():
    a, b = (Task(name, [{"id": f"{name}{i}"} for i in range(n)]) for name, n in (("a", 7), ("b", 5)))
    mix = Mixture([(a, 2), (b, 1)], seed=4)
    found = Counter(mix[i]["id"] for i in range(len(mix)))
    assert len(mix) == 19 and all(found[f"a{i}"] == 2 for i in range(7)) and all(found[f"b{i}"] == 1 for i in range(5))
    assert [mix[i] for i in range(19)] == [Mixture([(a, 2), (b, 1)], seed=4)[i] for i in range(19)]
    assert [mix[i] for i in range(19)] != [Mixture([(a, 2), (b, 1)], seed=5)[i] for i in range(19)]
    assert mix.counts() == {"a": 14, "b": 5} and len(list(mix)) == 19
    assert len(Mixture([(a, 0)])) == 0
    with pytest.raises(UserError): Mixture([(a, -1)])


# --- public data sets --------------------------------------------------------------------------

def test_a_mixture_grades_by_the_kind_of_the_conversation():
    words, sums = WorldTask("profile", 5), WorldTask("word1", 5)
    mix = Mixture([(words, 1), (sums, 1)])
    for row in mix:
        assert mix.evaluate(row, f"The answer is {row['answer']}.") and not mix.evaluate(row, "I do not know.")
    numbers = [mix.evaluate(row, f"The answer is {row['answer']}.") for row in mix if row["kind"] == "word1"]
    assert len(numbers) == 5 and all(numbers)
    named_alike = Mixture([(Task("x", [{"kind": "x"}], lambda row, text: True), 1),
                           (Task("x", [{"kind": "x"}], lambda row, text: False), 1)])
    assert sorted(named_alike.evaluate(row, "") for row in named_alike) == [False, True]


def test_choice_layout():
    row = tasks.choice_conversation("Which?", ["x", "y = z"], ["1", "2"], "2")
    lines = row["messages"][0]["content"].split("\n")
    assert lines[0].endswith("Which?") and lines[1:4] == ["- x=1", "- y = z=2", ""] and "letter" in lines[4]
    assert row["messages"][1]["content"] == "2" and row["letters"] == ["1", "2"]
    with pytest.raises(ValueError): tasks.choice_conversation("?", ["a", "b", "c"], "AB", "A")


def test_mmlu_rows_may_be_nested():
    row = {"question": "Q", "choices": ["a", "b", "c", "d"], "answer": 3, "subject": "s"}
    assert tasks.mmlu_row(row) == tasks.mmlu_row({"train": row}) and tasks.mmlu_row(row)["answer"] == "D"


def test_gsm8k_parts_keep_the_text():
    text = "A <<2*3=6>>6 and <<x=y=4.00>>4, <<7>> <<a<b=1>>.\n#### -1,200.5"
    parts = tasks.gsm8k_parts(text)
    assert "".join(p["text"] for p in parts if p["type"] == "text") == re.sub(r"<<[^>]*>>", "", text)
    assert [p["text"] for p in parts if p["type"] == "python"] == ["2*3", "x=y", "7", "a<b"]
    assert [p["text"] for p in parts if p["type"] == "python_output"] == ["6", "4", "", "1"]
    assert tasks.marked_answer(text) == "-1200.5"
    assert tasks.marked_answer("####12") is None and tasks.marked_answer("12") is None
    assert tasks.marked_answer("#### 1\n#### 2") == "1"


def test_humaneval_program():
    prompt = "# head\nimport math\nfrom os import path\n\ndef f(x):\n    import sys\n"
    assert tasks.leading_imports(prompt) == "import math\nfrom os import path"
    assert tasks.fenced_code("a\n```python\nx = 1\n```\n```\ny\n```") == "x = 1"
    assert tasks.fenced_code("```\nx\n\ny\n```") == "x\n\ny" and tasks.fenced_code("  def f(): pass ") == "def f(): pass"
    row = tasks.humaneval_row({"prompt": prompt, "canonical_solution": "    return x", "test": "def check(c): assert c(1) == 1",
                               "entry_point": "f"})
    exec(tasks.humaneval_program(row, row["messages"][1]["content"]), {})
    with pytest.raises(AssertionError): exec(tasks.humaneval_program(row, "def f(x): return 2"), {})


def test_humaneval_needs_a_runner(tmp_path):
    (tmp_path / "h.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="sandbox"): hub_task("humaneval", "test", file=tmp_path / "h.jsonl")


def test_hub_errors_and_lazy_rows(tmp_path):
    with pytest.raises(UserError, match="imagenet"): hub_task("imagenet", "test")
    with pytest.raises(UserError, match="missing"): hub_task("mmlu", "test", file=tmp_path / "no.jsonl")
    seen = []
    rows = tasks.Rows([1, 2, 3], lambda r: seen.append(r) or {"r": r})
    assert len(rows) == 3 and seen == [] and rows[2] == {"r": 3} and seen == [3]


def test_hub_rows_are_shuffled_with_seed_42(monkeypatch):
    "The hub's order: numpy's generator, seed 42. A stand-in library notes what it is asked for."
    import sys
    import types

    import numpy as np
    calls = []

    class Data(list):
        def shuffle(self, seed): return Data(self[i] for i in np.random.default_rng(seed).permutation(len(self)))

    def load_dataset(path, config, split):
        calls.append((path, config, split))
        return Data({"question": f"q{i}", "choices": list("abcd"), "answer": i % 4} for i in range(10))

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    task = hub_task("mmlu", "auxiliary_train")
    assert calls == [("cais/mmlu", "all", "auxiliary_train")]
    order = np.random.default_rng(42).permutation(10)
    assert [f"q{i}" for i in order] == [re.search(r"q\d", task[i]["messages"][0]["content"])[0] for i in range(10)]


@real_data
def test_real_rows_convert():
    folder = Path(DATA)
    for name, file, n in (("mmlu", "mmlu/test.jsonl.gz", 570), ("arc_easy", "arc/ARC-Easy/validation.jsonl.gz", 379),
                          ("arc_challenge", "arc/ARC-Challenge/validation.jsonl.gz", 184), ("gsm8k", "gsm8k/test.jsonl.gz", 1319)):
        task = hub_task(name, "test", file=folder / file)
        assert len(task) == n
        for i in range(len(task)):
            row = task[i]
            reference = row["messages"][1]["content"]
            text = reference if isinstance(reference, str) else "".join(p["text"] for p in reference)
            assert task.evaluate(row, text), row
            if task.kind == "letter": assert row["answer"] in row["letters"] and len(row["letters"]) in (3, 4, 5)


@real_data
def test_real_gsm8k_answers_equal_the_authors_rule():
    with gzip.open(Path(DATA) / "gsm8k" / "test.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            answer = json.loads(line)["answer"]
            assert tasks.marked_answer(answer) == answer.split("#### ")[1].strip().replace(",", "")


@real_data
def test_real_humaneval_solutions_pass_and_bodies_alone_fail():
    from nanochat.tools import run_code
    task = hub_task("humaneval", "test", file=Path(DATA) / "humaneval" / "HumanEval.jsonl.gz", run=lambda p: run_code(p).ok)
    for i in range(0, len(task), 12):
        assert task.evaluate(task[i], task[i]["messages"][1]["content"]), i
        assert not task.evaluate(task[i], task[i]["answer"])
