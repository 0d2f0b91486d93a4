"""SIGKILL at random moments: what is resumed equals, bit for bit, what was never stopped, and no file is ever torn.

Three kills in `make test`. The long form, at least twenty (about a minute on a quiet core):

    NANOCHAT_KILLS=20 python -m pytest -q tests/test_kill_resume.py

One process imports everything and then forks the runs, so that a restart costs no import. A run draws random numbers in its
forward pass and in its evaluations, goes through its data more than once, and saves at every second step, so that
kills fall into updates, logs, saves, renames and evaluations alike.
"""
import json
import os
import subprocess
import sys

KILLS = int(os.environ.get("NANOCHAT_KILLS", "3"))

DRIVER = """
import json, os, random, signal, sys, time
import numpy as np
import torch
from nanochat.checkpoint import Run, load_checkpoint, steps_in
from nanochat.data import Loader, Rows
from nanochat.gpt import GPT, config_for
from nanochat.muon import make_optimizer
from nanochat.train import fit

torch.set_num_threads(1)
home, kills, STEPS = sys.argv[1], int(sys.argv[2]), 60
tokens = torch.randint(64, (50, 17), generator=torch.Generator().manual_seed(0))
rows = Rows(tokens[:, :-1].int(), tokens[:, 1:].int())

def stage_of(name): return Run(name, home=home).stage("base", {"steps": STEPS}, None, "rows")

def run(name, seed):
    "One process's attempt at the whole run; with a checkpoint to go on from, other first weights must not matter."
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    model = GPT(config_for(1, 64, 16, head_dim=32), seed)
    noisy = lambda x, y: model(x, y) * (0.9 + 0.1 * torch.rand(()) + 0.1 * random.random() + 0.1 * np.random.rand())
    fit(stage_of(name), model, make_optimizer(model), Loader(rows, 3, seed=1), steps=STEPS, schedule=lambda t: 1 - t / STEPS,
        save_every=2, accumulate=2, forward=noisy, evaluators={"e": lambda m: {"x": torch.rand(100).mean().item()}}, eval_every=5)

def child(name, seed):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run(name, seed)
            status = 0
        finally: os._exit(status)
    return pid

def losses(name): return {r["loss_step"]: r["loss"] for r in stage_of(name).records() if "loss" in r}

def end(name): return load_checkpoint(stage_of(name).path)

def equal(a, b):
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(equal(v, b[k]) for k, v in a.items())
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(equal, a, b))
    return a == b

began = time.perf_counter()
assert os.waitpid(child("straight", 0), 0)[1] == 0
usual = time.perf_counter() - began
want, whole, made, torn, attempt = losses("straight"), end("straight"), 0, 0, 0
dice = random.Random(os.getpid())
compared = []
while made < kills or not compared:
    name, attempt, done = f"killed{attempt}", attempt + 1, False
    while not done:
        pid = child(name, 7 + made if steps_in(stage_of(name).path) else 0)      # nothing saved: the same run from its beginning
        if made < kills:                       # mostly early, so that most legs end in a kill
            time.sleep(usual * dice.uniform(0.02, 0.5))
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                made += 1
            else: done = True
        else:
            assert os.waitpid(pid, 0)[1] == 0
            done = True
        for step in steps_in(stage_of(name).path):      # whatever has a name is whole
            found = load_checkpoint(stage_of(name).path, step)
            torn += found["step"] != step
    got = losses(name)
    compared.append({"steps": len(got), "losses": all(want[t] == v for t, v in got.items() if t in want),
                     "weights": equal(end(name)["model"], whole["model"]), "optimizer": equal(end(name)["optimizer"], whole["optimizer"]),
                     "rng": equal(end(name)["rng"], whole["rng"]), "loader": end(name)["extra"]["loader"] == whole["extra"]["loader"],
                     "log": [r["step"] for r in stage_of(name).records() if "loss" in r] == list(range(1, STEPS + 1))})
print(json.dumps({"kills": made, "torn": torn, "compared": compared}))
"""


def test_a_killed_run_equals_one_that_was_never_stopped(tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "NANOCHAT_QUIET": "1"}
    out = subprocess.run([sys.executable, "-c", DRIVER, str(tmp_path), str(KILLS)], capture_output=True, text=True, env=env)
    assert out.returncode == 0, out.stderr[-2000:]
    found = json.loads(out.stdout.splitlines()[-1])
    assert found["kills"] >= KILLS and found["torn"] == 0
    for run in found["compared"]:
        assert run["steps"] >= 50, "too few losses to compare"
        assert all(run[k] for k in ("losses", "weights", "optimizer", "rng", "loader", "log")), run
    print(found)
