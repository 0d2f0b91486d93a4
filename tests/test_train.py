"""The loop: accumulation, suppression, exact resume, bits per byte."""
import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nanochat import train as t
from nanochat.checkpoint import Run, last_step, load_checkpoint, save_checkpoint
from nanochat.data import Batch, Loader, pack_documents
from nanochat.gpt import GPT, config_for
from nanochat.muon import make_adamw, make_optimizer
from nanochat.optim import AdamW
from nanochat.train import (LossScale, NotFinite, best_split, evaluate, evaluate_bpb, find_micro_batch, fit, fit_power_law, gradients,
                            plan_run, predict_loss, pretrain, rows_that_fit, saved_bytes, train, wandb_log)
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
    with pytest.raises(NotFinite, match="step 3: the loss is nan.*update was not made"): next(run)


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


def test_a_kill_before_the_first_checkpoint_leaves_no_line_in_the_log(tmp_path):
    stage = stage_of(tmp_path)
    with pytest.raises(Stop): run_fit(stage, die_at=1)               # one step is logged, none is saved
    assert [r["step"] for r in stage.records()] == [1] and last_step(stage.path) is None
    run_fit(stage)
    assert [r["step"] for r in stage.records()] == list(range(1, 9))


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
    with pytest.raises(UserError, match=r"step 2: .*the checkpoint of step 2 in .*base is good and kept.*--name NEW") as e:
        fit(stage, model, make_optimizer(model), Loader(rows(), 2, seed=3), forward=forward, **options)
    assert "\n" not in str(e.value)
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


def test_rows_that_fit_counts_on_a_cpu_and_says_when_nothing_fits(monkeypatch):
    model = tiny()
    assert rows_that_fit(model, 12) == 12
    x = torch.zeros(1, T, dtype=torch.long)
    row = saved_bytes(lambda: model(x, x), model.parameters())
    fixed = 12 * sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(t, "free_bytes", lambda device: int((fixed + 1.5 * 5 * row) / 0.9))
    assert rows_that_fit(model, 12) in (4, 6)                 # five rows or a little more; 5 does not divide 12
    monkeypatch.setattr(t, "free_bytes", lambda device: fixed)
    with pytest.raises(UserError, match="one row"): rows_that_fit(model, 12)
    assert all(p.grad is None for p in model.parameters())    # counting leaves no trace


def test_a_container_limits_what_is_free(monkeypatch, tmp_path):
    real, made = t.Path, {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    4000 kB\n", "/sys/fs/cgroup/memory.max": "3000000\n",
                          "/sys/fs/cgroup/memory.current": "2500000\n",          # of it 1.5 MB page cache, which can be had
                          "/sys/fs/cgroup/memory.stat": "anon 900000\ninactive_file 1500000\n"}
    for name, text in made.items():
        (tmp_path / name[1:]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name[1:]).write_text(text)
    monkeypatch.setattr(t, "Path", lambda name: real(tmp_path, name[1:]))
    assert t.free_bytes(torch.device("cpu")) == 2_000_000
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert t.free_bytes(torch.device("cpu")) == 4000 * 1024


def test_tokens_are_those_of_all_ranks_of_their_time(monkeypatch):
    done = {"tokens": 0, "seconds": 0.0}
    for world, steps in ((1, range(1, 4)), (2, range(4, 6))):             # went on with twice as many processes
        monkeypatch.setattr(t, "ranks", lambda: (0, 0, world))
        for _ in t._counted((t.Step(i, 2.0, i, 1.0, 10, 0.1, 0.5) for i in steps), lambda record: None, done): pass
    assert done["tokens"] == 3 * 10 + 2 * 2 * 10


def test_saved_bytes_by_hand():
    x, w = torch.randn(10, 8, requires_grad=True), torch.randn(8, 3, requires_grad=True)
    assert saved_bytes(lambda: (x * x).sum(), []) == 10 * 8 * 4
    assert saved_bytes(lambda: (x @ w).sum(), [x]) == 8 * 3 * 4         # w is kept for x, and x is the parameter here
    assert saved_bytes(lambda: (x @ w).sum(), [x, w]) == 0


@pytest.mark.slow
def test_no_growth_over_2000_steps(tmp_path):
    "Everything that `fit` does, 2,000 times. Resident memory after step 400 and at the end; 12 MB is the noise of the allocator."
    if not os.path.exists("/proc/self/statm"): pytest.skip("reads /proc/self/statm, which only Linux has")
    out = subprocess.run([sys.executable, "-c", GROWTH, str(tmp_path)], capture_output=True, text=True,
                         env={**os.environ, "OMP_NUM_THREADS": "1", "NANOCHAT_QUIET": "1"})
    assert out.returncode == 0, out.stderr[-2000:]
    found = json.loads(out.stdout.splitlines()[-1])
    assert found["steps"] == 2000 and found["tensors"] <= 0, found
    assert found["grown_mb"] < 12, found


GROWTH = """
import gc, json, sys, torch
from nanochat.checkpoint import Run
from nanochat.data import Loader, Rows
from nanochat.gpt import GPT, config_for
from nanochat.muon import make_optimizer
from nanochat.train import fit
torch.set_num_threads(1)
ids = torch.randint(64, (100, 17), generator=torch.Generator().manual_seed(0))
model = GPT(config_for(1, 64, 16, head_dim=32))
seen = []
def probe(model):
    gc.collect()
    pages = int(open("/proc/self/statm").read().split()[1])
    seen.append((pages * 4096 / 1e6, sum(isinstance(o, torch.Tensor) for o in gc.get_objects())))
    return {"mb": seen[-1][0]}
metrics = fit(Run("r", home=sys.argv[1]).stage("base", {}, None, "d"), model, make_optimizer(model),
              Loader(Rows(ids[:, :-1].int(), ids[:, 1:].int()), 2, seed=0), steps=2000, schedule=lambda t: 0.1, save_every=400,
              micro=1, evaluators={"memory": probe}, eval_every=400)
print(json.dumps({"steps": metrics["steps"], "grown_mb": seen[-1][0] - seen[0][0], "tensors": seen[-1][1] - seen[0][1], "mb": seen[0][0]}))
"""


# ---------- how a batch is cut

def test_micro_batches_make_the_same_run_and_the_tokens_are_all_counted():
    def losses(batch, **options):
        model = tiny()
        return [(r.loss, r.tokens) for r in train(model, AdamW(model.parameters(), lr=0.01), Loader(rows(), batch, seed=0), steps=6,
                                                  schedule=lambda t: 1.0, **options)]
    whole = losses(8)
    for cut in (losses(8, micro=3), losses(2, accumulate=4), losses(4, accumulate=2, micro=1)):
        assert [n for _, n in cut] == [8 * T] * 6                       # tokens a step do not forget accumulation
        assert [x for x, _ in cut] == pytest.approx([x for x, _ in whole], abs=1e-4)


def test_a_step_is_an_update_and_not_a_micro_batch():
    model, made = tiny(), []
    class Counting(AdamW):
        def step(self, allowed=None):
            made.append(1)
            super().step(allowed)
    loader = Loader(rows(), 2, seed=0)
    records = list(train(model, Counting(model.parameters(), lr=0.01), loader, steps=5, schedule=lambda t: 1.0, accumulate=3, micro=1))
    assert len(made) == len(records) == 5 and loader.taken == 5 * 3 * 2


def test_restart_with_another_micro_batch_is_the_same_run(tmp_path):
    def go(stage, micro, die_at=None):
        model = tiny()
        def schedule(i):
            if i == die_at: raise Stop
            return 1.0
        fit(stage, model, AdamW(model.parameters(), lr=0.01), Loader(rows(), 6, seed=3), steps=8, schedule=schedule, save_every=2, micro=micro)
        return {r["loss_step"]: r["loss"] for r in stage.records()}
    straight = go(stage_of(tmp_path / "a"), 0)
    with pytest.raises(Stop): go(stage_of(tmp_path / "b"), 0, die_at=5)
    cut = go(stage_of(tmp_path / "b"), 1)
    assert len(cut) >= 6 and all(cut[i] == pytest.approx(straight[i], abs=1e-4) for i in cut)


def test_resume_in_a_later_epoch_stands_at_the_right_row_and_is_evaluated(tmp_path):
    def go(stage, die_at=None):
        model = tiny()
        def schedule(i):
            if i == die_at: raise Stop
            return 1.0
        return fit(stage, model, AdamW(model.parameters(), lr=0.01), Loader(rows(10), 3, seed=3), steps=12, schedule=schedule, save_every=5,
                   evaluators={"e": lambda m: {"bpb": m.lm_head.weight.sum().item()}})
    straight = go(stage_of(tmp_path / "a"))
    with pytest.raises(Stop): go(stage_of(tmp_path / "b"), die_at=11)    # step 10 of 30 rows: the fourth epoch
    assert go(stage_of(tmp_path / "b"))["evals"]["e"] == straight["evals"]["e"]


# ---------- never wait

class Questions(TorchDispatchMode):
    count = 0
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


class Descent(torch.optim.Optimizer):
    "Asks nothing itself."
    def __init__(self, params): super().__init__(params, {"lr": 0.1, "initial_lr": 0.1})
    @torch.no_grad()
    def step(self, allowed):
        for p in self.param_groups[0]["params"]: p -= 0.1 * torch.where(allowed, p.grad, 0.0)


@pytest.mark.parametrize("scale", [None, LossScale()])
def test_no_step_asks_the_device(scale):
    model = tiny()
    with Questions() as asked:
        list(train(model, Descent(model.parameters()), Loader(rows(), 4, seed=0), steps=4, schedule=lambda i: 1.0, accumulate=2, micro=2, scale=scale))
    assert asked.count == 0
    with Questions() as asked: model(*next(Loader(rows(), 4, seed=0))).item()
    assert asked.count == 1                           # the watcher does see questions


# ---------- float16

def half(seed=0):
    model = tiny(seed)
    model.compute_dtype = torch.float16
    return model


def test_loss_scale_halves_and_doubles_by_itself():
    scale, seen = LossScale(factor=8.0, patience=2), []
    for good in (True, True, False, True, False, False, True, True):
        scale.update(torch.tensor(good))
        seen.append(scale.state[0].item())
    assert seen == [8, 16, 8, 8, 4, 2, 2, 4]


def test_float16_follows_float32():
    def last(model, **options):
        return [r.loss for r in train(model, AdamW(model.parameters(), lr=0.01), Loader(rows(4), 4, seed=0), steps=12, schedule=lambda i: 1.0, **options)]
    full, low = last(tiny()), last(half(), scale=LossScale())
    assert low == pytest.approx(full, abs=0.03) and full[-1] < full[0] - 0.05


def test_an_overflow_skips_the_update_and_goes_on():
    model, scale = half(), LossScale(factor=2.0**60)
    before = [p.clone() for p in model.parameters()]
    run = train(model, AdamW(model.parameters(), lr=0.01), Loader(rows(4), 4, seed=0), steps=60, schedule=lambda i: 1.0, scale=scale)
    next(run)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before)) and scale.state[0] == 2.0**59
    records = list(run)
    assert scale.state[0] < 2.0**30 and records[-1].loss < math.log(V) - 0.05      # it found a factor that works, and learned


def test_a_nan_is_fatal_with_a_loss_scale_too():
    model = half()
    with pytest.raises(NotFinite, match="step 1"):
        list(train(model, AdamW(model.parameters(), lr=0.01), Loader(rows(), 4, seed=0), steps=2, schedule=lambda i: 1.0, scale=LossScale(),
                   forward=lambda x, y: model(x, y) * float("nan")))


def test_fit_scales_float16_and_resumes_the_factor(tmp_path):
    stage = stage_of(tmp_path)
    options = dict(schedule=lambda i: 1.0, save_every=1)
    for steps in (2, 4):
        model = half()
        fit(stage, model, AdamW(model.parameters(), lr=0.01), Loader(rows(), 4, seed=0), steps=steps, **options)
        assert load_checkpoint(stage.path)["extra"]["scale"] == [2.0**16, float(steps)]


# ---------- what is asked for: cadence, names, rates

def test_the_end_is_evaluated_without_a_cadence_and_the_cadence_may_be_quicker(tmp_path):
    def go(stage, **options):
        model, seen = tiny(), []
        def slow(m): seen.append("slow"); return {"skills": [{"skill": "core", "value": 1.0}]}
        def quick(m): seen.append("quick"); return {"sample": "Once"}
        fit(stage, model, AdamW(model.parameters(), lr=0.01), Loader(rows(), 2, seed=0), steps=4, schedule=lambda i: 1.0, save_every=0,
            evaluators={"all": slow}, watch={"story": quick}, **options)
        return seen
    assert go(stage_of(tmp_path / "a")) == ["slow"]
    assert go(stage_of(tmp_path / "b"), eval_every=1) == ["quick"] * 3 + ["slow"]
    assert [r["evals"]["story"] for r in stage_of(tmp_path / "b").records() if "evals" in r] == [{"sample": "Once"}] * 3


def test_wandb_gets_the_name_and_every_record(tmp_path, monkeypatch):
    calls, lines = {}, []
    def init(**options):
        calls.update(options)
        return SimpleNamespace(log=lambda record, step: lines.append((step, record)))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    stage, model = stage_of(tmp_path), tiny()
    also = wandb_log("nanochat", "my run", {"lr": 1}, stage.hash)
    fit(stage, model, AdamW(model.parameters(), lr=0.01), Loader(rows(), 2, seed=0), steps=3, schedule=lambda i: 1.0, save_every=0, eval_every=2,
        evaluators={"e": lambda m: {"bpb": 2.0, "text": "no number"}}, also=also)
    assert calls["name"] == "my run" and calls["project"] == "nanochat" and calls["resume"] == "allow" and stage.hash.startswith(calls["id"])
    assert [step for step, _ in lines] == [1, 2, 2, 3] and lines[2][1]["evals/e/bpb"] == 2.0 and "evals/e/text" not in lines[2][1]
    assert len(stage.records()) == 4                  # the file has them all in any case


def test_wandb_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="wandb is not installed.*log.jsonl"): wandb_log("p", "n", {}, "k")


def test_rates_come_down_at_the_end_of_a_stage(tmp_path):
    stage = stage_of(tmp_path)
    pretrain(stage, {"steps": 8, "save_every": 0, "warmup": 0.25, "warmdown": 0.5}, make_model=tiny, make_optimizer=make_optimizer, loader=Loader(rows(), 2, seed=0))
    rates = [r["lr"] for r in stage.records()]
    assert rates[0] < rates[2] == 1.0 and rates[-4:] == sorted(rates[-4:], reverse=True) and rates[-1] < 0.5


def test_windows_are_in_the_checkpoint(tmp_path):
    config = config_for(2, V, T, head_dim=32, window=(4, None))
    pretrain(stage_of(tmp_path), {"steps": 1, "save_every": 0}, make_model=lambda: GPT(config), make_optimizer=make_optimizer, loader=Loader(rows(), 2, seed=0))
    assert load_checkpoint(stage_of(tmp_path).path)["extra"]["config"]["window"] == [4, None]


# ---------- what cannot work

@pytest.mark.parametrize("options,lr,message", [
    ({"steps": -1}, 0.1, "steps is -1"), ({"accumulate": 0}, 0.1, "accumulate is 0"), ({"micro": -2}, 0.1, "micro is -2"),
    ({"clip": 0.0}, 0.1, "clip is 0"), ({"clip": float("nan")}, 0.1, "clip is nan"), ({}, 0.0, "learning rate of 0"), ({}, -0.1, "learning rate of -0.1"),
    ({}, float("nan"), "learning rate of nan"), ({}, float("inf"), "learning rate of inf"),
])
def test_settings_that_train_nothing(options, lr, message):
    model = tiny()
    optimizer = AdamW(model.parameters(), lr=0.1)
    for group in optimizer.param_groups: group["initial_lr"] = lr       # AdamW itself refuses these
    with pytest.raises(UserError, match=message):
        list(train(model, optimizer, Loader(rows(), 2, seed=0), **{"steps": 2, "schedule": lambda i: 1.0, **options}))


def test_data_that_end_are_named():
    model, batch = tiny(), next(Loader(rows(), 2, seed=0))
    with pytest.raises(UserError, match="data ended before step 3"):
        list(train(model, AdamW(model.parameters(), lr=0.1), iter([batch] * 2), steps=5, schedule=lambda i: 1.0))


def test_checkpoints_that_nobody_can_go_on_from(tmp_path):
    def go(stage, data=rows(), fingerprint=None):
        model = tiny()
        fit(stage, model, AdamW(model.parameters(), lr=0.1), Loader(data, 2, seed=0), steps=2, schedule=lambda i: 1.0, save_every=1, fingerprint=fingerprint)
    stage = stage_of(tmp_path / "a")
    go(stage, fingerprint="a" * 64)
    with pytest.raises(UserError, match="other data.*--name NEW"): go(stage, rows(30))
    with pytest.raises(UserError, match="another tokenizer"): go(stage, fingerprint="b" * 64)
    bare, model = stage_of(tmp_path / "b"), tiny()
    save_checkpoint(bare.path, 1, model=model, optimizer=AdamW(model.parameters(), lr=0.1))
    with pytest.raises(UserError, match="does not say where in the data"): go(bare)
    (stage_of(tmp_path / "c").path / "step_000001").mkdir(parents=True)
    with pytest.raises(UserError, match="meta.json is missing; delete the folder"): go(stage_of(tmp_path / "c"))


# ---------- the law, and the plan

def test_a_law_is_found_again_and_its_split_is_the_best():
    law = {"E": 0.5, "A": 50.0, "a": 0.35, "B": 200.0, "b": 0.28}
    runs = [(N, D, predict_loss(law, N, D)) for N in (3e4, 1e5, 4e5) for D in (1e5, 4e5, 2e6)]
    found = fit_power_law(*zip(*runs), floor=0.5)
    assert all(found[k] == pytest.approx(law[k], rel=0.02) for k in law)
    N, D = best_split(law, 1e13)
    assert 6 * N * D == pytest.approx(1e13) and predict_loss(law, N, D) == min(predict_loss(law, N * f, D / f) for f in (0.5, 0.9, 1, 1.1, 2))
    with pytest.raises(UserError, match="do not fix a law"): fit_power_law([1e4] * 6, [1e5] * 6, [1.0] * 6, 0.5)


@pytest.mark.parametrize("depth,parameters,steps,flops", [(20, 560_988_160, 21_400, 3.917670e19), (32, 1_879_048_192, 71_680, 4.539628e20)])
def test_the_plan_equals_the_published_runs(depth, parameters, steps, flops):
    with torch.device("meta"): model = GPT(config_for(depth, 65_536, 2048))
    model.compute_dtype = torch.bfloat16
    plan = plan_run(model)
    assert plan["parameters"] == parameters and plan["steps"] == steps and plan["tokens"] == steps * 2**19
    assert plan["flops"] == pytest.approx(flops, rel=1e-6) and plan["rows"] == 32
    assert plan["dollars"] == pytest.approx(24 * plan["flops"] / (8 * 989e12 * 0.45 * 3600))
    assert plan["fixed_gb"] + plan["rows_at_a_time"] * plan["row_gb"] < 80
