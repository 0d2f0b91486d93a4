"Midtraining: what is a target, what is kept whole, and the stage around it."
import json

import pytest
import torch

from nanochat import data, muon
from nanochat.checkpoint import Run, load_weights
from nanochat.gpt import GPT, GPTConfig
from nanochat.midtrain import fit_settings, midtrain, midtrain_rows
from nanochat.tokenizer import Tokenizer
from nanochat.workshop import UserError

TOKENIZER = Tokenizer.train(["What is the colour of the box? It is red. " * 3], 290)
TEXTS = ["The box is red.", "Tom has a hat."]


def talk(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def talks(n=12):
    calls = [{"type": "python", "text": "1+2"}, {"type": "python_output", "text": "3"}, {"type": "text", "text": " It is 3."}]
    return [talk(f"What is {i}?", calls if i % 3 == 0 else f"It is {i}.") for i in range(n)]


def tiny_model(T=64):
    return GPT(GPTConfig(vocab_size=TOKENIZER.vocab_size, seq_len=T, n_layer=1, n_head=1, n_kv_head=1, n_embd=16), 0)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("NANOCHAT_QUIET", "1")
    torch.set_num_threads(1)


def pieces(rows, bos):
    "The items of packed rows, found by their bos, with (token, is it a target) of each token behind it."
    found = []
    for x, y in zip(rows.x.tolist(), rows.y.tolist()):
        starts = [i for i, token in enumerate(x) if token == bos] + [len(x)]
        for a, b in zip(starts, starts[1:]):
            targets = y[a:b]
            if targets[0] == -1: continue                   # filling: a bos that nothing follows
            end = next((j for j, t in enumerate(targets) if t == -1), len(targets))
            found.append(tuple([bos] + targets[:end]))
    return found


def test_every_token_is_a_target_and_every_item_is_whole():
    rows = midtrain_rows(TOKENIZER, talks(), TEXTS, 64)
    expected = [tuple(TOKENIZER.render(c)[0]) for c in talks()] + [(TOKENIZER.bos, *TOKENIZER.encode(t)) for t in TEXTS]
    assert sorted(pieces(rows, TOKENIZER.bos)) == sorted(expected)
    count = sum(len(e) - 1 for e in expected)
    assert (rows.y != -1).sum() == count                    # nothing else is a target, the filling least of all
    assert (rows.y == TOKENIZER.output_start).any() and (rows.y == TOKENIZER.user_start).any()


def test_targets_are_the_next_inputs():
    rows = midtrain_rows(TOKENIZER, talks(), TEXTS, 64)
    inside = rows.y[:, :-1] != -1
    assert (rows.x[:, 1:][inside] == rows.y[:, :-1][inside]).all()


def test_documents_begin_with_bos_and_no_target_crosses_into_another_item():
    rows = midtrain_rows(TOKENIZER, [], TEXTS, 64)
    assert (rows.x[:, 0] == TOKENIZER.bos).all() and not (rows.y == TOKENIZER.bos).any()


def test_too_long_is_left_out_and_said(tmp_path, capsys):
    long = [talk("What is it? " * 30, "It is red.")]
    rows = midtrain_rows(TOKENIZER, long + talks(3), [], 40)
    assert rows.left_out == 1
    with pytest.raises(UserError, match="no conversation fits"): midtrain_rows(TOKENIZER, long, [], 40)
    metrics, _ = run_stage(tmp_path, conversations=long + talks(3), T=40)
    assert metrics["left_out"] == 1 and "1 conversations are longer than 40 tokens" in capsys.readouterr().out


RECIPE = {"rows": 2, "steps": 8, "warmdown": 0.5, "lr_scale": 0.5, "save_every": 3, "eval_every": 4}


def run_stage(home, name="run", recipe=RECIPE, conversations=None, T=64, make_optimizer=muon.make_optimizer, **options):
    model = tiny_model(T)
    stage = Run(name, home).stage("mid", recipe, None, "talks")
    metrics = midtrain(stage, recipe, model=model, tokenizer=TOKENIZER, conversations=conversations or talks(), texts=TEXTS,
                       make_optimizer=make_optimizer, **options)
    return metrics, model


def test_stage_learns_stores_and_is_skipped_the_second_time(tmp_path):
    seen = []
    measure = lambda m: seen.append(1) or {"skills": [{"skill": "letter_choice", "value": 1.0, "items": 2}]}
    metrics, model = run_stage(tmp_path, evaluators={"letters": measure})
    assert len(seen) == 2 and metrics["skills"][0]["skill"] == "letter_choice"      # at step 4 and at the end
    assert json.loads((tmp_path / "run" / "mid" / "metrics.json").read_text()) == metrics
    stored = load_weights(tmp_path / "run" / "mid", fingerprint=TOKENIZER.fingerprint())
    assert GPTConfig.from_dict(stored["extra"]["config"]) == model.config
    assert all(torch.equal(v, stored["model"][k]) for k, v in model.state_dict().items())
    log = [json.loads(line) for line in (tmp_path / "run" / "mid" / "log.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in log if "loss" in r]
    assert losses[-1] < losses[0] - 0.2
    def never(*a, **k): raise AssertionError("a finished stage is not trained again")
    again, _ = run_stage(tmp_path, make_optimizer=never)
    assert again == metrics


def test_resume_is_exact(tmp_path):
    _, whole = run_stage(tmp_path, "whole")
    class Cut(Exception): pass
    def cut(model):
        raise Cut
    with pytest.raises(Cut): run_stage(tmp_path, "cut", evaluators={"crash": cut})      # after step 4; step 3 is saved
    assert not (tmp_path / "cut" / "mid" / "metrics.json").exists()
    metrics, resumed = run_stage(tmp_path, "cut")
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters()): assert torch.equal(a, b), name


def test_changed_recipe_is_refused(tmp_path):
    run_stage(tmp_path)
    with pytest.raises(UserError, match="lr_scale: 0.5 -> 0.1"): run_stage(tmp_path, recipe=RECIPE | {"lr_scale": 0.1})


def test_rates_and_schedule_reach_the_loop(tmp_path):
    asked = {}
    def make(model, **options):
        asked.update(options)
        return muon.make_optimizer(model, **options)
    run_stage(tmp_path, make_optimizer=make)
    assert asked == {"lr_scale": 0.5, "batch_tokens": 2 * 64}
    multiplier = fit_settings(RECIPE)["schedule"]
    assert [multiplier(t) for t in range(8)] == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]     # down, never up: nanochat's issue 68


def test_two_ranks_read_different_rows(tmp_path):
    from nanochat.data import Loader
    rows = midtrain_rows(TOKENIZER, talks(40), TEXTS, 40)
    halves = [next(Loader(rows, 2, seed=0, rank=r, world=2)).x for r in (0, 1)]
    whole = next(Loader(rows, 4, seed=0)).x
    assert sorted(map(tuple, torch.cat(halves).tolist())) == sorted(map(tuple, whole.tolist()))


def test_documents_are_cut_to_a_row_and_conversations_are_not():
    rows = midtrain_rows(TOKENIZER, talks(2), ["The box is red. " * 30], 40)
    long = max(pieces(rows, TOKENIZER.bos), key=len)
    assert len(long) == 41 and rows.left_out == 0
    assert list(long[1:]) == TOKENIZER.encode("The box is red. " * 30)[:40]


def test_each_rank_of_a_stage_reads_its_own_share(tmp_path, monkeypatch):
    "Rows are those of an update: with two ranks each takes half of them, and not the same half."
    made = []
    class Spy(data.Loader):
        def __init__(self, rows, size, **options):
            made.append((size, options))
            super().__init__(rows, size, **options)
    monkeypatch.setattr("nanochat.midtrain.Loader", Spy)
    run_stage(tmp_path, recipe=RECIPE | {"seed": 7}, rank=1, world=2)
    assert made == [(1, {"seed": 7, "rank": 1, "world": 2})]
    with pytest.raises(UserError, match="2 rows or prompts cannot be shared by 3"): run_stage(tmp_path, "three", rank=1, world=3)
