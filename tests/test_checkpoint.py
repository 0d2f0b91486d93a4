"""Checkpoints: exact resume, kill while writing, damage, full disk, locks, what changed, interrupts."""
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from nanochat import checkpoint as c
from nanochat.workshop import UserError


def small(width=4, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))
    return model, torch.optim.AdamW(model.parameters(), lr=0.05)


def train(model, optimizer, steps):
    losses = []
    for _ in range(steps):
        loss = (model(torch.randn(8, 3)) - random.random() - np.random.rand()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_resumed_run_equals_the_unbroken_one(tmp_path):
    random.seed(1), np.random.seed(1)
    model, optimizer = small()
    train(model, optimizer, 5)
    random.gauss(0, 1)                                                    # leaves half a pair behind
    c.save_checkpoint(tmp_path, 5, model=model, optimizer=optimizer, extra={"loader": {"taken": 40}})
    expected = train(model, optimizer, 5), random.gauss(0, 1)
    other, its_optimizer = small(seed=9)
    torch.manual_seed(99), random.seed(99), np.random.seed(99)
    found = c.load_checkpoint(tmp_path, model=other, optimizer=its_optimizer)
    c.set_rng_state(found["rng"])
    assert (train(other, its_optimizer, 5), random.gauss(0, 1)) == expected
    assert found["extra"] == {"loader": {"taken": 40}} and found["step"] == 5
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))


def test_rng_state_covers_numpys_odd_places():
    np.random.seed(3)
    np.random.standard_normal()                                           # leaves a cached number
    tensors = {}
    plain = json.loads(json.dumps(c.split_tensors(c.rng_state(), tensors)))
    expected = np.random.standard_normal(5).tolist()
    c.set_rng_state(c.join_tensors(plain, tensors))
    assert np.random.standard_normal(5).tolist() == expected


@pytest.mark.parametrize("tree", [
    {}, [], (), {"a": None, "b": [1, 2.5, True, "x"]}, {1: {2: (3, [4, ()])}}, {"tensor": "not one", "items": [], "list": {}},
    {"nan": float("inf")},
])
def test_plain_trees_survive_json(tree):
    tensors = {}
    assert c.join_tensors(json.loads(json.dumps(c.split_tensors(tree, tensors))), tensors) == tree and tensors == {}


def test_nothing_is_pickled(tmp_path):
    model, optimizer = small()
    train(model, optimizer, 1)
    path = c.save_checkpoint(tmp_path, 1, model=model, optimizer=optimizer)
    assert {p.suffix for p in path.iterdir()} == {".json", ".safetensors"}
    source = Path(c.__file__).read_text(encoding="utf-8")
    assert "torch.load" not in source and "pickle" not in source and "torch.save" not in source


def test_safetensors_can_be_read_by_its_own_library(tmp_path):
    from safetensors.torch import load_file
    model, _ = small()
    path = c.save_checkpoint(tmp_path, 3, model=model)
    stored = load_file(path / "model.safetensors")
    assert stored.keys() == model.state_dict().keys()
    assert all(torch.equal(stored[k], v) for k, v in model.state_dict().items())


def test_tied_weights_views_and_bfloat16(tmp_path):
    base = torch.randn(4, 6)
    state = {"a": base, "b": base, "c": base.t(), "d": base[:2], "e": base.bfloat16(), "f": torch.tensor(3)}
    c.save_checkpoint(tmp_path, 1, model=state)
    found = c.load_weights(tmp_path)["model"]
    assert found.keys() == state.keys()
    for key in state: assert torch.equal(found[key], state[key]) and found[key].dtype == state[key].dtype


def test_prefix_of_compiled_models_is_taken_off_whole(tmp_path):
    c.save_checkpoint(tmp_path, 1, model={"_orig_mod.model.weight": torch.ones(1), "domain": torch.ones(1)})
    assert set(c.load_weights(tmp_path)["model"]) == {"model.weight", "domain"}
    compiled = torch.compile(nn.Linear(2, 2))
    c.save_checkpoint(tmp_path / "x", 1, model=compiled)
    c.load_weights(tmp_path / "x", model=compiled)


def test_last_step_is_a_number_and_the_names_are_strict(tmp_path):
    for name in ("step_000900", "step_005000", "step_1000000", "step_999999", "step_9999999.tmp", "step_99",
                 "xstep_9000000", "step_9000000_old", "step_-900000", "step_٩٩٩٩٩٩٩", ".step_2000000.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "step_8000000").write_text("a file")
    steps = c.steps_in(tmp_path)
    assert c.last_step(tmp_path) == 1_000_000 and steps == [900, 5000, 999_999, 1_000_000]


def test_keep_and_saving_one_step_twice(tmp_path):
    model, _ = small()
    for step in (1, 2, 10, 9): c.save_checkpoint(tmp_path, step, model=model, keep=3)
    assert c.steps_in(tmp_path) == [2, 9, 10]
    other, _ = small(seed=5)
    c.save_checkpoint(tmp_path, 10, model=other, keep=3)
    assert torch.equal(c.load_weights(tmp_path)["model"]["0.weight"], other[0].weight)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000002", "step_000009", "step_000010"]


def test_the_one_just_written_stays(tmp_path):
    for step in (10, 15): c.save_checkpoint(tmp_path, step, model={"w": torch.ones(1)}, keep=2)
    path = c.save_checkpoint(tmp_path, 5, model={"w": torch.ones(1)}, keep=2)         # went on from an older one
    assert path.is_dir() and c.steps_in(tmp_path) == [5, 10, 15]
    with pytest.raises(UserError, match="keep is 0"): c.save_checkpoint(tmp_path, 20, model={"w": torch.ones(1)}, keep=0)
    assert c.steps_in(tmp_path) == [5, 10, 15]


def test_a_kill_while_old_files_go_leaves_no_torn_folder(tmp_path, monkeypatch):
    "Whenever files are deleted, no folder with a good name may be among them."
    c.save_checkpoint(tmp_path, 1, model={"w": torch.zeros(1)})
    stage = c.Run("a", tmp_path).stage("base", {}, None, "")
    stage.start()
    stage.finish({})
    real, gone = c.shutil.rmtree, []
    def killed(path, **options):
        if Path(path).exists():
            gone.append(Path(path).name)
            raise KeyboardInterrupt
        real(path, **options)
    monkeypatch.setattr(c.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt): c.save_checkpoint(tmp_path, 1, model={"w": torch.ones(1)})
    assert c.load_weights(tmp_path)["model"]["w"] == 1                                # the new one has its name
    with pytest.raises(KeyboardInterrupt): stage.reset()
    assert stage.status() == "new" and c.Run("a", tmp_path).stages() == [] and c.list_runs(tmp_path) == []
    assert gone and all(name.startswith(".") for name in gone)


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    asked = []
    class Sharded:
        def state_dict(self):
            asked.append(1)
            return {}
    c.save_checkpoint(tmp_path / "a", 1, model=small()[0], optimizer=Sharded())
    assert not (tmp_path / "a").exists() and asked == [1]                 # but its state was gathered


# ---------------------------------------------------------------- faults

def test_empty_folder_and_absent_step(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="no checkpoint in"): c.load_checkpoint(folder)
    c.save_checkpoint(tmp_path, 7, model=small()[0])
    with pytest.raises(UserError, match=r"step 8 .*\[7\]"): c.load_weights(tmp_path, 8)


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "training.json", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "absent"])
def test_damaged_files_are_named(tmp_path, name, damage):
    model, optimizer = small()
    train(model, optimizer, 1)
    c.save_checkpoint(tmp_path, 1, model=model, optimizer=optimizer)
    path = tmp_path / "step_000001" / name
    if damage == "absent": path.unlink()
    else: path.write_bytes(path.read_bytes()[: -7 if damage == "cut" else 0])
    with pytest.raises(UserError) as e: c.load_checkpoint(tmp_path)
    assert name in str(e.value) and "delete the folder" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("name,content", [
    ("meta.json", "[]"), ("meta.json", "{}"), ("meta.json", "7"), ("meta.json", '{"step": 1}'), ("meta.json", "[" * 100_000),
    ("training.json", "{}"), ("training.json", '{"tensor": "gone"}'), ("training.json", '{"items": [["optimizer", {"tensor": "gone"}]]}'),
    ("training.json", '{"items": [["a", 1]]}'), ("training.json", '{"a": 1, "b": 2}'), ("training.json", '{"set": []}'),
    ("training.json", '{"items": [["optimizer", {"items": []}], ["rng", null]]}'),
])
def test_json_of_somebody_else_is_refused_in_one_line(tmp_path, name, content):
    model, optimizer = small()
    train(model, optimizer, 1)
    path = c.save_checkpoint(tmp_path, 1, model=model, optimizer=optimizer)
    (path / name).write_text(content)
    with pytest.raises(UserError) as e: c.load_checkpoint(tmp_path, model=model, optimizer=optimizer)
    assert "\n" not in str(e.value) and "step_000001" in str(e.value)


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "training.json", "meta.json"])
def test_a_checkpoint_of_somebody_else_executes_nothing(tmp_path, name):
    "A pickle that would write a file stands in the place of each file in turn."
    import pickle
    class Evil:
        def __reduce__(self): return Path.write_text, (tmp_path / "was_here", "x")
    payload = pickle.dumps({"w": Evil()})
    pickle.loads(payload)
    assert (tmp_path / "was_here").exists()                               # the payload works
    (tmp_path / "was_here").unlink()
    model, optimizer = small()
    train(model, optimizer, 1)
    path = c.save_checkpoint(tmp_path / "run", 1, model=model, optimizer=optimizer)
    (path / name).write_bytes(payload)
    with pytest.raises(UserError, match="damaged"): c.load_checkpoint(tmp_path / "run", model=model, optimizer=optimizer)
    torch.save({"w": torch.ones(1)}, path / name)                         # nor a zip of torch's
    with pytest.raises(UserError, match="damaged"): c.load_checkpoint(tmp_path / "run", model=model, optimizer=optimizer)
    assert not (tmp_path / "was_here").exists()


def test_an_empty_checkpoint_folder_is_named(tmp_path):
    (tmp_path / "step_000004").mkdir()
    with pytest.raises(UserError, match="meta.json is missing; delete the folder .*step_000004"): c.load_weights(tmp_path)


def test_another_optimizer_is_named(tmp_path):
    model, optimizer = small()
    train(model, optimizer, 1)
    c.save_checkpoint(tmp_path, 1, model=model, optimizer=optimizer)
    two_groups = torch.optim.AdamW([{"params": model[0].parameters()}, {"params": model[2].parameters()}])
    with pytest.raises(UserError, match="another optimizer.*--name NEW"): c.load_checkpoint(tmp_path, optimizer=two_groups)


def test_bfloat16_weights_load_into_a_float32_model(tmp_path):
    model, _ = small()
    c.save_checkpoint(tmp_path, 1, model={k: v.bfloat16() for k, v in model.state_dict().items()})
    other, _ = small(seed=3)
    c.load_weights(tmp_path, model=other)
    assert all(p.dtype == torch.float32 for p in other.parameters()) and other(torch.ones(1, 3)).isfinite().all()
    assert torch.equal(other[0].weight, model[0].weight.bfloat16().float())


def test_other_shapes_names_and_tokenizers(tmp_path):
    model, optimizer = small()
    c.save_checkpoint(tmp_path, 1, model=model, fingerprint="a" * 64)
    before = [p.clone() for p in small(6)[0].parameters()]
    wider, _ = small(6)
    with pytest.raises(UserError, match=r"0.bias is \(4,\) there, \(6,\) here"): c.load_weights(tmp_path, model=wider)
    assert all(torch.equal(a, b) for a, b in zip(before, wider.parameters()))       # untouched
    with pytest.raises(UserError, match="absent"): c.load_weights(tmp_path, model=model[:1])
    with pytest.raises(UserError, match="another tokenizer"): c.load_weights(tmp_path, fingerprint="b" * 64)
    assert c.load_weights(tmp_path, model=model, fingerprint="a" * 64)["fingerprint"] == "a" * 64
    with pytest.raises(UserError, match="no optimizer"): c.load_checkpoint(tmp_path, model=model, optimizer=optimizer)


@pytest.mark.parametrize("where", ["save_file", "fsync", "replace", "write_text"])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch, where):
    model, _ = small()
    c.save_checkpoint(tmp_path, 1, model=model)
    def full(*args, **kwargs): raise OSError(errno.ENOSPC, "No space left on device")
    def full_rust(*args, **kwargs):
        from safetensors import SafetensorError
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    if where == "save_file": monkeypatch.setattr("safetensors.torch.save_file", full_rust)
    elif where == "write_text": monkeypatch.setattr(Path, "write_text", full)
    else: monkeypatch.setattr(os, where, full)
    with pytest.raises(UserError, match="step_000002.*disk is full.*NANOCHAT_HOME"):
        c.save_checkpoint(tmp_path, 2, model=model)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]
    assert c.load_weights(tmp_path)["step"] == 1


LIMITED = """
import resource, signal, sys, torch
from nanochat.checkpoint import save_checkpoint
from nanochat.workshop import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try: save_checkpoint(sys.argv[1], 2, model={"w": torch.ones(100_000)})
except UserError as e: print(e)
"""


def test_a_real_refusal_of_the_system(tmp_path):
    c.save_checkpoint(tmp_path, 1, model={"w": torch.ones(100_000)})
    out = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True)
    assert "cannot write" in out.stdout and "File too large" in out.stdout, out
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]


KILLER = """
import os, random, signal, sys, time, torch
from nanochat.checkpoint import last_step, save_checkpoint
random.seed(0)
for attempt in range(3):
    before, child = last_step(sys.argv[1]) or 0, os.fork()
    if child == 0:
        for step in range(before + 1, 10**6):
            state = {f"w{i}": torch.full((20_000,), float(step)) for i in range(20)}
            save_checkpoint(sys.argv[1], step, model=state, extra={"step": step})
    while (last_step(sys.argv[1]) or 0) == before: time.sleep(0.001)
    time.sleep(random.uniform(0.02, 0.2))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(last_step(sys.argv[1]), flush=True)
    os.rename(sys.argv[1], sys.argv[1] + str(attempt))
"""


def test_kill_while_writing_leaves_no_torn_checkpoint(tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = subprocess.run([sys.executable, "-c", KILLER, str(tmp_path / "run")], capture_output=True, text=True, env=env)
    assert len(out.stdout.split()) == 3, out
    for attempt in range(3):
        folder, seen = tmp_path / f"run{attempt}", 0
        for step in c.steps_in(folder):                                   # whatever has a name is whole
            found = c.load_checkpoint(folder, step)
            assert found["step"] == step == found["extra"]["step"]
            assert all((t == step).all() for t in found["model"].values()) and len(found["model"]) == 20
            seen += 1
        assert seen >= 1
        c.save_checkpoint(folder, 10**6, model={"w": torch.ones(1)})      # the litter goes with the next one
        assert all(p.name.startswith("step_") for p in folder.iterdir())


# ---------------------------------------------------------------- runs and stages

def test_hash_depends_on_all_that_decides_and_on_nothing_else(tmp_path):
    run = c.Run("a", tmp_path)
    base = run.stage("base", {"lr": 0.1, "depth": 2}, None, "data", seed=1)
    same = c.Run("b", tmp_path / "elsewhere").stage("base", {"depth": 2, "lr": 0.1}, None, "data", seed=1)
    assert base.hash == same.hash
    others = [run.stage("base", {"lr": 0.2, "depth": 2}, None, "data", seed=1),
              run.stage("base", {"lr": 0.1, "depth": 2}, None, "other data", seed=1),
              run.stage("base", {"lr": 0.1, "depth": 2}, None, "data", seed=2),
              run.stage("base", {"lr": 0.1, "depth": 2}, base, "data", seed=1)]
    assert len({s.hash for s in (base, *others)}) == 5
    child, grandchild = (run.stage("sft", {}, p, "") for p in (base, others[0]))
    assert child.hash != grandchild.hash                                  # history counts


def test_what_changed_is_named_with_both_ways_out(tmp_path):
    run = c.Run("a", tmp_path)
    run.stage("base", {"lr": 0.1, "model": {"depth": 2, "head": 64}, "gone": 1}, None, "d", seed=1).start()
    new = run.stage("base", {"lr": 0.1, "model": {"depth": 3, "head": 64}, "added": [1]}, None, "e", seed=1)
    with pytest.raises(UserError) as e: new.start()
    text = str(e.value)
    for part in ("recipe.model.depth: 2 -> 3", "recipe.gone: 1 -> None", "recipe.added: None -> [1]", "data: d -> e",
                 "--name NEW", "--from base"): assert part in text
    assert "lr" not in text and "head" not in text and "\n" not in text


def test_tuples_and_ints_as_keys_do_not_look_changed(tmp_path):
    recipe = {"window": (1, 2), "by_step": {1: 0.5}}
    c.Run("a", tmp_path).stage("base", recipe, None, "").start()
    c.Run("a", tmp_path).stage("base", recipe, None, "").verify()


def test_life_of_a_stage(tmp_path):
    stage = c.Run("a", tmp_path).stage("base", {"lr": 0.1}, None, "")
    assert stage.status() == "new" and not tmp_path.joinpath("a").exists()
    stage.verify()
    with pytest.raises(UserError, match="not finished"): stage.metrics()
    stage.start()
    assert stage.status() == "partial"
    stage.finish({"bpb": 1.5})
    stage.start()                                                          # again: nothing happens
    assert stage.status() == "finished" and stage.metrics() == {"bpb": 1.5}
    assert json.loads((stage.path / "metrics.json").read_text()) == {"bpb": 1.5}
    for content in ("{", "{}", "[]", '"x"', '{"hash": 1}'):
        (stage.path / "stage.json").write_text(content)
        with pytest.raises(UserError, match="stage.json cannot be read"): stage.verify()
    stage.reset()
    assert stage.status() == "new"


def test_log_survives_a_cut_line_and_rewinds(tmp_path):
    stage = c.Run("a", tmp_path).stage("base", {}, None, "")
    stage.start()
    stage.rewind(3)                                                        # nothing to forget yet
    for step in range(1, 8): stage.log({"step": step})
    with open(stage.path / "log.jsonl", "a") as f: f.write('{"step": 8, "lo')
    assert len(stage.records()) == 7
    stage.rewind(5)
    stage.log({"step": 6, "again": True})
    assert [r["step"] for r in stage.records()] == [1, 2, 3, 4, 5, 6] and stage.records()[-1]["again"]


def test_a_cut_line_does_not_spoil_the_next_one(tmp_path):
    stage = c.Run("a", tmp_path).stage("base", {}, None, "")
    stage.start()
    stage.log({"step": 1})
    with open(stage.path / "log.jsonl", "a") as f: f.write('{"step": 2, "lo')
    stage.rewind(1)                                                        # as every resume does
    stage.log({"step": 2})
    assert [r["step"] for r in stage.records()] == [1, 2]


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "-x", "a\n"])
def test_odd_names(name, tmp_path):
    with pytest.raises(UserError): c.Run(name, tmp_path)


def test_runs_are_found_newest_first(tmp_path, monkeypatch):
    for i, (name, finished) in enumerate((("old", True), ("new", True), ("partial", False))):
        stage = c.Run(name, tmp_path).stage("sft", {}, None, "")
        stage.start()
        os.utime(stage.path / "stage.json", (i, i))
        if finished:
            stage.finish({})
            os.utime(stage.path / "metrics.json", (i, i))
    (tmp_path / "data").mkdir()
    for stray in ("new (copy)", ".trash"): shutil.copytree(tmp_path / "new", tmp_path / stray)     # not our names: passed over
    assert [r.name for r in c.list_runs(tmp_path)] == ["partial", "new", "old"]
    assert c.newest_finished("sft", tmp_path).name == "new" and c.newest_finished("rl", tmp_path) is None
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path))
    assert len(c.list_runs()) == 3 and c.Run("x").path == tmp_path / "x"
    assert c.list_runs(tmp_path / "absent") == []


def test_stages_of_a_run_come_back_equal(tmp_path):
    run = c.Run("a", tmp_path)
    base = run.stage("base", {"lr": 1}, None, "d")
    sft = run.stage("sft", {"lr": 2}, base, "e")
    for i, stage in enumerate((base, sft)):
        stage.start()
        os.utime(stage.path / "stage.json", (i, i))
    assert [(s.name, s.hash) for s in run.stages()] == [("base", base.hash), ("sft", sft.hash)]


HOLDER = """
import fcntl, os, sys, time
with open(sys.argv[1], "w") as f:
    fcntl.flock(f, fcntl.LOCK_EX)
    f.write(str(os.getpid()))
    f.flush()
    print("in", flush=True)
    time.sleep(60)
"""


def test_two_processes_in_one_run(tmp_path):
    (tmp_path / "a").mkdir()
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "a" / ".lock")]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "in\n"
        with pytest.raises(UserError, match=f"run a is in use by process {holder.pid}.*--name NEW"):
            with c.Run("a", tmp_path).lock(): pytest.fail("must not get in")
        with c.Run("b", tmp_path).lock(): pass                            # another run is free
    finally:
        holder.kill()                                                     # a crash gives the lock back
        holder.wait()
        holder.stdout.close()
    with c.Run("a", tmp_path).lock():
        assert (tmp_path / "a" / ".lock").read_text() == str(os.getpid())


def test_ranks_of_one_run_enter_together(tmp_path, monkeypatch):
    with c.Run("a", tmp_path).lock():
        monkeypatch.setenv("RANK", "3")
        with c.Run("a", tmp_path).lock(): pass


# ---------------------------------------------------------------- stopping

def records(n): return (SimpleNamespace(step=i) for i in range(1, n + 1))


def test_a_checkpoint_is_on_disk_before_the_record_is_seen():
    order = []
    for step in c.checkpointed(records(7), save=lambda s: order.append(f"save {s.step}"), every=3, last=7):
        order.append(f"see {step.step}")
    assert order == ["see 1", "see 2", "save 3", "see 3", "see 4", "see 5", "save 6", "see 6", "save 7", "see 7"]


def test_never_but_at_the_end():
    saved = []
    list(c.checkpointed(records(5), save=lambda s: saved.append(s.step), every=0, last=5))
    with pytest.raises(ValueError, match="which step is the last"): list(c.checkpointed(records(5), save=saved.append, every=0))
    assert saved == [5]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_says_how_to_go_on_and_exits_130(number, capsys):
    saved, seen, before = [], [], signal.getsignal(number)
    with c.Interrupt() as interrupt, pytest.raises(SystemExit) as e:
        for step in c.checkpointed(records(9), save=lambda s: saved.append(s.step), every=100, interrupt=interrupt):
            seen.append(step.step)
            if step.step == 4: os.kill(os.getpid(), number)
    assert e.value.code == 130 and saved == [5] and seen == [1, 2, 3, 4]
    assert "stopped after step 5" in capsys.readouterr().out and signal.getsignal(number) is before


def test_the_second_ctrl_c_ends_it():
    with c.Interrupt() as interrupt, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.flag
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_ranks_agree_on_the_step(capsys):
    class Rank0:                                                          # was not signalled; another rank was
        calls = 0
        def __call__(self, flag):
            Rank0.calls += 1
            return flag or Rank0.calls == 3
    saved = []
    with c.Interrupt(Rank0()) as interrupt, pytest.raises(SystemExit):
        list(c.checkpointed(records(9), save=lambda s: saved.append(s.step), every=0, last=9, interrupt=interrupt))
    assert saved == [3]


def test_in_a_thread_it_takes_no_signals():
    from threading import Thread
    result, before = [], signal.getsignal(signal.SIGINT)
    def work():
        with c.Interrupt() as interrupt: result.append(interrupt.flag)
    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert result == [False] and signal.getsignal(signal.SIGINT) is before


def test_an_error_in_the_steps_is_not_saved():
    def failing():
        yield SimpleNamespace(step=1)
        raise UserError("loss is not finite at step 2")
    saved = []
    with pytest.raises(UserError): list(c.checkpointed(failing(), save=lambda s: saved.append(s.step), every=1))
    assert saved == [1]
