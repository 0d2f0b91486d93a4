# %% [markdown]
# # 02e. Checkpoints
#
# A training run of any length will be stopped: by a flat battery, a full disk, a provider who takes the machine back, or by
# you. This lesson makes sure that nothing is lost but the last minutes, and that what goes on afterwards is the same run.
#
# After it you can
#
# * list everything a run must store to go on, and show what happens to each that is forgotten;
# * write a checkpoint that is either whole or absent, even when the program is killed while writing;
# * load one without running a stranger's code, and refuse one that does not fit;
# * tell two runs apart by a hash of all that decides their result;
# * stop a program politely with Ctrl-C.
#
# You have read 02b (the place in the data) and 02d (what an optimizer remembers). Reading takes 30 minutes, doing 40, computing
# under 20 seconds.

# %%
#| default_exp checkpoint

# %% [markdown]
# ## A torn file
#
# Begin with a crash. A program writes its state again and again into one file of 20 MB, all bytes of it the same number, and is killed
# at a random moment. The careless one opens the file and writes. **Predict**: how often is the file whole afterwards?

# %%
import os, random, subprocess, sys, tempfile, time
from pathlib import Path

from nanochat.workshop import by_tier, figure, seed_all

WRITER = """
import os, sys
path, careful = sys.argv[1], sys.argv[2] == "careful"
for n in range(10**9):
    name = path + ".tmp" if careful else path
    piece = bytes([n % 256]) * 1_000_000
    with open(name, "wb") as f:
        for _ in range(20): f.write(piece)
    if careful: os.replace(name, path)
"""

def killed_while_writing(how: str, folder: str) -> bytes:
    "What stands in the file after its writer was killed."
    path = Path(folder, how)
    path.unlink(missing_ok=True)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), how])
    while not path.exists() or path.stat().st_size < 20_000_000: time.sleep(0.001)      # the first one is whole
    time.sleep(random.uniform(0.02, 0.1))
    writer.kill()
    writer.wait()
    return path.read_bytes()

whole = lambda data: len(data) == 20_000_000 and len(set(data)) == 1

# %%
random.seed(0)
sizes, good = {"careless": [], "careful": []}, {"careless": 0, "careful": 0}
with tempfile.TemporaryDirectory() as folder:
    while len(sizes["careless"]) < by_tier(5, 12) or (good["careless"] == len(sizes["careless"]) < 60):
        for how in sizes:
            data = killed_while_writing(how, folder)
            sizes[how].append(len(data) / 1e6)
            good[how] += whole(data)
for how in sizes: print(f"{how}: {good[how]} of {len(sizes[how])} files are whole")
assert good["careful"] == len(sizes["careful"]) and good["careless"] < len(sizes["careless"])

# %%
import matplotlib.pyplot as plt

fig, ax = plt.subplots(figsize=(5.5, 2.3), layout="constrained")
for (how, mb), mark in zip(sizes.items(), ("x", "o")): ax.plot(range(1, len(mb) + 1), mb, mark, label=how)
ax.set(xlabel="kill", ylabel="MB in the file", ylim=(-1, 23))
ax.legend(frameon=False, fontsize=8, loc="center right")
figure(fig, caption="What a kill leaves. Only 20 MB is a file.",
       alt="Circles of the careful writer all lie at 20 MB. Crosses of the careless one lie lower: most at 0 MB, a few between 0 and 20.")

# %% [markdown]
# Opening a file for writing empties it. From that moment until the last byte there is neither the old state nor the new one, and a program
# that saves often spends much of its time there. The careful writer differs by two lines: it writes beside the file, under another name, and
# *renames*. A rename happens or does not; there is no moment in between. Lesson 00a made that a function for one file, `atomic_write`. A checkpoint is
# several files, and must be whole as a set. First, what belongs into it?
#
# ## What must be stored?
#
# "The weights", most people say. Let us see. A tiny model learns to predict the next of 16 tokens. We train it for 60 steps
# without a break; then again, killed after 30 steps and resumed in three ways: with the weights alone, with weights and
# optimizer, and with everything, which includes the place in the data.
#
# **Predict, then run.** Which of the three resumed runs ends at the loss of the unbroken one?

# %%
import torch
from torch import nn

from nanochat.data import Loader, Rows

def setting():
    seed_all(0)
    table = torch.randn(16, 16).mul(3).softmax(-1)                            # who follows whom
    tokens = torch.zeros(64, 33, dtype=torch.long)
    for t in range(32): tokens[:, t + 1] = torch.multinomial(table[tokens[:, t]], 1)[:, 0]
    model = nn.Sequential(nn.Embedding(16, 16), nn.Linear(16, 16))
    loader = Loader(Rows(tokens[:, :-1].int(), tokens[:, 1:].int()), 8, seed=0)
    return model, torch.optim.AdamW(model.parameters(), lr=0.03), loader

def run(model, optimizer, loader, steps):
    losses = []
    for _ in range(steps):
        x, y = next(loader)
        loss = nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# %%
unbroken = run(*setting(), 60)
resumed = {}
for what in ("weights", "weights, optimizer", "everything"):
    first, second = setting(), setting()
    run(*first, 30)
    second[0].load_state_dict(first[0].state_dict())
    if "optimizer" in what or what == "everything": second[1].load_state_dict(first[1].state_dict())
    if what == "everything": second[2].load_state_dict(first[2].state_dict())
    resumed[what] = run(*second, 30)
    print(f"{what:20s} last loss {resumed[what][-1]:.6f}   unbroken {unbroken[-1]:.6f}")
assert resumed["everything"] == unbroken[30:] and resumed["weights"] != unbroken[30:]

# %%
fig, ax = plt.subplots(figsize=(5.5, 2.6), layout="constrained")
for (what, losses), style in zip(resumed.items(), ("o-", "s-", "k-")):
    difference = [a - b for a, b in zip(losses, unbroken[30:])]
    ax.plot(range(31, 61), difference, style, markersize=3, label=what)
ax.set(xlabel="step", ylabel="loss minus unbroken loss")
ax.legend(frameon=False, fontsize=8)
figure(fig, caption="Three ways to resume at step 30, against the run that was never stopped.",
       alt="The line of the run resumed with everything lies at zero. The other two scatter around zero by up "
           "to a quarter and do not settle on it, because they see other rows.")

# %% [markdown]
# Only "everything" is the same run: equal in every digit. The others are not wrong at once, and that is what makes them
# dangerous. Both begin the data anew, so they see some rows more often than others (in a run shorter than an epoch: some twice, others never). With the weights alone Adam begins again, too, with averages of nothing.
#
# Everything means:
#
# | what | without it |
# |---|---|
# | weights | there is nothing |
# | optimizer: moments and their counters | Adam begins again: each weight's next step has the full length of the rate, whatever its gradient (02d) |
# | place in the data | some rows twice, others never |
# | random numbers, of every generator | another order, other dropout, other samples |
# | counters: step, tokens, seconds | the schedule starts anew, the bill is wrong |
# | sizes of the model, and the tokenizer's fingerprint | nobody can build it, or it reads nonsense |
#
# Here are the imports of the module that stores it.

# %%
#| export
import contextlib, errno, hashlib, json, os, random, re, shutil, signal, threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from fastcore.basics import patch
from torch import Tensor

from nanochat import workshop
from nanochat.workshop import UserError, atomic_write, disk_error, print0, ranks

# %% [markdown]
# ## Tensors apart from the rest
#
# PyTorch's own format, `torch.save`, is a pickle. A pickle is not data but a list of instructions, and one of them is "call this function".
# Here is a "checkpoint" that somebody sends you.

# %%
import pickle

class Gift:
    "Says what to call when it is unpickled. It could be anything; this one only prints."
    def __reduce__(self): return print, ("code of a stranger is running",)

sent = pickle.dumps({"weight": [1.0, 2.0], "gift": Gift()})
content = pickle.loads(sent)
print("what you see afterwards:", content)
assert content["gift"] is None

# %% [markdown]
# You wanted two numbers and ran a program. (PyTorch refuses this by default since version 2.6, with `weights_only`; published nanochat unpickles its
# tokenizer to this day.) We store tensors as *safetensors*, a format that holds tensors and nothing else, and the rest as JSON. The whole format: eight bytes with the length of a header, the header in JSON,
# and the numbers. You can read it by hand.

# %%
from safetensors.torch import save as to_safetensors

raw = to_safetensors({"w": torch.tensor([1.0, 2.0, 3.0]), "n": torch.tensor([7])})
length = int.from_bytes(raw[:8], "little")
header, body = json.loads(raw[8:8 + length]), raw[8 + length:]
print(header)
begin, end = header["w"]["data_offsets"]
by_hand = torch.frombuffer(bytearray(body[begin:end]), dtype=torch.float32)
print("w:", by_hand.tolist())
assert by_hand.tolist() == [1.0, 2.0, 3.0]


# %% [markdown]
# There is no place in it where an instruction could stand.
#
# An optimizer's state is a nest of dicts with tensors here and numbers there. We take the tensors out, leave a note where
# each one was, and put them back when reading. JSON knows neither tuples nor keys that are numbers, so those are noted too.

# %%
#| export
def split_tensors(
    tree,                       # nested dicts, lists and tuples of tensors and plain values
    tensors: dict[str, Tensor], # filled: where in the tree -> tensor
    at: str = "",               # where we are
):                              # the tree in JSON's terms, each tensor replaced by its place
    "Take the tensors out of a nested structure, so that what remains can be written as JSON."
    if isinstance(tree, Tensor):
        tensors[at] = tree
        return {"tensor": at}
    inner = lambda key, value: split_tensors(value, tensors, f"{at}.{key}" if at else str(key))
    if isinstance(tree, dict):
        return {"items": [[key, inner(key, value)] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        return {type(tree).__name__: [inner(i, value) for i, value in enumerate(tree)]}
    return tree

def join_tensors(
    tree,                       # what `split_tensors` returned, perhaps after a trip through JSON
    tensors: dict[str, Tensor], # the tensors it took out
):                              # the structure as it was
    "Put the tensors back where `split_tensors` took them from."
    if not isinstance(tree, dict): return tree
    (kind, content), = tree.items()
    if kind == "tensor": return tensors[content]
    if kind == "items": return {key: join_tensors(value, tensors) for key, value in content}
    return {"list": list, "tuple": tuple}[kind](join_tensors(value, tensors) for value in content)


# %%
tensors = {}
plain = split_tensors({"state": {0: {"step": 3, "mean": torch.ones(2)}}, "betas": (0.9, 0.95)}, tensors)
print(json.dumps(plain), list(tensors))
back = join_tensors(json.loads(json.dumps(plain)), tensors)
assert back["betas"] == (0.9, 0.95) and torch.equal(back["state"][0]["mean"], torch.ones(2))


# %% [markdown]
# ## Random numbers are state too
#
# Sampling, dropout and shuffles draw random numbers. Three generators stand somewhere in their sequences, and a resumed run
# must go on at that place. Seeding again is not enough: that goes back to the beginning.

# %%
#| export
def rng_state() -> dict:  # plain values and tensors
    "Where the random numbers of Python, numpy and torch stand."
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    return {"python": [version, torch.tensor(words), gauss],
            "numpy": [torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}

def set_rng_state(
    state: dict,  # from `rng_state`
) -> None:
    "Let the random numbers go on from a stored place; with other GPUs than then, theirs do not."
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


# %%
draw = lambda: (random.random(), np.random.rand(), random.gauss(0, 1), torch.rand(1).item())
state, expected = rng_state(), draw()
set_rng_state(state)
assert draw() == expected
print("the same four numbers again:", [round(x, 3) for x in expected])

# %% [markdown]
# ## Which one is the newest?
#
# A checkpoint is a folder named after its step. To find the newest, sort the names and take the last?

# %%
print(max(["step_5000", "step_20000", "step_900"]))


# %% [markdown]
# **Trap.** As texts, 9 is greater than 20000. nanochat found its newest step so for eight months. Only the zeros in its names
# (`model_000900.pt`) hid it, up to a million steps, and a stray `model_000900_backup.pt` crashed it. The cure: match the whole
# name strictly, and compare numbers.

# %%
#| export
def _step_name(step: int) -> str: return f"step_{step:06d}"

def steps_in(
    folder: Path | str,  # of one stage
) -> list[int]:          # ascending as numbers
    "The steps whose checkpoints are in a folder; other names are passed over."
    folder = Path(folder)
    names = [p.name for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
    return sorted(int(m[1]) for m in (re.fullmatch(r"step_([0-9]{6,})", name) for name in names) if m)

def last_step(
    folder: Path | str,  # of one stage
) -> int | None:         # None when there is no checkpoint
    "The newest step in a folder, compared as a number and not as text."
    return max(steps_in(folder), default=None)


# %%
with tempfile.TemporaryDirectory() as folder:
    for name in ("step_000009", "step_999999", "step_1000000", ".step_2000000.tmp", "step_5_old"):
        Path(folder, name).mkdir()
    print(steps_in(folder))
    assert last_step(folder) == 1_000_000 and last_step(Path(folder, "nowhere")) is None


# %% [markdown]
# ## A folder that is whole or absent
#
# A large checkpoint takes a while to write, so one day the program will be killed in the middle of it. Half a checkpoint
# under the right name is worse than none: the next run would load it. The cure is that of the careful writer, for a folder: write into a folder with a temporary name, flush every file, rename the folder.
#
# safetensors insists that each tensor has memory of its own. Views and tied weights do not, so they are copied.

# %%
#| export
def _own(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    "The tensors on the CPU, each with memory of its own, as safetensors wants them."
    own, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        own[name] = tensor
    return own

def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    "Write a safetensors file. `OSError` when the system refuses."
    from safetensors import SafetensorError
    from safetensors.torch import save_file
    try: save_file(_own(tensors), path)
    except SafetensorError as e:                      # hides the system's error in its text
        full = "os error 28" in str(e) or "No space left" in str(e)
        raise OSError(errno.ENOSPC if full else errno.EIO, str(e)) from e


# %%
base = torch.arange(6.0)
own = _own({"view": base[:3], "whole": base, "twice": base})
assert len({t.untyped_storage().data_ptr() for t in own.values()}) == 3 and torch.equal(own["view"], base[:3])
print({name: t.tolist() for name, t in own.items()})


# %% [markdown]
# A written file may still be on its way to the disk when the program goes on. `fsync` waits for it, and a folder needs it
# too: the name of a file is stored in its folder. Then comes the rename that makes it visible.
#
# **Trap.** Deleting an old checkpoint takes time as well, file by file. A kill in the middle of it leaves a torn folder under a good
# name. The first version of this module had that fault, and a test found it that kills the program at random
# moments. So a checkpoint loses its name first and its files afterwards.

# %%
#| export
def _sync(path: Path) -> None:
    "Wait until a file or folder is on the disk and not only on its way there."
    handle = os.open(path, os.O_RDONLY)
    try: os.fsync(handle)
    finally: os.close(handle)

def _nameless(folder: Path) -> Path:  # where it lies now
    "Take the name of a folder away, so that half of it is never taken for a whole one."
    aside = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists(): os.replace(folder, aside)
    return aside

def _discard(folder: Path) -> None:
    "Delete a checkpoint or a stage: first its name, then its files."
    shutil.rmtree(_nameless(folder), ignore_errors=True)

def _publish(temp: Path, final: Path) -> None:
    "Flush a finished folder and give it its name; the files of an older one go afterwards."
    for path in [*temp.iterdir(), temp]: _sync(path)
    old = _nameless(final)
    os.replace(temp, final)          # the moment without either comes only when a step is saved twice
    _sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


# %%
with tempfile.TemporaryDirectory() as folder:
    temp, final = Path(folder, ".step_000001.tmp"), Path(folder, "step_000001")
    for content in ("old", "new"):
        temp.mkdir()
        Path(temp, "a").write_text(content)
        _publish(temp, final)
    assert Path(final, "a").read_text() == "new" and [p.name for p in Path(folder).iterdir()] == ["step_000001"]
print("published twice, the second one stands")

# %% [markdown]
# One more trap before we save. `torch.compile` wraps a model, and the names of its weights then begin with `_orig_mod.`. The
# prefix has to go, or an ordinary model cannot load them. There are two string methods that look right:

# %%
print("_orig_mod.model.weight".lstrip("_orig_mod."), "   ", "_orig_mod.model.weight".removeprefix("_orig_mod."))


# %% [markdown]
# `lstrip` takes a *set of letters* and ate into the name. This one, too, was shipped. We use the other.

# %%
#| export
def _state(thing) -> dict:
    "A state dict, given as such or asked for; without the prefix that torch.compile leaves."
    state = thing if isinstance(thing, dict) else thing.state_dict()
    return {str(key).removeprefix("_orig_mod."): value for key, value in state.items()}


# %%
print(_state({"_orig_mod.model.weight": 1, "domain": 2}))
assert list(_state({"_orig_mod.model.weight": 1})) == ["model.weight"]


# %% [markdown]
# Now the function you will call. It builds the new folder, publishes it, and only then removes old ones.

# %%
#| export
def save_checkpoint(
    folder: Path | str,              # of one stage
    step: int,                       # updates done
    *,
    model,                           # module or state dict
    optimizer=None,                  # optimizer or state dict
    extra: dict | None = None,       # anything JSON can hold: config, place in the data, ...
    fingerprint: str | None = None,  # of the tokenizer the model reads with
    keep: int = 2,                   # this many newest checkpoints stay, and this one
) -> Path:                           # the new checkpoint, FOLDER/step_000123
    """Store weights, optimizer, random state and `extra` in a new folder; whole or not at all.

    Call it on every rank (a sharded optimizer gathers its state then); rank 0 writes.
    `UserError` when the disk is full (the checkpoints before it then stand), or `keep` is below 1."""
    if keep < 1: raise UserError(f"keep is {keep}; at least one checkpoint must stay")
    folder, weights, tensors = Path(folder), _state(model), {}
    training = {"optimizer": None if optimizer is None else _state(optimizer), "rng": rng_state()}
    final, temp = folder / _step_name(step), folder / f".{_step_name(step)}.tmp"
    if ranks()[0] != 0: return final
    plain = split_tensors(training, tensors)
    meta = {"step": step, "fingerprint": fingerprint, "extra": extra or {}}
    try:
        for rest in folder.glob(".step_*"): shutil.rmtree(rest)      # of a run that was killed
        temp.mkdir(parents=True)
        _write_tensors(temp / "model.safetensors", weights)
        _write_tensors(temp / "training.safetensors", tensors)
        Path(temp, "training.json").write_text(json.dumps(plain), encoding="utf-8")
        Path(temp, "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        _publish(temp, final)
    except OSError as e:
        raise disk_error(final, e) from e
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    for old in steps_in(folder)[:-keep]:
        if old != step: _discard(folder / _step_name(old))      # larger ones may lie there
    return final


# %%
model = torch.nn.Linear(3, 2)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
model(torch.ones(1, 3)).sum().backward()
optimizer.step()
store = tempfile.mkdtemp()
for step in (5, 10, 15):
    path = save_checkpoint(store, step, model=model, optimizer=optimizer, extra={"place": 40})
print(steps_in(store), sorted(p.name for p in path.iterdir()))
assert steps_in(store) == [10, 15]

# %% [markdown]
# Three were saved, two are kept: one to go on from, and one before it in case of doubt. Old ones go only after the new one
# is on the disk. Weights and training state are separate files, since a chat needs the first and not the second, which is
# twice as large. A real model shows the proportions.

# %%
from nanochat.gpt import GPT, config_for
from nanochat.optim import AdamW

gpt = GPT(config_for(2, 257, 64, head_dim=64))
adam, x = AdamW(gpt.parameters(), lr=0.001), torch.zeros(1, 8, dtype=torch.long)
gpt(x, x).backward()
adam.step()
with tempfile.TemporaryDirectory() as folder:
    path = save_checkpoint(folder, 1, model=gpt, optimizer=adam, extra={"config": gpt.config.to_dict()})
    bytes_of = {p.name: p.stat().st_size for p in sorted(path.iterdir(), key=lambda p: -p.stat().st_size)}
weights = 4 * gpt.num_params()["total"]
print(bytes_of, f"  weights: {weights:,} bytes")
assert weights < bytes_of["model.safetensors"] < 1.01 * weights and 1.9 < bytes_of["training.safetensors"] / weights < 2.1

# %%
fig, ax = plt.subplots(figsize=(5.5, 1.9), layout="constrained")
bars = ax.barh(list(bytes_of), [b / 1e3 for b in bytes_of.values()], color=["#f58518", "#4c78a8", "#f58518", "#4c78a8"])
ax.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
ax.invert_yaxis()
ax.set(xlabel="kB", xlim=(0, 1.15 * max(bytes_of.values()) / 1e3))
figure(fig, caption="A checkpoint of a model with half a million weights. Blue is needed to use it, orange to train on.",
       alt="Four bars: the training tensors are about twice as long as the model's; the two JSON files are too small to see.")


# %% [markdown]
# ## Loading, and refusing
#
# Loading is where mistakes of the past come to light: a file was cut off by a full disk, the recipe changed since, the
# tokenizer is another. Each must be said in one line, before any number is computed. A model fed by the wrong tokenizer does not
# crash. It talks nonsense, and you look for the fault in the wrong place.

# %%
#| export
def _damaged(path: Path, reason: str) -> UserError:
    "The clear line for a file of a checkpoint that cannot be used."
    stage = path.parent.parent
    if (stage / "metrics.json").exists(): return UserError(f"{path} {reason}; redo the stage with --from {stage.name}")
    return UserError(f"{path} {reason}; delete the folder {path.parent} "
                     "to go on from the checkpoint before it")

def _read(path: Path, keys: set = frozenset()):
    "The content of one file of a checkpoint. `UserError` when it is missing, cut off, or no dict."
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    try:
        if path.suffix != ".json": return load_file(path)
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e: raise _damaged(path, "is missing") from e
    except (SafetensorError, ValueError, RecursionError) as e:
        raise _damaged(path, f"is damaged ({str(e).splitlines()[0][:80]})") from e
    if not isinstance(content, dict) or not content.keys() >= keys:
        raise _damaged(path, f"does not hold {', '.join(sorted(keys))}")
    return content

def _check_shapes(stored: dict[str, Tensor], model, where: Path) -> None:
    "`UserError` that names the first weight in which a stored model and ours differ."
    ours = _state(model)
    for name in sorted(set(stored) | set(ours)):
        there, here = (tuple(s[name].shape) if name in s else "absent" for s in (stored, ours))
        if there != here:
            raise UserError(f"{where} holds a model of another shape: {name} is {there} there, "
                            f"{here} here; use the recipe it was trained with, or --name NEW")


# %%
try: _check_shapes({"weight": torch.ones(2, 3), "bias": torch.ones(2)}, torch.nn.Linear(4, 2), "step_000005")
except UserError as e: print(e)
else: raise AssertionError("another shape must be refused")


# %% [markdown]
# A shape that differs is the usual sign of a changed recipe. With this check comes the loading itself.

# %%
#| export
def _end_of(folder: Path) -> int | None:
    "The step at which a finished stage ended; the newest where its metrics do not say."
    return _read_json(folder / "metrics.json").get("steps", last_step(folder))

def load_weights(
    folder: Path | str,              # of one stage
    step: int | None = None,         # which; None is the newest
    *,
    model=None,                      # gets the weights, when given
    fingerprint: str | None = None,  # of the tokenizer you will use
) -> dict:                           # step, path, fingerprint, extra, model (state dict)
    "Read a model to use it. `UserError` when it is absent, damaged or does not fit."
    folder = Path(folder)
    finished = (folder / "metrics.json").exists()
    if step is None: step = _end_of(folder) if finished else last_step(folder)
    if step is None:
        way_out = f"redo it with --from {folder.name}" if finished else "train this stage first, or check the name"
        raise UserError(f"no checkpoint in {folder}; {way_out}")
    path = folder / _step_name(step)
    if finished and not path.is_dir():
        raise UserError(f"{path}, the end of a finished stage, is missing; redo it with --from {folder.name}")
    if not path.is_dir():
        raise UserError(f"no checkpoint of step {step} in {folder}; there are {steps_in(folder)}")
    meta = _read(path / "meta.json", {"step", "fingerprint", "extra"})
    if meta["step"] != step: raise _damaged(path / "meta.json", f"says that it is of step {meta['step']!r}")
    weights = _read(path / "model.safetensors")
    if fingerprint and meta["fingerprint"] and fingerprint != meta["fingerprint"]:
        raise UserError(f"{path} was trained with another tokenizer ({meta['fingerprint'][:8]}, "
                        f"yours is {fingerprint[:8]}); use the tokenizer of that run")
    if model is not None:
        _check_shapes(weights, model, path)
        getattr(model, "_orig_mod", model).load_state_dict(weights)
    return {**meta, "path": path, "model": weights}


# %%
other = torch.nn.Linear(3, 2)
found = load_weights(store, model=other)
print(found["step"], found["extra"], torch.equal(other.weight, model.weight))
assert found["step"] == 15 and torch.equal(other.weight, model.weight)


# %% [markdown]
# To train on, the optimizer and the random numbers are read as well.

# %%
#| export
def load_checkpoint(
    folder: Path | str,              # of one stage
    step: int | None = None,         # which; None is the newest
    *,
    model=None,                      # gets the weights, when given
    optimizer=None,                  # gets its state, when given
    fingerprint: str | None = None,  # of the tokenizer you will use
) -> dict:                           # as `load_weights`, and optimizer, rng (for `set_rng_state`)
    "Read all that is needed to train on. `UserError` when it is absent, damaged or does not fit."
    found = load_weights(folder, step, model=model, fingerprint=fingerprint)
    tensors, path = _read(found["path"] / "training.safetensors"), found["path"] / "training.json"
    plain = _read(path)
    try: training = join_tensors(plain, tensors)
    except (KeyError, TypeError, ValueError) as e:
        raise _damaged(path, "does not fit the tensors beside it") from e
    if not training.keys() >= {"optimizer", "rng"}: raise _damaged(path, "lacks optimizer or rng")
    if optimizer is not None:
        if training["optimizer"] is None:
            raise UserError(f"{found['path']} holds no optimizer; start a new stage from it")
        try: optimizer.load_state_dict(training["optimizer"])
        except (KeyError, TypeError, ValueError) as e:
            raise UserError(f"{found['path']} was written with another optimizer; use the recipe "
                            "it was trained with, or --name NEW") from e
    return found | training


# %%
twin = torch.optim.AdamW(other.parameters(), lr=0.5)
load_checkpoint(store, model=other, optimizer=twin)
for m, o in ((model, optimizer), (other, twin)):
    o.zero_grad()
    m(torch.ones(1, 3)).sum().backward()
    o.step()
print(twin.param_groups[0]["lr"], torch.equal(other.weight, model.weight))
assert torch.equal(other.weight, model.weight)                       # one more step, the same in every digit

# %% [markdown]
# The learning rate, printed first, came back too: 0.1, and not the 0.5 that the twin was built with. That is right for a resume and a trap
# for everything else. Who wants other rates starts a new stage from the weights.
#
# And a checkpoint that was cut off? We cut one.

# %%
victim = Path(store, "step_000015", "model.safetensors")
victim.write_bytes(victim.read_bytes()[:-5])
try: load_weights(store)
except UserError as e: print(str(e).replace(store, "FOLDER"))
else: raise AssertionError("half a file must be refused")
assert load_weights(store, step=10)["step"] == 10

# %% [markdown]
# And the stranger's pickle, under the name of a safetensors file? The eight bytes it begins with are no sensible length.

# %%
victim.write_bytes(sent)
try: load_weights(store)
except UserError as e: print(str(e).replace(store, "FOLDER"))
else: raise AssertionError("a pickle must be refused")
shutil.rmtree(store)


# %% [markdown]
# ## Is this the run I mean?
#
# A run has stages: tokenizer, base, sft and so on, each a folder. When you start a run again, each stage should be skipped if it
# is finished, continued if it is not. But only if it is *the same*. You changed the learning rate yesterday and forgot: then
# the finished stage is another one's, and so is all that was built on it.
#
# So a stage has an identity: its part of the recipe, the seed, the data, and the hash of the stage it starts from. Its
# hash is the hash of these, and through the parent it covers the whole history. The identity is stored too, so that we
# can say not only *that* something changed but *what*.

# %%
#| export
def _changes(old, new, at: str = "") -> list[str]:
    "What differs between two nested dicts, as `key: old -> new`."
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(old) + [k for k in new if k not in old]
        return [change for k in keys
                for change in _changes(old.get(k), new.get(k), f"{at}.{k}" if at else k)]
    return [] if old == new else [f"{at}: {old} -> {new}"]

def _read_json(path: Path, keys: set = frozenset()) -> dict:
    "A JSON file of a stage. `UserError` when it is missing or damaged, or lacks one of the keys."
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not keys <= found.keys(): raise ValueError("something else stands in it")
        return found
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read ({e}); delete {path.parent} to redo it") from e

class Stage:
    "One stage of a run: its folder, and the hash of all that decides what comes out of it."

    def __init__(self, path: Path, identity: dict):
        self.path, self.name = Path(path), Path(path).name
        self.identity = json.loads(json.dumps(identity))             # as the file will have it
        canonical = json.dumps(self.identity, sort_keys=True, separators=(",", ":"))
        self.hash = hashlib.sha256(canonical.encode()).hexdigest()

    def __repr__(self): return f"Stage({self.name!r}, {self.status()}, {self.hash[:8]})"

    def status(self) -> str:  # "new", "partial" or "finished"
        "How far the stage in this folder is; `verify` tells whether it is the one we mean."
        if (self.path / "metrics.json").exists(): return "finished"
        return "partial" if (self.path / "stage.json").exists() else "new"


# %%
one = Stage("base", {"recipe": {"depth": 4, "lr": 0.02}, "seed": 0})
two = Stage("base", {"seed": 0, "recipe": {"lr": 0.01, "depth": 4}})
print(one, two, _changes(one.identity, two.identity))
assert one.hash != two.hash and _changes(one.identity, two.identity) == ["recipe.lr: 0.02 -> 0.01"]


# %% [markdown]
# The order of the keys does not matter (they are sorted first), and one digit changes everything: sha256 scrambles its input so that on average half of the
# 256 bits of the result flip. So eight letters of the hash are enough to tell your runs apart. And the parent in the identity makes a chain. **Predict**: you change the seed of midtraining. Which stages
# must be done again?

# %%
def hashes(change: tuple = ()) -> list[str]:
    "The hashes of four stages, each built on the one before, with one (stage, key) changed."
    made, parent = [], None
    for name in ("tokenizer", "base", "mid", "sft"):
        identity = {"recipe": {"lr": 0.02}, "seed": 0, "data": "world", "parent": parent}
        if change and change[0] == name: identity[change[1]] = "another"
        made.append(parent := Stage(name, identity).hash)
    return made

bits = bin(int(hashes()[0], 16) ^ int(hashes(("tokenizer", "seed"))[0], 16)).count("1")
changes = [("tokenizer", "data"), ("base", "recipe"), ("mid", "seed"), ("sft", "data")]
redone = [[a != b for a, b in zip(hashes(), hashes(change))] for change in changes]
print(f"{bits} of 256 bits flip")
assert redone[2] == [False, False, True, True] and 90 < bits < 166

# %%
fig, ax = plt.subplots(figsize=(4.5, 2.2), layout="constrained")
ax.imshow(redone, cmap="Oranges", vmin=0, vmax=1.5, aspect="auto")
ax.set(xticks=range(4), xticklabels=("tokenizer", "base", "mid", "sft"), yticks=range(4), yticklabels=[f"{k} of {n}" for n, k in changes], ylabel="changed")
for i, row in enumerate(redone):
    for j, again in enumerate(row): ax.text(j, i, "again" if again else "kept", ha="center", va="center", fontsize=8)
figure(fig, caption="What a change costs: a stage and everything that was built on it.",
       alt="A triangle: changing the tokenizer's data means all four stages again; the recipe of base three; the seed of mid two; the data of sft only sft.")


# %% [markdown]
# Now the checks and the two marks: `stage.json` when it starts, `metrics.json` when it is finished. The second is written last,
# and in one step, so its presence is proof.

# %%
#| export
@patch
def verify(self: Stage) -> None:
    "`UserError` that names what changed, when the folder holds a stage of another identity."
    if self.status() == "new": return
    stored = _read_json(self.path / "stage.json", {"hash", "identity"})
    if stored["hash"] == self.hash: return
    changed = "; ".join(_changes(stored["identity"], self.identity)) or "how it is stored"
    raise UserError(f"the stage {self.name} in {self.path.parent} was made otherwise ({changed}): "
                    f"use --name NEW for a new run, or --from {self.name} to redo it")

@patch
def start(self: Stage) -> None:
    "Verify, then write down what this stage is."
    self.verify()
    if self.status() != "new" or ranks()[0] != 0: return
    record = {"stage": self.name, "hash": self.hash, "identity": self.identity}
    atomic_write(self.path / "stage.json", json.dumps(record, indent=1))

@patch
def finish(self: Stage, metrics: dict) -> None:
    "Write the results; from now on the stage is finished."
    if ranks()[0] == 0: atomic_write(self.path / "metrics.json", json.dumps(metrics, indent=1))

@patch
def metrics(self: Stage) -> dict:
    "The results. `UserError` when the stage is not finished."
    if self.status() != "finished":
        raise UserError(f"the stage {self.name} in {self.path.parent} is not finished yet")
    return _read_json(self.path / "metrics.json")

@patch
def reset(self: Stage) -> None:
    "Delete all that this stage made."
    if ranks()[0] == 0: _discard(self.path)


# %%
store = Path(tempfile.mkdtemp())
one = Stage(store / "base", one.identity)
one.start()
print(one.status(), end=", ")
one.finish({"bpb": 1.25})
print(one.status(), one.metrics())
try: Stage(store / "base", two.identity).verify()
except UserError as e: print(str(e).replace(str(store), "RUN"))
else: raise AssertionError("a changed recipe must be named")


# %% [markdown]
# The log is a file of its own, one JSON object a line. When a run is killed after step 57 and goes on from the checkpoint of
# step 50, the log knows seven steps that will now be done again. `rewind` forgets them, so no step stands there twice.

# %%
#| export
@patch
def log(self: Stage, record: dict) -> None:
    "Append one line to `log.jsonl`."
    if ranks()[0] != 0: return
    try:
        with open(self.path / "log.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps(record) + "\n")
    except OSError as e: raise disk_error(self.path / "log.jsonl", e) from e

@patch
def records(self: Stage) -> list[dict]:
    "The lines of the log; one that a crash cut off is left out."
    path, found = self.path / "log.jsonl", []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError): found.append(json.loads(line))
    return [record for record in found if isinstance(record, dict)]

@patch
def rewind(self: Stage, step: int) -> None:
    "Forget what the log says about steps after `step`: they will be done again."
    if ranks()[0] != 0 or not (self.path / "log.jsonl").exists(): return
    kept = [r for r in self.records() if r.get("step", 0) <= step]
    atomic_write(self.path / "log.jsonl", "".join(json.dumps(r) + "\n" for r in kept))


# %%
for step in range(1, 6): one.log({"step": step, "loss": round(3 / step, 2)})
with open(store / "base" / "log.jsonl", "a") as f: f.write('{"step": 6, "lo')      # killed while writing
one.rewind(3)
print(one.records())
assert [r["step"] for r in one.records()] == [1, 2, 3]
one.reset()
assert not (store / "base").exists()

# %% [markdown]
# ## One run, one process
#
# You start a run, forget it, and start it again in another window. Both would write into the same folders. A *lock* on a file
# prevents it. It belongs to the open file and not to its existence: when the process dies, however it dies, the system gives it back, so
# there is never a stale lock to delete.

# %%
#| export
RUN_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,99}"

class Run:
    "A named run: a folder in `home()`, with a folder for each stage. `UserError` for an odd name."

    def __init__(self, name: str, home: Path | str | None = None):
        if not re.fullmatch(RUN_NAME, name):
            raise UserError(f"a run's name is letters, digits, dots, - and _, not {name!r}")
        self.name, self.path = name, Path(home or workshop.home()) / name

    def __repr__(self): return f"Run({self.name!r})"

    @contextlib.contextmanager
    def lock(self):
        "Keep others out of this run while the block lasts. `UserError` when somebody is in it."
        import fcntl
        if ranks()[0] != 0:                     # the ranks of one run enter together, behind rank 0
            yield
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = open(self.path / ".lock", "a+", encoding="utf-8")
        except OSError as e: raise disk_error(self.path, e) from e
        with handle:                            # closing gives the lock back, and so does a crash
            try: fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as e:
                handle.seek(0)
                raise UserError(f"run {self.name} is in use by process {handle.read() or 'unknown'}"
                                "; wait for it, stop it, or use --name NEW") from e
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            yield


# %%
with Run("demo", store).lock():
    try:
        with Run("demo", store).lock(): pass
    except UserError as e: print(str(e).replace(str(os.getpid()), "PID"))
    else: raise AssertionError("two at a time must be refused")
with Run("demo", store).lock(): print("free again")


# %% [markdown]
# What is left is finding things: a run makes its stages, and a later lesson asks for the newest run that has a finished one.

# %%
#| export
@patch
def stage(self: Run,
    name: str,                    # "base", "sft", ...
    recipe: dict,                 # this stage's section of the recipe
    parent: Stage | None = None,  # the stage it starts from
    data_id: str = "",            # names the data: a hash, or a corpus and its shards
    seed: int = 0,                # when the recipe does not hold it
) -> Stage:
    "A stage of this run. Nothing is written yet."
    before = parent.hash if parent else None
    identity = {"recipe": recipe, "seed": seed, "data": data_id, "parent": before}
    return Stage(self.path / name, identity)

@patch
def stages(self: Run) -> list[Stage]:
    "The stages that have been started, as they were stored, oldest first."
    files = sorted(self.path.glob("[!.]*/stage.json"), key=lambda p: p.stat().st_mtime_ns)
    return [Stage(p.parent, _read_json(p, {"identity"})["identity"]) for p in files]

def _runs_with(home: Path | str | None, pattern: str) -> list[Run]:
    "The runs in which a file of this pattern exists, the newest file first."
    files = sorted(Path(home or workshop.home()).glob(pattern), key=lambda p: -p.stat().st_mtime_ns)
    names = dict.fromkeys(p.parent.parent.name for p in files)
    return [Run(name, home) for name in names if re.fullmatch(RUN_NAME, name)]   # "demo (copy)"

def list_runs(
    home: Path | str | None = None,  # the folder of runs; None is `home()`
) -> list[Run]:                      # newest first
    "The runs in a folder that have a stage."
    return _runs_with(home, "*/[!.]*/stage.json")

def newest_finished(
    stage: str,                      # "sft", ...
    home: Path | str | None = None,  # the folder of runs; None is `home()`
) -> Run | None:                     # None when there is none
    "The run whose stage of this name was finished last."
    return next(iter(_runs_with(home, f"*/{stage}/metrics.json")), None)


# %%
base = Run("demo", store).stage("base", {"depth": 2}, None, "microworld 0")
sft = Run("demo", store).stage("sft", {"steps": 20}, base, "conversations 0")
for made in (base, sft): made.start()
base.finish({"bpb": 1.0})
print(list_runs(store), Run("demo", store).stages())
assert newest_finished("base", store).name == "demo" and newest_finished("sft", store) is None
shutil.rmtree(store)


# %% [markdown]
# ## Stopping politely
#
# Ctrl-C in the middle of an update would leave a model that is half old and half new. So we only note that somebody wants to
# stop, and look at the note between two steps, where everything fits together. Who presses twice means it.
#
# The note is made in a signal handler, which may interrupt any line of the program, even a `print`. So it does as little
# as possible, and it writes with `os.write`, which cannot get in the way of a `print` that is under way.

# %%
#| export
class Interrupt:
    """While the block lasts, Ctrl-C and SIGTERM set `flag`; a second Ctrl-C ends the program.

    With several ranks pass `agree`, which returns True on all when the flag of any is set."""

    def __init__(self, agree: Callable[[bool], bool] = bool):
        self.flag, self.agree, self._old = False, agree, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():    # only there signals arrive
            for s in (signal.SIGINT, signal.SIGTERM): self._old[s] = signal.signal(s, self._note)
        return self

    def __exit__(self, *exc):
        for s, handler in self._old.items(): signal.signal(s, handler)

    def _note(self, number, frame):
        if self.flag and number == signal.SIGINT: raise KeyboardInterrupt
        self.flag = True
        if ranks()[0] == 0: os.write(2, b"\nstopping after this step\n")

    def agreed(self) -> bool:
        "Whether the program should stop; the same answer on every rank."
        return self.agree(self.flag)


# %%
with Interrupt() as interrupt:
    os.kill(os.getpid(), signal.SIGINT)
    print("still here; flag:", interrupt.flag)
assert interrupt.flag


# %% [markdown]
# The last piece joins saving and stopping. Training will be a generator that yields a small record after each step. This
# function stands between it and everything else that looks at the records.
#
# **Trap.** Evaluate first and save afterwards, and a crash in the evaluation takes the training with it. That happened: the
# evaluation of a long run ran out of memory, and the checkpoint had not been written. Here the order cannot be wrong: a
# record is passed on only when the checkpoint that is due at it is on the disk.

# %%
#| export
def checkpointed(
    steps: Iterable,                     # records with a number `step`, as training yields them
    *,
    save: Callable[[object], object],    # stores a checkpoint of this record
    every: int,                          # steps between checkpoints; 0: only at `last`
    interrupt: Interrupt | None = None,  # looked at after each step
    last: int | None = None,             # the final step, which is saved too
    go_on: str = "run the same command again to go on",
) -> Iterator:
    """Pass the records on, each after the checkpoint that is due at it is on disk.

    When interrupted: saves, prints how to go on and raises `SystemExit(130)`."""
    if not every and last is None: raise ValueError("every=0 saves at the end only: say which step is the last")
    for step in steps:
        stop = interrupt is not None and interrupt.agreed()
        if stop or step.step == last or (every and step.step % every == 0): save(step)
        if stop:
            print0(f"stopped after step {step.step}, which is saved; {go_on}", flush=True)
            raise SystemExit(130)
        yield step


# %%
from types import SimpleNamespace

saved, seen = [], []
records = (SimpleNamespace(step=i) for i in range(1, 100))
with Interrupt() as interrupt:
    try:
        for step in checkpointed(records, save=lambda s: saved.append(s.step), every=4, interrupt=interrupt):
            seen.append(step.step)
            if step.step == 9: os.kill(os.getpid(), signal.SIGINT)
    except SystemExit as e: print("exit status", e.code, "saved", saved)
assert saved == [4, 8, 10] and seen == list(range(1, 10))

# %% [markdown]
# 130 is what programs return that were ended by Ctrl-C, so a script around ours can tell "stopped" from "failed".
#
# ## At scale: how often?
#
# The 20-layer model has 561 million weights in float32, and Adam keeps two more numbers for each. (Muon keeps one; three numbers for each weight is a cautious count.) That is
# 6.7 GB a checkpoint. Writing costs time, and so does a crash: on average it falls in the middle between two checkpoints, and half an interval is lost.
#
# Let a checkpoint take $s$ seconds, let a crash come every $M$ seconds on average, and let us save every $t$ seconds. The share of time lost is
#
# $$\frac st + \frac t{2M}, \qquad \text{smallest where } -\frac s{t^2} + \frac1{2M} = 0, \text{ that is } t = \sqrt{2sM} .$$
#
# Young found this in 1974. **Predict** the best interval for a disk of 1 GB a second and a crash every ten hours.

# %%
parameters, disk, rent = 561e6, 1e9, 24                          # weights, bytes a second, dollars an hour for 8xH100
write = parameters * 3 * 4 / disk                                # seconds
share = lambda minutes, hours: write / (60 * minutes) + 60 * minutes / (2 * 3600 * hours)
for hours in (1, 10, 100):
    best = (2 * write * 3600 * hours) ** 0.5 / 60
    print(f"a crash every {hours:3d} hours: save every {best:4.1f} minutes, {share(best, hours):.2%} of the time is lost, "
          f"{share(best, hours) * 3 * rent:.2f} dollars of a run of 3 hours")
    assert share(best, hours) <= min(share(best * f, hours) for f in (0.8, 1.25))

# %%
minutes = [1 * 1.1**i for i in range(52)]
fig, ax = plt.subplots(figsize=(5.5, 2.4), layout="constrained")
for hours, style in ((1, "-"), (10, "--"), (100, ":")): ax.plot(minutes, [100 * share(m, hours) for m in minutes], style, label=f"a crash every {hours} hours")
ax.axhline(100 * write / 3600, color="none")
ax.set(xscale="log", yscale="log", xlabel="minutes between checkpoints", ylabel="% of the time lost")
ax.legend(frameon=False, fontsize=8)
figure(fig, caption="Too often costs writing, too seldom costs work. The optimum is flat.",
       alt="Three curves, each falling and then rising, on logarithmic axes; their lowest points lie near 4, 12 and 37 minutes, at about 6, 2 and 0.6 percent.")

# %% [markdown]
# With a crash every ten hours or less often, a quarter of an hour loses no more than 0.3 points above the best; with one every hour it loses 13% instead of 6%. Published nanochat of the first era saved once, at the end: a crash in the last minute of its three hours cost all of their 72 dollars, and with eight rented GPUs somebody has
# that minute. Here the interval is `save_every`, in steps.
#
# ## Recap
#
# 1. A resume is exact when weights, optimizer, place in the data, random numbers and counters all come back; leave one out and
#    it is another run that looks like the old one.
# 2. A checkpoint folder is written under a temporary name, flushed, and renamed: whole or absent. It loses its name before its files.
# 3. Tensors go to safetensors and the rest to JSON. Nothing that is read can run code.
# 4. A stage's hash covers recipe, seed, data and parent; when it differs you are told which key changed.
# 5. Save first, then look: evaluators see a record only when its checkpoint is on the disk.
#
# ## Quiz
#
# <details><summary>1. You resume with weights and optimizer, and seed everything again. What is still wrong?</summary>The data begin from the start, so the first rows are read twice; and the random numbers repeat what they were before, where they should go on.</details>
# <details><summary>2. Why flush the files before the rename, and not after?</summary>The rename may reach the disk first. After a power cut there would be a good name over empty files.</details>
# <details><summary>3. A colleague deletes old checkpoints first, to make room. What can happen?</summary>The disk is full or the program dies while the new one is written, and there is none. Old ones go last.</details>
# <details><summary>4. A model loads without complaint and writes nonsense. Name two checks that would have said why.</summary>The tokenizer's fingerprint, and the stage's hash (another window, another recipe).</details>
# <details><summary>5. Two processes start the same run. The first is killed with -9. Must you delete the lock?</summary>No: the system gave it back when the process ended. Only a lock that consists of a file's existence goes stale.</details>
#
# ## Papers
#
# Young 1974, *A first order approximation to the optimum checkpoint interval*, and Daly 2006 for its refinement · Pillai and others 2014, *All file systems are not created equal* (what a crash leaves behind, and why one flushes the folder too) · the safetensors format, described in its repository · the lessons' traps are from the history of karpathy/nanochat: the newest step as text (21a7774), the prefix
# (f1e15f5), evaluation before the checkpoint (issue 446).
#
# **Next:** `03_pretraining`, where the steps come from.
#
# ## What your package can do now
#
# A run with a lock, a stage with an identity, a checkpoint that survives, and a list of what there is.

# %%
with tempfile.TemporaryDirectory() as home, (mine := Run("first", home)).lock():
    base = mine.stage("base", {"depth": 2, "steps": 1}, None, "zeros")
    base.start()
    save_checkpoint(base.path, 1, model=gpt, optimizer=adam, extra={"config": gpt.config.to_dict()}, fingerprint="t" * 64)
    base.log({"step": 1, "loss": 5.549})
    base.finish({"bpb": 8.0})
    again = GPT(config_for(2, 257, 64, head_dim=64), seed=1)
    found = load_checkpoint(base.path, model=again, fingerprint="t" * 64)
    print(list_runs(home), mine.stages(), "step", found["step"], base.records())
    assert torch.equal(again.wte.weight, gpt.wte.weight) and newest_finished("base", home).name == "first"
