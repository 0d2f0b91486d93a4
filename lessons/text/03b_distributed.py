# %% [markdown]
# # 03b. Several processes, one model
#
# **Promise.** You will make eight GPUs train one model, and prove on your laptop, with two ordinary processes, that together they do what
# one would have done.
#
# After this lesson you can
#
# * start processes with `torchrun` and say what each knows of the others;
# * average gradients with few large messages, in the right place of the loop;
# * share the optimizer's memory among ranks, for any number of parameters;
# * stop, save and resume all of them together.
#
# You need lesson 03. Reading: 25 minutes. Computing: under a minute. No GPU is needed.

# %%
#| default_exp distributed

# %%
#| export
from collections.abc import Iterable
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.workshop import UserError, ranks

# %% [markdown]
# ## Two processes that know each other
#
# `torchrun` starts the same script several times. Each copy gets a number, its *rank*, in its environment, and nothing else is
# different. A notebook is one process, so we write a script and start it as you would on a node with GPUs.

# %%
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nanochat

def launch(script: str, n: int = 2) -> str:
    "Run a script in n processes under torchrun; returns what they printed, sorted."
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "job.py")
        path.write_text(script, encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}", str(path)]
        package = str(Path(nanochat.__file__).parent.parent)
        env = os.environ | {"OMP_NUM_THREADS": "1", "NANOCHAT_QUIET": "1", "PYTHONPATH": package}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return "\n".join(sorted(done.stdout.splitlines()))

print(launch("""
import os
print(f"I am rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}", flush=True)
"""))


# %% [markdown]
# The processes share no memory. They talk through *collectives*: operations that all ranks call at the same time with their part, such as
# "sum this tensor over everybody". On GPUs NCCL carries them, on CPUs gloo. A rank that does not call waits for nobody; the others wait
# for it, ten minutes with NCCL or thirty with gloo if nobody sets another limit, and then the run dies. So the first rule is: **every rank takes the same decisions.**
#
# Joining and leaving belong together. Leaving asks whether a group exists, not what the environment says: a
# project once looked at the environment and crashed where the variables were set by accident.

# %%
#| export
def init_from_env(
    device: torch.device | str = "cpu",  # where this process computes
) -> None:
    """Join the processes that `torchrun` started; alone, do nothing.

    CPU tensors travel by gloo and CUDA tensors by NCCL."""
    if ranks()[2] == 1 or dist.is_initialized(): return
    device = torch.device(device)
    if device.type == "cuda": torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


def cleanup() -> None:
    "Leave the group, if one was joined: what the environment says does not matter."
    if dist.is_initialized(): dist.destroy_process_group()


@contextmanager
def session(device: torch.device | str = "cpu"):
    "A block in which the processes of `torchrun` work together; at its end they part."
    init_from_env(device)
    try:
        yield
        if dist.is_initialized(): dist.barrier()     # nobody leaves while another still sends
    finally: cleanup()


# %%
with session("cpu"): print("alone: is there a group?", dist.is_initialized())       # a notebook is not under torchrun
assert not dist.is_initialized()
cleanup()                                                                            # leaving twice is no error


# %% [markdown]
# ## Average the gradients
#
# Each rank reads its own rows and has its own gradients. The gradient of the whole batch is their mean, because the loss is a mean. A
# collective called *all-reduce* sums a tensor over the ranks and leaves the sum with everybody. A good one sends each number about twice,
# whatever the number of ranks: in a ring, each rank passes partial sums to its neighbour, then the results.
#
# Many small messages are slow, so tensors are packed into large ones; all are started before the first is awaited.

# %%
#| export
def average_tensors(
    tensors: Iterable[Tensor],  # floating point, the same shapes on every rank; changed in place
    bucket: int = 2**25,        # numbers that travel together
) -> None:
    "Replace tensors by their mean over all ranks, in few large messages. Alone, nothing happens."
    if not dist.is_initialized(): return
    flights = []
    for group in _buckets(tensors, bucket):
        flat = torch.cat([t.reshape(-1) for t in group])
        flights.append((group, flat, dist.all_reduce(flat, async_op=True)))
    for group, flat, flight in flights:
        flight.wait()
        _unpack(flat.div_(dist.get_world_size()), group)


def _buckets(tensors: Iterable[Tensor], size: int) -> list[list[Tensor]]:
    "Tensors of one dtype and device, in order, cut into groups of at least `size` numbers."
    groups: list[list[Tensor]] = []
    for t in tensors:
        last = groups[-1] if groups else []
        alike = last and (last[0].dtype, last[0].device) == (t.dtype, t.device)
        if alike and sum(x.numel() for x in last) < size: last.append(t)
        else: groups.append([t])
    return groups


@torch.no_grad()
def _unpack(flat: Tensor, tensors: list[Tensor]) -> None:
    "Copy a flat tensor back into the tensors that it was made of."
    for t, part in zip(tensors, flat.split([t.numel() for t in tensors])): t.copy_(part.view_as(t))


# %%
tensors = [torch.zeros(3), torch.zeros(2, 2), torch.zeros(1, dtype=torch.float64)]
print("messages:", [[tuple(t.shape) for t in group] for group in _buckets(tensors, 100)])
flat = torch.arange(7.0)
_unpack(flat, tensors[:2])
assert tensors[1].tolist() == [[3, 4], [5, 6]] and len(_buckets(tensors, 100)) == 2       # one per dtype
average_tensors(tensors)                                                                   # alone: nothing happens

# %% [markdown]
# **Trap: clip, then average.** Published code once clipped on each rank before averaging. Take two ranks whose gradients have lengths 10
# and 0.5, and a limit of 1. **Predict**: is the direction of the step the same either way?

# %%
from nanochat.optim import clip_by_global_norm

def clipped(g: Tensor) -> Tensor:
    "The gradient, shortened to length 1 if it is longer."
    p = torch.nn.Parameter(torch.zeros_like(g))
    p.grad = g.clone()
    clip_by_global_norm([p], 1.0)
    return p.grad

a, b = torch.tensor([10.0, 0.0]), torch.tensor([0.0, 0.5])
right, wrong = clipped((a + b) / 2), (clipped(a) + clipped(b)) / 2
print("average, then clip:", [round(x, 3) for x in right.tolist()])
print("clip, then average:", [round(x, 3) for x in wrong.tolist()])
assert right[1] / right[0] < 0.06 and wrong[1] / wrong[0] > 0.4


# %% [markdown]
# The direction turned by 24 degrees, and it depends on how many ranks you happen to have. `train` calls `reduce` before it clips.

# %%
#| export
def average_gradients(
    params: Iterable,  # parameters with gradients
) -> None:
    "Replace each gradient by its mean over all ranks. Do it before clipping."
    average_tensors([p.grad for p in params if p.grad is not None])


# %%
said = launch("""
import torch
from nanochat.distributed import average_gradients, session
from nanochat.workshop import ranks

with session():
    p, idle = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    p.grad = torch.tensor([float(ranks()[0]), 4.0])
    average_gradients([p, idle])                         # the second has no gradient: passed over
    print(f"rank {ranks()[0]}: {p.grad.tolist()}", flush=True)
""")
print(said)
assert said.count("[0.5, 4.0]") == 2          # the mean of 0 and 1, and of 4 and 4, on both


# %% [markdown]
# ## Decide together
#
# Two more collectives, for small things. Each rank's place in the data goes into the checkpoint: `gather_objects`. And when you press
# Ctrl-C, the signal reaches one rank a step earlier than another. If one saves and leaves while the other starts the next step, the
# other hangs. So after each step the ranks agree whether *any* of them was asked to stop: `any_rank`.

# %%
#| export
def gather_objects(
    thing,     # anything small that can be pickled
) -> list:     # one of each rank, in order, on every rank
    "Everybody's `thing`, everywhere."
    if not dist.is_initialized(): return [thing]
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, thing)
    return found


def any_rank(
    flag: bool,  # of this rank
) -> bool:       # the same on every rank
    "Whether the flag is set on any rank. Travels between CPUs, so that no GPU is waited for."
    if not dist.is_initialized(): return flag
    seen = torch.tensor(float(flag))
    dist.all_reduce(seen, op=dist.ReduceOp.MAX)
    return bool(seen)


# %%
assert gather_objects({"taken": 5}) == [{"taken": 5}] and any_rank(True) and not any_rank(False)


# %% [markdown]
# ## Share the optimizer's memory
#
# After averaging, all ranks hold equal gradients and would all compute the same update, with the same optimizer state in each memory. That is
# wasteful twice. So share it: each parameter has one *owner*, who alone keeps its state, computes its update, and sends the
# new value to the others. This is the first stage of ZeRO (Rajbhandari et al., 2020). nanochat does it too.
#
# Whole parameters are owned, not slices, because Muon (lesson 04) needs whole matrices. The largest go first, each to the rank with the
# least so far.

# %%
#| export
def owners(
    sizes: list[int],  # numbers in each parameter
    world: int,        # ranks
) -> list[int]:        # the rank that owns each
    "Share parameters out: the largest first, each to the rank that has least so far."
    load, owner = [0] * world, [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        owner[i] = min(range(world), key=lambda r: (load[r], r))
        load[owner[i]] += sizes[i]
    return owner


# %%
sizes = [7, 5, 5, 3, 1, 1, 1]
owner = owners(sizes, 3)
print({rank: [s for s, o in zip(sizes, owner) if o == rank] for rank in range(3)})
assert owners([4], 8) == [0]                                       # fewer parameters than ranks: some own nothing


# %% [markdown]
# The class wraps any optimizer of ours. It keeps only the owned parameters in its groups; the rest of the interface stays.

# %%
#| export
class ShardedOptimizer:
    """Each rank keeps the state of its own parameters, updates those, and sends them to the others.

    Whole parameters are owned, so any number and any shape will do. Average the gradients over
    the ranks before `step`. `UserError` outside of a group. (ZeRO-1, Rajbhandari et al. 2020.)"""

    def __init__(self,
        optimizer,  # one whose step takes `allowed`, and updates each parameter by itself; fresh
    ):
        if not dist.is_initialized():
            raise UserError("a sharded optimizer needs init_from_env() first, under torchrun")
        self.rank, self.world, self.optimizer = dist.get_rank(), dist.get_world_size(), optimizer
        self.layout = [list(group["params"]) for group in optimizer.param_groups]   # of all ranks
        self.params = [p for group in self.layout for p in group]
        self.owner = [(r + k) % self.world for k, group in enumerate(self.layout)  # start apart
                      for r in owners([p.numel() for p in group], self.world)]
        mine = {id(p) for p, r in zip(self.params, self.owner) if r == self.rank}
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) in mine]

    @property
    def param_groups(self) -> list[dict]:
        "The groups with their settings; \"params\" holds only what this rank owns."
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        "Forget all gradients, also of parameters that other ranks own."
        for p in self.params:
            if set_to_none: p.grad = None
            elif p.grad is not None: p.grad.zero_()


# %% [markdown]
# A step is: update what I own, then one message from each owner to all.

# %%
#| export
from fastcore.basics import patch


@patch
@torch.no_grad()
def step(
    self: ShardedOptimizer,
    allowed: Tensor | None = None,  # 0-d bool on the device; where False, nothing changes
) -> None:
    "Update what this rank owns, then give every rank everything."
    self.optimizer.step(allowed)
    flights = []
    for rank in range(self.world):
        owned = [p for p, r in zip(self.params, self.owner) if r == rank]
        for group in _buckets(owned, 2**25):
            flat = torch.cat([p.detach().reshape(-1) for p in group])
            flights.append((rank, group, flat, dist.broadcast(flat, src=rank, async_op=True)))
    for rank, group, flat, flight in flights:
        flight.wait()
        if rank != self.rank: _unpack(flat, group)


# %%
from nanochat.optim import AdamW

try: ShardedOptimizer(AdamW([torch.nn.Parameter(torch.zeros(2))], lr=0.1))
except UserError as e: print(e)
else: raise AssertionError("alone there is nothing to share")


# %% [markdown]
# Its state is spread over the ranks, and a checkpoint must hold all of it: upstream, rank 0 once saved its own part only, and a resumed run
# went on with one eighth of its memory. Ours sends every piece to rank 0, in the form of an ordinary optimizer. So a run that was saved by
# eight ranks goes on with four, or with one.

# %%
#| export
@patch
def state_dict(self: ShardedOptimizer) -> dict:
    """The state of all ranks in the form of an unsharded optimizer: on rank 0; elsewhere no state.

    Every rank must call it. It loads into any number of ranks, also into the optimizer itself."""
    state = {i: dict(self.optimizer.state.get(p, {})) for i, p in enumerate(self.params)}
    shapes = {i: {k: tuple(v.shape) for k, v in s.items()} for i, s in state.items() if s}
    whole: dict[int, dict] = {}
    for rank, layout in enumerate(gather_objects(shapes)):
        for i, key, shape in ((i, k, shape) for i, s in layout.items() for k, shape in s.items()):
            value = self._from(rank, state[i].get(key), shape, self.params[i].device)
            if self.rank == 0: whole.setdefault(i, {})[key] = value.cpu()
    return {"state": dict(sorted(whole.items())), "param_groups": self._groups()}

@patch
def _from(self: ShardedOptimizer, rank: int, value, shape: tuple, device) -> Tensor:
    "One fp32 tensor of the state, sent by the rank that has it."
    if self.rank != rank: value = torch.empty(shape, device=device)
    dist.broadcast(value, src=rank)
    return value

@patch
def _groups(self: ShardedOptimizer) -> list[dict]:
    "The groups as torch numbers them: parameters counted through all groups."
    numbers = iter(range(len(self.params)))
    return [{**group, "params": [next(numbers) for _ in layout]}
            for group, layout in zip(self.param_groups, self.layout)]


# %% [markdown]
# Loading needs no messages: every rank reads the whole file and keeps its own part.

# %%
#| export
@patch
def load_state_dict(self: ShardedOptimizer, found: dict) -> None:
    "Take this rank's part of a whole state. `ValueError` when it has other groups."
    if [len(g["params"]) for g in found["param_groups"]] != [len(g) for g in self.layout]:
        raise ValueError("the stored optimizer has other groups of parameters")
    for group, stored in zip(self.param_groups, found["param_groups"]):
        group.update({k: v for k, v in stored.items() if k != "params"})
    for i, (p, owner) in enumerate(zip(self.params, self.owner)):
        if owner == self.rank and i in found["state"]:
            stored = found["state"][i]
            self.optimizer.state[p] = {k: v.to(p.device, copy=True) for k, v in stored.items()}


# %% [markdown]
# ## Two equal one
#
# **Check it.** One script: each rank takes its half of every batch, with masks that leave unequal numbers of targets. Then this process
# does the same steps with whole batches. Are the weights the same?

# %%
JOB = """
import sys, torch
from nanochat.distributed import ShardedOptimizer, any_rank, average_tensors, session
from nanochat.gpt import GPT, config_for
from nanochat.optim import AdamW
from nanochat.train import train
from nanochat.workshop import ranks

rank, _, world = ranks()

def batches():
    "Four rows a step, of which each rank takes its share."
    g, mine = torch.Generator().manual_seed(0), slice(rank * 4 // world, (rank + 1) * 4 // world)
    while True:
        x, y = torch.randint(64, (2, 4, 16), generator=g)
        y[0, 3:] = -1
        yield x[mine], y[mine]

def job():                # six steps: the model, how many numbers of state this rank held, the last record
    model = GPT(config_for(1, 64, 16, head_dim=32), seed=0)
    optimizer = AdamW(model.parameters(), lr=0.001)
    if world > 1: optimizer = ShardedOptimizer(optimizer)
    options = dict(reduce=average_tensors) if world > 1 else {}
    for step in train(model, optimizer, batches(), steps=6, schedule=lambda t: 1.0, clip=0.5, **options): pass
    state = getattr(optimizer, "optimizer", optimizer).state
    return model, sum(v.numel() for s in state.values() for v in s.values()), step
"""
scope = {}
exec(JOB, scope)
model, alone, step = scope["job"]()
with tempfile.TemporaryDirectory() as folder:
    print(launch(JOB + f"""
with session():
    model, held, step = job()
    print(f"rank {{rank}}: loss {{step.loss:.6f}}, holds {{held}} numbers of state", flush=True)
    if rank == 0: torch.save(model.state_dict(), {str(Path(folder, 'two.pt'))!r})
"""))
    two = torch.load(Path(folder, "two.pt"))
gap = max((two[k] - v).abs().max().item() for k, v in model.state_dict().items())
print(f"alone:  loss {step.loss:.6f}, holds {alone} numbers of state\nlargest difference of a weight: {gap:.0e}")
assert gap < 1e-6

# %% [markdown]
# The same to the last digits of fp32. They are not the same in every bit, because sums in another order round differently.
#
# **And over a stop?** Two ranks make three steps and save the state, which `state_dict` gathers; then this process alone goes on from it, as
# after a night in which half of the machines went away. **Predict** how far its weights are from those of the six steps above.

# %%
PART = JOB + """
def part(first, last, weights=None, state=None):      # steps first + 1 to last, from a state if there is one
    model = GPT(config_for(1, 64, 16, head_dim=32), seed=0)
    optimizer, rows = AdamW(model.parameters(), lr=0.001), batches()
    if world > 1: optimizer = ShardedOptimizer(optimizer)
    if weights:
        model.load_state_dict(weights)
        optimizer.load_state_dict(state)
    for _ in range(first): next(rows)
    options = dict(reduce=average_tensors) if world > 1 else {}
    for _ in train(model, optimizer, rows, steps=last, start=first, schedule=lambda t: 1.0, clip=0.5, **options): pass
    return model, optimizer
"""
exec(PART, scope)
with tempfile.TemporaryDirectory() as folder:
    launch(PART + f"""
with session():
    model, optimizer = part(0, 3)
    state = optimizer.state_dict()                    # all ranks must call it; rank 0 gets the whole
    if rank == 0: torch.save([model.state_dict(), state], {str(Path(folder, 'half.pt'))!r})
""")
    weights, state = torch.load(Path(folder, "half.pt"))
resumed, _ = scope["part"](3, 6, weights, state)
gap = max((resumed.state_dict()[k] - v).abs().max().item() for k, v in model.state_dict().items())
print(f"three steps by two, three by one: largest difference of a weight {gap:.0e}")
assert gap < 1e-6

# %% [markdown]
# The state names parameters by their number and holds whole tensors, so it belongs to no number of ranks.
#
# ## At scale
#
# What does a GPU's memory hold? For the 20-layer model: 561 million weights in fp32 (4 bytes), as many gradients, and the optimizer: two
# numbers for each of the 168 million weights of embedding and head, one for each of the 393 million in matrices.

# %%
import matplotlib.pyplot as plt

from nanochat.workshop import figure

weights, state = 561e6 * 4 / 1e9, (2 * 168e6 + 393e6) * 4 / 1e9       # GB
worlds = [1, 2, 4, 8]
fig, ax = plt.subplots(figsize=(5.5, 2.6), layout="constrained")
parts = {"weights": [weights] * 4, "gradients": [weights] * 4, "optimizer state": [state / w for w in worlds]}
bottom = [0.0] * 4
for (name, values), colour in zip(parts.items(), ("#4c72b0", "#8c8c8c", "#dd8452")):
    ax.bar([str(w) for w in worlds], values, bottom=bottom, label=name, color=colour)
    bottom = [b + v for b, v in zip(bottom, values)]
ax.set(xlabel="GPUs", ylabel="GB on each GPU", ylim=(0, 10))
ax.legend(frameon=False, ncols=3, fontsize=8)
figure(fig, caption="Memory of a 20-layer model on each GPU, without activations, when the optimizer state is shared.",
       alt="Four stacked bars for 1, 2, 4 and 8 GPUs. Weights and gradients stay at 2.2 gigabytes each; the optimizer state "
           "on top shrinks from 2.9 gigabytes to 0.4.")
print(f"optimizer state: {state:.1f} GB alone, {state / 8:.1f} GB on each of 8;  a rank moves about {2 * weights:.1f} GB in the all-reduce and {weights:.1f} GB of new weights")
assert round(state, 1) == 2.9

# %% [markdown]
# The bars assume an even share. Whole parameters are less even: embedding and head are one parameter each, and each group is shared out anew, so two ranks of eight hold 0.9 GB
# and six hold 0.2, where the mean is 0.4. The all-reduce moves 4.5 GB and the owners' new weights 2.2 GB more. Links of 400 GB/s and more take less than two hundredths of a second for both, once per step of half a second.
# What remains is to hide even that behind the backward pass; this course waits instead, and the loop stays readable.
#
# Published nanochat sends each gradient only to its owner (*reduce-scatter*: each rank gets the sum of one part only), which halves what gradients cost, 4.5 instead of 6.7 GB in all, and cuts embeddings into slices,
# which needs a vocabulary that the number of GPUs divides. Ours takes any shape.
#
# ## Recap
#
# * `torchrun` starts equal scripts that differ in their rank; collectives are called by all or hang.
# * Average the gradients, weighted by counted targets; then clip.
# * Agree on stopping. A signal does not reach all ranks in the same step.
# * Share the optimizer's state by whole parameters; gather it for checkpoints.
# * Two processes equal one, and a test says so.
#
# **Quiz.** *One rank sees a NaN. What happens to the others?* The average carries the NaN to all, so all suppress the update and all stop.
# *May rank 0 alone call `state_dict()`?* No. It is a collective: the call would wait for the others until a time limit ends the run.
#
# **Papers.** Rajbhandari et al. 2020 (ZeRO).
