"CORE: rendering, spans, scores against a slow reference, published tables, the bundle's files."
import contextlib
import csv
import gzip
import json
import math
import os
from pathlib import Path
from random import Random

import pytest
import torch

from nanochat import core
from nanochat.core import Option
from nanochat.gpt import GPT, config_for
from nanochat.tokenizer import Tokenizer
from nanochat.workshop import UserError

torch.set_num_threads(1)
DATA = os.environ.get("NANOCHAT_REAL_DATA")
real_data = pytest.mark.skipif(not DATA, reason="NANOCHAT_REAL_DATA is not set to a folder of real data")

MC = {"label": "mc", "type": "multiple_choice", "delimiter": " ", "baseline": 50.0, "shots": 0, "rows": [
    {"query": f"The number {n} is", "choices": ["small, I think", "big"], "gold": n % 2} for n in range(12)]}
SCHEMA = {"label": "schema", "type": "schema", "delimiter": " ", "baseline": 50.0, "shots": 2, "rows": [
    {"context_options": [f"The cat saw {n} because the cat", f"The cat saw {n} because the dog"],
     "continuation": "was there.", "gold": n % 2} for n in range(9)]}
LM = {"label": "lm", "type": "language_modeling", "delimiter": " ", "baseline": 0.0, "shots": 3, "rows": [
    {"context": f"After {n} comes ", "continuation": str(n + 1)} for n in range(10)]}
TASKS = [MC, SCHEMA, LM]


@pytest.fixture(scope="module")
def tokenizer():
    texts = [json.dumps(row) for task in TASKS for row in task["rows"]]
    return Tokenizer.train(texts * 3, 330)


@pytest.fixture(scope="module")
def model(tokenizer):
    gpt = GPT(config_for(2, vocab_size=tokenizer.vocab_size, seq_len=64, head_dim=32))
    gpt.init_weights(seed=0)
    generator = torch.Generator().manual_seed(1)
    for p in gpt.parameters(): torch.nn.init.normal_(p, std=0.15, generator=generator)
    return gpt


def slow_items(model, tokenizer, task):
    "An independent reference: one option at a time, probabilities token by token, spans from plain loops."
    out = []
    for i, row in enumerate(task["rows"]):
        pool = [r for j, r in enumerate(task["rows"]) if j != i]
        indices = [j for j in range(len(task["rows"])) if j != i]
        shots = [task["rows"][j] for j in Random(1234 + i).sample(indices, task["shots"])] if task["shots"] else []
        assert len(pool) == len(task["rows"]) - 1
        d = task["delimiter"]
        if task["type"] == "multiple_choice":
            head = "".join(s["query"] + d + s["choices"][s["gold"]] + "\n\n" for s in shots)
            texts = [head + row["query"] + d + c for c in row["choices"]]
        elif task["type"] == "schema":
            head = "".join(s["context_options"][s["gold"]] + d + s["continuation"] + "\n\n" for s in shots)
            texts = [head + c + d + row["continuation"] for c in row["context_options"]]
        else:
            head = "".join(s["context"].strip() + d + s["continuation"] + "\n\n" for s in shots)
            texts = [(head + row["context"].strip() + d).strip(), head + row["context"].strip() + d + row["continuation"]]
        ids = [[tokenizer.bos] + tokenizer.encode(t) for t in texts]
        if task["type"] == "schema":
            n = 0
            while all(r[-1 - n] == ids[0][-1 - n] for r in ids): n += 1
            spans = [(r, len(r) - n) for r in ids]
        elif task["type"] == "multiple_choice":
            n = 0
            while all(r[n] == ids[0][n] for r in ids): n += 1
            spans = [(r, n) for r in ids]
        else: spans = [(ids[1], len(ids[0]))]
        losses, greedy = [], []
        for r, start in spans:
            with torch.no_grad(): p = model(torch.tensor([r])).float().softmax(-1)[0]
            losses.append(sum(-math.log(p[t - 1, r[t]].item()) for t in range(start, len(r))) / (len(r) - start))
            greedy.append(all(p[t - 1].argmax().item() == r[t] for t in range(start, len(r))))
        out.append(greedy[0] if task["type"] == "language_modeling" else losses.index(min(losses)) == row["gold"])
    return out


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t["type"])
def test_items_equal_a_slow_reference(model, tokenizer, task):
    n = len(task["rows"])
    assert core.task_items(model, tokenizer, task, range(n)) == slow_items(model, tokenizer, task)


def test_completion_can_be_right(tokenizer):
    "A model that knows the answers: each row of the LM task right, by exact greedy match."
    def oracle(idx):
        logits = torch.zeros(*idx.shape, tokenizer.vocab_size)
        logits[:, :-1] = torch.nn.functional.one_hot(idx[:, 1:], tokenizer.vocab_size).float()
        return logits
    assert all(core.task_items(oracle, tokenizer, LM, range(10)))
    almost = lambda idx: oracle(idx) * (torch.arange(idx.shape[1]) != idx.shape[1] - 2)[None, :, None]
    assert not all(core.task_items(almost, tokenizer, LM, range(10)))


def test_batched_scores_equal_single_scores(model):
    random = Random(0)
    options = [Option([random.randrange(256) for _ in range(n)], random.randrange(1, n)) for n in range(2, 90)]
    alone = [core.score_options(model, [o], 1)[0] for o in options]
    for budget in (1, 100, 5000):
        together = core.score_options(model, options, budget)
        assert [s.greedy for s in together] == [s.greedy for s in alone]
        assert max(abs(a.loss - b.loss) for a, b in zip(together, alone)) < 1e-4


def test_length_batches_cover_and_keep_the_budget():
    lengths = [Random(1).randrange(1, 200) for _ in range(1)] + [Random(i).randrange(1, 200) for i in range(300)]
    batches = list(core.length_batches(lengths, 1000))
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 1000 for b in batches)
    assert list(core.length_batches([5000], 10)) == [[0]] and list(core.length_batches([], 10)) == []


def test_equal_losses_tie_and_the_first_option_wins(tokenizer):
    flat = lambda idx: torch.zeros(*idx.shape, tokenizer.vocab_size)
    assert core.task_items(flat, tokenizer, MC, range(12)) == [row["gold"] == 0 for row in MC["rows"]]


def test_spans():
    assert [o.start for o in core.choice_options([[9, 1, 2], [9, 1, 3, 4]])] == [2, 2]
    assert [o.start for o in core.choice_options([[9, 1], [9, 1, 3]])] == [1, 1]
    assert [o.start for o in core.schema_options([[9, 1, 7, 8], [9, 2, 2, 7, 8]])] == [2, 3]
    with pytest.raises(ValueError): core.completion_option([[9, 1], [9, 1]])
    with pytest.raises(ValueError): core.completion_option([[9, 2], [9, 1, 3]])


def test_prompt_without_continuation_loses_its_space():
    without, full = core.render_completion({"context": " a b ", "continuation": "c"}, [], "\nAnswer: ")
    assert without == "a b\nAnswer:" and full == "a b\nAnswer: c"


def test_shots_never_hold_the_item_and_a_small_sample_does_not_crash():
    rows = [{"n": n} for n in range(30)]
    for i in range(30):
        shots = core.pick_shots(rows, i, 10)
        assert len(shots) == 10 and rows[i] not in shots and len({s["n"] for s in shots}) == 10
    assert len(core.pick_shots(rows[:5], 0, 10)) == 4       # a cap below shots + 1
    assert core.pick_shots(rows[:1], 0, 10) == []


def test_long_prompts_lose_their_beginning(tokenizer):
    row = {"query": "word " * 200 + "The end is", "choices": ["near", "far"], "gold": 0}
    task = {**MC, "rows": [row]}
    whole, cut = core.prepare(tokenizer, task, 0), core.prepare(tokenizer, task, 0, max_tokens=20)
    for a, b in zip(whole, cut):
        assert len(b.tokens) == 20 and b.tokens == a.tokens[-20:]
        assert b.tokens[b.start:] == a.tokens[a.start:]


def test_limit_is_the_models_own(model, tokenizer):
    task = {**MC, "rows": [{"query": "word " * 3000, "choices": ["near", "far"], "gold": 0}]}
    assert core.task_items(model, tokenizer, task, [0]) in ([True], [False])    # cropped, not refused


def test_wilson_solves_its_equation():
    "The limits are where the distance to k/n is z standard errors of the limit itself (Wilson 1927)."
    for k, n in ((1, 10), (3, 7), (50, 100), (999, 1000)):
        for p in core.wilson(k, n):
            assert abs(abs(k / n - p) - 1.96 * math.sqrt(p * (1 - p) / n)) < 1e-9
    assert core.wilson(0, 5)[0] == 0 and core.wilson(5, 5)[1] == pytest.approx(1) and core.wilson(0, 0) == (0.0, 1.0)


def test_baselines():
    rows = [{"query": "", "choices": ["aaa", "b"], "gold": g} for g in (0, 0, 0, 1)]
    assert core.majority({**MC, "rows": rows}) == 0.75 and core.shortest({**MC, "rows": rows}) == 0.25
    rows = [{"context": "", "continuation": c} for c in "xxyz"]
    assert core.majority({**LM, "rows": rows}) == 0.5 and core.shortest({**LM, "rows": rows}) is None


def test_evaluate_core_is_the_mean_of_centred_scores(model, tokenizer):
    result = core.evaluate_core(model, tokenizer, TASKS, limit=8)
    by_hand = [(r["accuracy"] - b) / (1 - b) for r, b in zip(result["tasks"].values(), (0.5, 0.5, 0.0))]
    assert result["core"] == pytest.approx(sum(by_hand) / 3)
    assert all(r["items"] == 8 and r["low"] <= r["accuracy"] <= r["high"] for r in result["tasks"].values())
    with pytest.raises(UserError): core.evaluate_core(model, tokenizer, [])
    with pytest.raises(UserError, match="mc has no rows"): core.evaluate_core(model, tokenizer, [{**MC, "rows": []}])


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t["type"])
def test_ranks_share_the_items(model, tokenizer, task):
    parts = []
    for rank in range(3): core.evaluate_task(model, tokenizer, task, rank=rank, world=3, reduce=lambda ts: parts.append(ts[0].clone()))
    together = core.evaluate_task(model, tokenizer, task, rank=0, world=3, reduce=lambda ts: ts[0].copy_(sum(parts) / 3))
    assert together == core.evaluate_task(model, tokenizer, task)
    with pytest.raises(UserError, match="give reduce="): core.evaluate_task(model, tokenizer, task, rank=0, world=3)


def test_bundle_errors(tmp_path):
    with pytest.raises(UserError, match="no core.yaml"): core.load_bundle(tmp_path)
    (tmp_path / "core.yaml").write_text("icl_tasks:\n- {label: a, dataset_uri: a.jsonl, num_fewshot: [1], "
                                        "icl_task_type: schema}\n")
    with pytest.raises(UserError, match="eval_meta_data.csv"): core.load_bundle(tmp_path)
    (tmp_path / "eval_meta_data.csv").write_text("Eval Task,Random baseline\na,50\n")
    with pytest.raises(UserError, match="a.jsonl is missing"): core.load_bundle(tmp_path)
    with pytest.raises(UserError, match="no task b"): core.load_bundle(tmp_path, ["b"])
    (tmp_path / "eval_data").mkdir()
    data = tmp_path / "eval_data" / "a.jsonl"
    data.write_text('{"gold": 0}\n{"gold": ')
    with pytest.raises(UserError, match="JSON"): core.load_bundle(tmp_path)
    data.unlink()
    packed = gzip.compress(b'{"gold": 0}\n\n' * 50)
    (tmp_path / "eval_data" / "a.jsonl.gz").write_bytes(packed)
    assert core.load_bundle(tmp_path)[0]["rows"] == [{"gold": 0}] * 50
    (tmp_path / "eval_data" / "a.jsonl.gz").write_bytes(packed[:-9])
    with pytest.raises(UserError, match="fetch it again"): core.load_bundle(tmp_path)
    for at in range(10, len(packed)):                        # one byte wrong, anywhere behind the head
        (tmp_path / "eval_data" / "a.jsonl.gz").write_bytes(packed[:at] + bytes([packed[at] ^ 255]) + packed[at + 1:])
        with contextlib.suppress(UserError): core.load_bundle(tmp_path)           # nothing else may come out
    data.write_bytes(b'{"text": "caf\xe9"}\n')
    with pytest.raises(UserError, match="fetch it again"): core.load_bundle(tmp_path)
    (tmp_path / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nother,50\n")
    with pytest.raises(UserError, match="no baseline for a"): core.load_bundle(tmp_path)


# --- real data ---------------------------------------------------------------------------------

@real_data
@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_centring_reproduces_the_published_tables(name):
    folder = Path(DATA) / "core"
    with (folder / "eval_bundle" / "eval_meta_data.csv").open(encoding="utf-8", newline="") as f:
        baselines = {r["Eval Task"]: float(r["Random baseline"]) for r in csv.DictReader(f)}
    with (folder / "reference" / f"openai-community-{name}.csv").open(encoding="utf-8") as f:
        rows = [[cell.strip() for cell in row] for row in csv.reader(f)][1:]
    tasks, published = [r for r in rows if r[0] != "CORE"], float(rows[-1][2])
    centred = [core.centre(float(a), baselines[label]) for label, a, _ in tasks]
    assert len(tasks) == 22
    assert max(abs(c - float(r[2])) for c, r in zip(centred, tasks)) < 3e-6
    assert abs(sum(centred) / 22 - published) < 2e-6


@pytest.fixture(scope="module")
def bundle():
    folder = Path(DATA) / "core" / "eval_bundle"
    import yaml
    listed = yaml.safe_load((folder / "core.yaml").read_text())["icl_tasks"]
    there = [t["label"] for t in listed if (folder / "eval_data" / (t["dataset_uri"] + ".gz")).exists()]
    return core.load_bundle(folder, there)


@real_data
def test_the_bundle_loads(bundle):
    found = {t["label"]: t for t in bundle}
    assert len(found) >= 18 and found["boolq"]["baseline"] == 62 and found["arc_easy"]["shots"] == 10
    assert found["piqa"]["delimiter"] == "\nAnswer: " and found["copa"]["delimiter"] == " "
    assert {t["type"] for t in bundle} == set(core.TYPES)
    with pytest.raises(UserError, match="missing"): core.load_bundle(Path(DATA) / "core" / "eval_bundle")


@real_data
def test_every_real_row_has_a_span(bundle, tokenizer):
    for task in bundle:
        capped = core.capped(task, 60)
        for i in range(len(capped["rows"])):
            options = core.prepare(tokenizer, capped, i)
            assert all(0 < o.start < len(o.tokens) for o in options), task["label"]
            if task["type"] == "language_modeling":
                tail = tokenizer.decode(options[0].tokens[options[0].start:])
                assert tail.strip() == capped["rows"][i]["continuation"].strip()
