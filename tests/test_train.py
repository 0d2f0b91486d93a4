"""The loop: accumulation, suppression, exact resume, bits per byte."""
import json
import math
from types import SimpleNamespace

import pytest
import torch

from nanochat.checkpoint import Run, last_step, load_checkpoint
from nanochat.data import Batch, Loader, pack_documents
from nanochat.gpt import GPT, config_for
from nanochat.muon import make_adamw, make_optimizer
from nanochat.train import evaluate, evaluate_bpb, find_micro_batch, fit, gradients, pretrain, train
from nanochat.workshop import UserError

V, T = 64, 16


def tiny(seed=0):
    return GPT(config_for(1, V, T, head_dim=32), seed)


def rows(n=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    return pack_documents([torch.randint(1, V, (T + 1,), generator=g).tolist() for _ in range(n)], T)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("NANOCHAT_QUIET", "1")
    torch.set_num_threads(1)


# ---------- accumulation

def test_accumulated_gradients_equal_one_large_batch_when_masks_differ():
    x = torch.randint(V, (4, T))
    y = torch.randint(V, (4, T))
    y[0, 2:], y[1, :9] = -1, -1                       # rows with very different numbers of counted targets
    together, parts = tiny(), tiny()
    for m in (together, parts):
        torch.nn.init.normal_(m.lm_head.weight, std=0.02, generator=torch.Generator().manual_seed(1))
    whole = together(x, y)
    whole.backward()
    loss = gradients(parts, list(parts.parameters()), [(x[i:i + 1], y[i:i + 1]) for i in range(4)])
    assert torch.allclose(loss, whole.detach(), atol=1e-6)
    for p, q in zip(together.parameters(), parts.parameters()):
        assert torch.allclose(p.grad, q.grad, atol=1e-7)


def test_reduce_sees_counts_gradients_and_loss_before_clipping():
    model, seen = tiny(), []
    def double(tensors):
        seen.append(len(tensors))
        for z in tensors: z.mul_(2)
    optimizer = make_adamw(model)
    batch = Batch(torch.zeros(1, T).long(), torch.ones(1, T).long())
    list(train(model, optimizer, iter([batch]), steps=1, schedule=lambda t: 1.0, reduce=double, clip=1e-3))
    length = sum(p.grad.square().sum() for p in model.parameters()).sqrt()
    assert seen == [1, len(list(model.parameters())) + 1]
    assert length <= 1e-3 * 1.001                     # doubled before it was clipped, not after


# ---------- the generator

def test_records_are_one_step_late_and_the_first_and_last_are_not():
    model = tiny()
    records = list(train(model, make_adamw(model), Loader(rows(), 2, seed=0), steps=5, schedule=lambda t: 1 - t / 5))
    assert [r.step for r in records] == [1, 2, 3, 4, 5]
    assert [r.loss_step for r in records] == [1, 1, 2, 3, 5]
    assert [round(r.lr, 1) for r in records] == [1.0, 0.8, 0.6, 0.4, 0.2]
    assert all(r.tokens == 2 * T and r.seconds > 0 for r in records)
    assert records[0].loss == pytest.approx(math.log(V), abs=1e-5)


def test_an_update_that_is_not_finite_changes_nothing_and_names_its_step():
    model, batches = tiny(), Loader(rows(), 2, seed=0)
    optimizer, calls, before = make_optimizer(model), [], {}
    def forward(x, y):
        calls.append(1)
        if len(calls) == 3:                           # the third update: remember what must survive it
            before["model"] = {k: v.clone() for k, v in model.state_dict().items()}
            before["state"] = {(i, k): v.clone() for i, s in optimizer.state_dict()["state"].items() for k, v in s.items()}
        return model(x, y) * (float("nan") if len(calls) == 3 else 1.0)
    run = train(model, optimizer, batches, steps=9, schedule=lambda t: 1.0, forward=forward)
    assert [next(run).step for _ in range(3)] == [1, 2, 3]          # step 3's loss is not read yet
    assert all(torch.equal(v, before["model"][k]) for k, v in model.state_dict().items())
    after = {(i, k): v for i, s in optimizer.state_dict()["state"].items() for k, v in s.items()}
    assert all(torch.equal(v, before["state"][k]) for k, v in after.items()) and len(after) == len(before["state"])
    with pytest.raises(UserError, match="step 3.*checkpoint is kept"): next(run)


def test_a_bad_last_step_is_reported_too():
    model = tiny()
    run = train(model, make_adamw(model), Loader(rows(), 2, seed=0), steps=1, schedule=lambda t: 1.0,
                forward=lambda x, y: model(x, y) * float("inf"))
    with pytest.raises(UserError, match="step 1"): list(run)


# ---------- fit

class Stop(Exception): pass


def stage_of(tmp_path, name="base"):
    return Run("r", home=tmp_path).stage(name, {"steps": 8}, None, "data")


def run_fit(stage, *, die_at=None, seed=0, steps=8, evaluators=None):
    model, loader = tiny(seed), Loader(rows(), 2, seed=3)
    optimizer = make_optimizer(model)
    def schedule(t):
        if t == die_at: raise Stop
        return 1 - t / steps
    metrics = fit(stage, model, optimizer, loader, steps=steps, schedule=schedule, save_every=2, accumulate=2,
                  evaluators=evaluators, eval_every=3)
    return model, optimizer, metrics


def test_resume_equals_never_stopped_bit_for_bit(tmp_path):
    straight, opt, metrics = run_fit(stage_of(tmp_path / "a"))
    stage = stage_of(tmp_path / "b")
    with pytest.raises(Stop): run_fit(stage, die_at=5)               # checkpoint of step 4 is on disk
    assert last_step(stage.path) == 4
    resumed, opt2, metrics2 = run_fit(stage, seed=1)                 # other first weights: they must not matter
    assert same(straight, resumed)
    a, b = opt.state_dict()["state"], opt2.state_dict()["state"]
    assert a.keys() == b.keys() and all(torch.equal(v, b[i][k]) for i, s in a.items() for k, v in s.items())
    assert metrics["tokens"] == metrics2["tokens"] == 8 * 2 * 2 * T
    losses = {r["loss_step"]: r["loss"] for r in stage.records()}
    full = {r["loss_step"]: r["loss"] for r in stage_of(tmp_path / "a").records()}
    assert [r["step"] for r in stage.records()] == list(range(1, 9))
    assert all(losses[k] == full[k] for k in losses.keys() & full.keys()) and len(losses) >= 6


def test_a_checkpoint_is_on_disk_before_an_evaluator_runs(tmp_path):
    stage = stage_of(tmp_path)
    seen = []
    def evaluator(model):
        torch.rand(7)                                 # uses random numbers; training must not notice
        seen.append(last_step(stage.path))
        return {"skills": [{"skill": "bpb", "value": 1.0}]}
    _, _, metrics = run_fit(stage, evaluators={"probe": evaluator})
    assert seen == [2, 6, 8] and metrics["skills"] == [{"skill": "bpb", "value": 1.0}]
    assert [r["step"] for r in stage.records() if "evals" in r] == [3, 6]


def test_evaluators_do_not_move_the_random_numbers():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    evaluate(None, {"a": lambda m: {"x": torch.rand(100).sum().item()}})
    assert torch.equal(torch.rand(3), expected)


def test_a_killed_final_evaluation_is_done_after_all(tmp_path):
    stage = stage_of(tmp_path)
    def broken(model): raise Stop
    with pytest.raises(Stop): run_fit(stage, evaluators={"e": broken}, steps=2)
    _, _, metrics = run_fit(stage, evaluators={"e": lambda m: {"x": 1}}, steps=2)
    assert metrics["evals"] == {"e": {"x": 1}} and last_step(stage.path) == 2


def test_after_a_bad_step_the_checkpoint_is_finite_and_the_run_goes_on(tmp_path):
    stage, model, calls = stage_of(tmp_path), tiny(), []
    def forward(x, y):
        calls.append(1)
        return model(x, y) * (float("nan") if len(calls) == 2 else 1.0)
    options = dict(steps=6, schedule=lambda t: 1.0, save_every=2)
    with pytest.raises(UserError, match="step 2"):
        fit(stage, model, make_optimizer(model), Loader(rows(), 2, seed=3), forward=forward, **options)
    found = load_checkpoint(stage.path)
    assert found["step"] == 2 and all(v.isfinite().all() for v in found["model"].values())
    fit(stage, model, make_optimizer(model), Loader(rows(), 2, seed=3), **options)
    assert last_step(stage.path) == 6


def test_places_of_more_processes_are_refused(tmp_path):
    stage, model = stage_of(tmp_path), tiny()
    loader = Loader(rows(), 2, seed=3)
    fit(stage, model, make_optimizer(model), loader, steps=1, schedule=lambda t: 1.0, save_every=1,
        gather=lambda place: [place, place | {"taken": 99}])
    with pytest.raises(UserError, match="2 processes"):
        fit(stage, model, make_optimizer(model), loader, steps=2, schedule=lambda t: 1.0, save_every=1)


def test_pretrain_skips_a_finished_stage(tmp_path):
    stage = stage_of(tmp_path)
    recipe = {"steps": 3, "save_every": 2, "warmdown": 0.5}
    made = []
    def make_model(): made.append(1); return tiny()
    go = lambda: pretrain(stage, recipe, make_model=make_model, make_optimizer=make_optimizer, loader=Loader(rows(), 2, seed=0))
    first, second = go(), go()
    assert first == second and made == [1] and stage.status() == "finished"
    assert load_checkpoint(stage.path)["extra"]["config"] == tiny().config.to_dict()
    assert json.loads(json.dumps(first)) == first


# ---------- bits per byte

class Fixed(torch.nn.Module):
    "Gives every target the loss that stands in a table."
    def __init__(self, nats):
        super().__init__()
        self.w, self.nats = torch.nn.Parameter(torch.zeros(1)), nats
    def forward(self, x, y, reduction): return self.nats.expand(y.shape).clone()


def test_bpb_by_hand_with_special_and_ignored_targets():
    token_bytes = torch.tensor([0, 1, 3])             # token 0 is special
    y = torch.tensor([[1, 2, 0, -1, 2]])
    nats = torch.tensor([[1.0, 2.0, 50.0, 70.0, 3.0]])
    got = evaluate_bpb(Fixed(nats), [(y, y)], token_bytes)
    assert got["bytes"] == 7 and got["nats"] == pytest.approx(6.0)
    assert got["bpb"] == pytest.approx(6.0 / (7 * math.log(2)))


def test_bpb_of_a_uniform_model_is_its_log_over_bytes():
    y = torch.randint(1, V, (2, T))
    got = evaluate_bpb(tiny(), [Batch(y, y)] * 3, torch.full((V,), 2))     # fresh model: logits are all zero
    assert got["bpb"] == pytest.approx(math.log2(V) / 2, abs=1e-5)


def test_bpb_without_bytes_is_an_error():
    y = torch.full((1, 4), -1)
    with pytest.raises(UserError, match="no byte"): evaluate_bpb(Fixed(torch.zeros(1)), [(y, y)], torch.ones(3))


# ---------- memory

def test_micro_batch_is_the_largest_divisor_of_the_rows_that_fits():
    tried = []
    def attempt(n):
        tried.append(n)
        if n > 5: raise torch.OutOfMemoryError
    assert find_micro_batch(attempt, 24) == 4 and tried == [24, 12, 8, 6, 4]


def test_micro_batch_that_never_fits_is_an_error():
    def attempt(n): raise torch.OutOfMemoryError
    with pytest.raises(UserError, match="one row"): find_micro_batch(attempt, 8)
