"""Two processes equal one: gradients, sharded optimizer, state, stopping together."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanochat.distributed import ShardedOptimizer, any_rank, average_tensors, cleanup, gather_objects, owners, session
from nanochat.gpt import GPT, config_for
from nanochat.muon import make_optimizer
from nanochat.train import train
from nanochat.workshop import UserError

ROOT = Path(__file__).resolve().parent.parent
V, T, ROWS = 64, 16, 6

COMMON = """
import sys, torch
torch.set_num_threads(1)
from nanochat.distributed import *
from nanochat.gpt import GPT, config_for
from nanochat.muon import make_optimizer
from nanochat.train import train, evaluate_bpb, fit
from nanochat.checkpoint import Run, load_checkpoint
from nanochat.data import Loader, pack_documents
from nanochat.workshop import ranks
rank, _, world = ranks()
V, T, ROWS = 64, 16, 6
def model(): return GPT(config_for(1, V, T, head_dim=32), 0)
def whole(seed=0):
    g = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randint(1, V, (ROWS, T), generator=g)
        y = torch.randint(1, V, (ROWS, T), generator=g)
        y[0, :T - 2] = -1                                     # the ranks count different numbers of targets
        yield x, y
def mine():
    n = ROWS // world
    for x, y in whole(): yield x[rank * n:(rank + 1) * n], y[rank * n:(rank + 1) * n]
def optimizer_of(m):
    # AdamW divides by the size of the gradient, so it turns rounding errors into errors of about lr: keep lr small
    return make_optimizer(m, embedding_lr=0.002, head_lr=0.002, weight_decay=0.01)
"""


# When the interpreter shuts down, a thread of gloo now and then aborts a process that has done all its work.
LEAVE = "\nsys.stdout.flush()\n__import__('os')._exit(0)\n"


def launch(tmp_path, body: str, n: int = 2, timeout: int = 120):
    "Run a script under torchrun on `n` processes; returns what it finished with."
    script = tmp_path / "job.py"
    script.write_text(COMMON + body + LEAVE)
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "NANOCHAT_QUIET": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}", str(script), str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def job() -> dict:
    "The script's functions, here, in one process."
    scope = {}
    exec(COMMON, scope)
    return scope


def test_three_processes_equal_one_with_all_rows(tmp_path):
    launch(tmp_path, """
with session():
    m = model()
    optimizer = ShardedOptimizer(optimizer_of(m))
    records = list(train(m, optimizer, mine(), steps=5, schedule=lambda t: 1.0, clip=0.1, reduce=average_tensors))
    held = sum(v.numel() for s in optimizer.optimizer.state.values() for v in s.values())
    torch.save({"model": m.state_dict(), "optimizer": optimizer.state_dict(), "held": held,
                "losses": [r.loss for r in records], "norms": [r.grad_norm for r in records]}, f"{sys.argv[1]}/{rank}.pt")
""", n=3)
    alone = job()
    model = alone["model"]()
    optimizer = alone["optimizer_of"](model)
    records = list(train(model, optimizer, alone["whole"](), steps=5, schedule=lambda t: 1.0, clip=0.1))
    found = [torch.load(tmp_path / f"{r}.pt") for r in range(3)]
    for k, v in model.state_dict().items():
        assert all(torch.equal(found[0]["model"][k], f["model"][k]) for f in found), k       # ranks agree bit for bit
        assert (found[0]["model"][k] - v).abs().max() < 1e-6, k
    assert found[0]["losses"] == pytest.approx([r.loss for r in records], abs=1e-6)
    assert found[0]["norms"] == pytest.approx([r.grad_norm for r in records], rel=1e-5)
    whole, joined = optimizer.state_dict(), found[0]["optimizer"]
    for i, s in whole["state"].items():
        for k, v in s.items(): assert torch.allclose(joined["state"][i][k], v, atol=1e-6), (i, k)
    assert joined["param_groups"] == whole["param_groups"] and not found[1]["optimizer"]["state"]
    total = sum(v.numel() for s in whole["state"].values() for v in s.values())
    assert sum(f["held"] for f in found) == total and max(f["held"] for f in found) < 0.6 * total


FIT = """
rows = pack_documents([torch.randint(1, V, (T + 1,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(40)], T)
def go(home, name, steps, total=6):
    m = model()
    optimizer = optimizer_of(m)
    if world > 1: optimizer = ShardedOptimizer(optimizer)
    options = dict(reduce=average_tensors, gather=gather_objects, agree=any_rank) if world > 1 else {}
    loader = Loader(rows, 4 // world, seed=3, rank=rank, world=world)
    fit(Run(name, home=home).stage("base", {}, None, "d"), m, optimizer, loader, steps=steps,
        schedule=lambda t: 1 - t / total, save_every=3, **options)
    return m
"""


def test_two_processes_resume_stop_and_suppress_together(tmp_path, monkeypatch):
    out = launch(tmp_path, FIT + """
from nanochat.workshop import UserError
home = sys.argv[1]
with session():
    straight = go(home, "straight", 6)                                    # resume with two ranks: bit for bit
    go(home, "a", 3); go(home, "b", 3)
    resumed = go(home, "a", 6)
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in straight.state_dict().items())
    if rank == 0: torch.save(straight.state_dict(), f"{home}/straight.pt")

    assert any_rank(rank == 1) and not any_rank(False)
    assert gather_objects({"r": rank}) == [{"r": 0}, {"r": 1}]
    tensors = [torch.full((3,), float(rank)), torch.full((2, 2), 4.0 * rank),
               torch.full((1,), 6.0 * rank, dtype=torch.float64), torch.tensor(10.0 * rank)]
    average_tensors(tensors, bucket=2)
    assert [t.flatten()[0].item() for t in tensors] == [0.5, 2.0, 3.0, 5.0] and tensors[1].shape == (2, 2)

    m = model()
    optimizer = ShardedOptimizer(optimizer_of(m))
    before = {k: v.clone() for k, v in m.state_dict().items()}
    def forward(x, y): return m(x, y) * (float("nan") if rank == 1 else 1.0)      # bad on one rank only
    try: list(train(m, optimizer, mine(), steps=3, schedule=lambda t: 1.0, reduce=average_tensors, forward=forward))
    except UserError as e: assert "step 1" in str(e)
    else: raise SystemExit("both ranks must stop")
    assert all(torch.equal(v, before[k]) for k, v in m.state_dict().items())
    gather_objects("both came here")
    if rank == 0: print("stopped together")
""")
    assert "stopped together" in out
    monkeypatch.setenv("NANOCHAT_QUIET", "1")
    scope = {}
    exec(COMMON + FIT, scope)
    alone = scope["go"](tmp_path, "b", 6).state_dict()                    # a checkpoint of two ranks goes on in one process
    straight = torch.load(tmp_path / "straight.pt")
    assert all((alone[k] - v).abs().max() < 1e-6 for k, v in straight.items())


def test_owners_balance_and_own_everything():
    sizes = [7, 1, 1, 1, 5, 5, 3]
    owner = owners(sizes, 3)
    load = [sum(s for s, o in zip(sizes, owner) if o == r) for r in range(3)]
    assert len(owner) == len(sizes) and max(load) - min(load) <= 1
    assert owners([4], 8) == [0] and owners([], 2) == []


def test_alone_nothing_happens(monkeypatch):
    monkeypatch.setenv("RANK", "0")                   # a stray environment is no group
    with session():
        x = torch.ones(2)
        average_tensors([x])
        assert x.tolist() == [1, 1] and gather_objects(5) == [5] and any_rank(True) and not any_rank(False)
    cleanup()


def test_sharding_without_a_group_is_an_error():
    with pytest.raises(UserError, match="torchrun"):
        ShardedOptimizer(make_optimizer(GPT(config_for(1, V, T, head_dim=32), 0)))
