# %% [markdown]
# # 03. Pretraining: the loop
#
# **Promise.** You will write the loop that trains every model in this course, so that it can be killed at any moment and nothing is
# lost, and you will measure the result in a unit that no tokenizer can flatter.
#
# After this lesson you can
#
# * derive bits per byte and compare it with the entropy of the text;
# * accumulate gradients so that four small batches equal one large one, masks included;
# * write a training loop that never waits for the device and never lets a NaN into the weights;
# * kill a run and resume it, bit for bit.
#
# You need lessons 02a to 02e. Reading: 30 minutes. Doing: 40 minutes. Computing: under a minute.

# %%
#| default_exp train

# %%
#| export
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from nanochat.checkpoint import (Interrupt, checkpointed, last_step, load_checkpoint, rng_state,
                                 save_checkpoint, set_rng_state)
from nanochat.optim import clip_by_global_norm, schedule
from nanochat.workshop import Live, UserError, can_compile, clock, print0, ranks

# %% [markdown]
# ## Six lines that learn
#
# Training is a short idea: predict, measure, step. Here it is whole, on the little world, with single bytes as tokens (256 of them, and one
# more that says where a document begins).

# %%
import os
import tempfile
from itertools import islice

from nanochat.checkpoint import Run
from nanochat.data import Loader, pack_documents
from nanochat.gpt import GPT, config_for
from nanochat.microworld import documents, entropy_bpb
from nanochat.optim import AdamW
from nanochat.workshop import by_tier, figure

T, BOS = 64, 256

def packed(split: str, n: int):
    "Rows of T tokens from n documents of the little world."
    return pack_documents([[BOS, *doc.text.encode()] for doc in islice(documents(0, split=split), n)], T)

TRAIN, VAL = packed("train", 2000), packed("val", 60)

def small(seed: int = 0) -> GPT: return GPT(config_for(2, 257, T, head_dim=64), seed)

model, loader = small(), Loader(TRAIN, 16, seed=0)
optimizer = AdamW(model.parameters(), lr=0.003)
for x, y in islice(loader, 15):
    loss = model(x, y)                    # predict and measure: (16, 64) tokens -> one number
    loss.backward()
    optimizer.step()                      # step
    optimizer.zero_grad()
print(f"a fresh model must guess: ln 257 = {math.log(257):.2f} nats; after 15 steps {loss.item():.2f}")
assert loss.item() < 4


# %% [markdown]
# It works, and you should not use it for anything that takes longer than a coffee. It cannot be stopped and continued. Its loss
# depends on the tokenizer. A batch that does not fit into memory ends it. One NaN ends it silently: every weight becomes NaN, and
# the loop runs on all night. And `.item()` makes a GPU stand still. The rest of the lesson repairs these one by one.
#
# ## Bits per byte
#
# Loss is counted *per token*. A tokenizer with long tokens has fewer, harder predictions, so its loss is higher for the same skill.
# To compare, count what does not depend on it: the information needed for the whole text, and the size of the text. The model's
# total loss on the text is $\sum_i -\ln p(\text{token}_i)$ nats. That is the length of the text compressed by this model, and
# $1/\ln 2$ turns nats into bits:
#
# $$\text{bpb} = \frac{\sum_i -\ln p_i}{\ln 2 \cdot \sum_i \text{bytes}_i} .$$
#
# By hand: a text of 6 bytes. Tokenizer A cuts it into 3 tokens of 2 bytes, the model needs 2 nats for each. Tokenizer B cuts it into 2
# tokens of 3 bytes, 3 nats each. The losses are 2 and 3. The bits per byte are equal: $6 / (6 \ln 2) = 1.44$.
#
# Two rules keep it honest. Special tokens are not text: they count in neither sum. And targets that are masked (-1) count in neither.

# %%
#| export
@torch.no_grad()
def evaluate_bpb(
    model,                    # model(x, y, reduction="none") gives (B, T) nats
    batches: Iterable,        # finite: (x, y) of (B, T); y = -1 is not counted
    token_bytes: Tensor,      # (V,) bytes of each token, 0 for special tokens
    reduce: Callable | None = None,  # averages a list of tensors over the ranks, in place
) -> dict:                    # bpb, bytes, nats
    """Bits per byte: how well the model predicts text, whatever the tokenizer.

    Special and ignored targets count in neither sum. `UserError` when no byte is left to count."""
    device = next(model.parameters()).device
    token_bytes, sums = token_bytes.to(device), torch.zeros(2, dtype=torch.float64)
    for x, y in batches:
        x, y = x.to(device), y.to(device)
        size = token_bytes[y.clamp(min=0)] * (y != -1)               # (B, T)
        nats = (model(x, y, reduction="none").view_as(y) * (size > 0)).sum()
        sums += torch.stack([nats.double(), size.sum().double()]).cpu()
    if reduce: reduce([sums])
    nats, size = sums.tolist()
    if size == 0: raise UserError("bits per byte: no byte to predict in this text; give it more")
    return {"bpb": nats / (math.log(2) * size), "bytes": int(size), "nats": nats}


# %%
BYTES = torch.ones(257, dtype=torch.long)
BYTES[BOS] = 0                            # the special token is no text

def held_out(): return islice(Loader(VAL, 16, seed=0), 8)

result = evaluate_bpb(small(), held_out(), BYTES)
print(f"fresh model: {result['bpb']:.3f} bits per byte over {result['bytes']:,} bytes; log2(257) = {math.log2(257):.3f}")
assert abs(result["bpb"] - math.log2(257)) < 1e-3

# %% [markdown]
# A fresh model gives every token the same chance, so it needs $\log_2 257$ bits a byte: worse than no compression at all. Now the floor.
# The little world knows how many free choices it made for each document. No model can do better on fresh documents, on average.

# %%
floor = entropy_bpb(list(islice(documents(0, split="val"), 60)))
print(f"entropy of the text: {floor:.3f} bits per byte;  after the 15 steps above: {evaluate_bpb(model, held_out(), BYTES)['bpb']:.3f}")

# %% [markdown]
# ## Many small batches, one gradient
#
# nanochat reads 524,288 tokens before it makes one step. No GPU holds that much at once, so the batch is cut into micro-batches and
# their gradients are added up. `backward()` adds by itself. What remains is the mean. **Predict**: two micro-batches, one with 60
# counted targets and one with 4. Is the mean of their two losses the loss of the whole?

# %%
x, y = next(Loader(TRAIN, 2, seed=1))
y[1, 4:] = -1                                              # the second row counts only 4 targets
whole = model(x, y).item()
naive = (model(x[:1], y[:1]).item() + model(x[1:], y[1:]).item()) / 2
print(f"whole batch {whole:.4f}, mean of the two means {naive:.4f}")
assert abs(whole - naive) > 1e-4


# %% [markdown]
# No: the 4 targets got as much weight as the 60. In pretraining all rows are full and nobody notices. In finetuning, where
# only answers count, short answers would shout. So each part is weighted by its share of the counted targets. With several processes the
# share is of *all* processes' targets, which is what `reduce` is for; here it stays unused.

# %%
#| export
def gradients(
    forward: Callable,     # (x, y) -> mean loss
    params: list,          # parameters
    batches: list,         # micro-batches of one update: (x, y) on the device, y = -1 not counted
    reduce: Callable | None = None,  # averages a list of tensors over the ranks, in place
) -> Tensor:               # 0-d, the loss; it stays on the device
    """Add up the gradients of micro-batches so that they equal those of one large batch.

    Each mean loss is weighted by its share of the counted targets, of all ranks together."""
    counts = [(y != -1).sum().float() for _, y in batches]
    total = torch.stack(counts).sum()
    if reduce: reduce([total])
    loss = torch.zeros_like(total)
    for (x, y), n in zip(batches, counts):
        part = forward(x, y) * (n / total)
        part.backward()
        loss += part.detach()
    if reduce: reduce([p.grad for p in params if p.grad is not None] + [loss])
    return loss


# %%
params = list(model.parameters())
model.zero_grad()
model(x, y).backward()
wanted = [p.grad.clone() for p in params]
model.zero_grad()
loss = gradients(model, params, [(x[:1], y[:1]), (x[1:], y[1:])])
assert all(torch.allclose(p.grad, g, atol=1e-6) for p, g in zip(params, wanted)) and abs(loss.item() - whole) < 1e-5
print("two micro-batches equal one batch")


# %% [markdown]
# ## Never wait
#
# A GPU works through a queue. Python only puts work into it, and runs ahead. The moment you ask for a number (`loss.item()`,
# `if loss.isnan()`), Python waits until the queue is empty, and then the GPU waits for Python. So we ask late: the loss of a
# step is copied to the host in the background, and read one step later, when it has long arrived. The record of each step says
# which update its loss belongs to.

# %%
#| export
@dataclass
class Step:
    "What is known after one update. `loss` and `grad_norm` are mostly those of the update before."
    step: int         # updates done, from 1
    loss: float       # nats per token, mean over the targets of that update
    loss_step: int    # the update that `loss` and `grad_norm` belong to
    lr: float         # multiplier that the schedule gave for this update
    tokens: int       # tokens that this process read in this update
    seconds: float    # that this update took, without what the consumer did in between
    grad_norm: float  # length of the gradient before clipping


# %%
print(Step(step=7, loss=2.5, loss_step=6, lr=1.0, tokens=1024, seconds=0.1, grad_norm=0.4))


# %% [markdown]
# But if we learn of a NaN one step late, the bad update has already happened. Therefore `optimizer.step(allowed)` from lesson 02d:
# the *device* decides, by arithmetic, whether the update happens. One step later Python finds out, and stops the run with a message. A
# checkpoint that was written in between is clean.
#
# Two helpers: one starts the copy, one reads what is due.

# %%
#| export
def _to(device: torch.device, batch: tuple) -> list[Tensor]:
    "A batch on the device; the copy need not be waited for."
    return [z.to(device, non_blocking=True) for z in batch]


def _later(values: Tensor) -> Callable[[], list]:
    "Start copying numbers to the host; what is returned waits for them, not for work queued since."
    if not values.is_cuda: return values.tolist
    host, event = values.to("cpu", non_blocking=True), torch.cuda.Event()
    event.record()
    return lambda: (event.synchronize(), host.tolist())[1]


def _read(waiting: deque, leave: int, known: tuple | None) -> tuple[int, float, float]:
    "The newest (step, loss, norm) when all but `leave` are read. `UserError` if one is not finite."
    while len(waiting) > leave:
        step, read = waiting.popleft()
        loss, norm = read()
        known = step, loss, norm
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise UserError(f"step {step}: the loss is {loss} and the gradient norm {norm}, so its "
                            "update was not made; your last checkpoint is kept. Start again to go "
                            "on from it, or lower the learning rates")
    return known


# %%
waiting = deque([(1, _later(torch.tensor([2.5, 0.3]))), (2, _later(torch.tensor([2.4, 0.2])))])
known = _read(waiting, leave=1, known=None)
print("known:", known, "  still on its way: step", waiting[0][0])
assert known[0] == 1 and len(waiting) == 1


# %% [markdown]
# Now the loop. It is a *generator*: it makes one update, and hands you a record, at a point where everything is consistent: update
# applied, counters set, loader standing at the next batch. Progress bar, log, checkpoints, evaluation: all of that is done by whoever
# reads the records. The loop knows none of it, and so it fits on a screen.

# %%
#| export
def train(
    model,                      # its parameters are updated in place
    optimizer,                  # `step(allowed)`, groups with "initial_lr"
    batches: Iterator,          # (x, y) of (B, T) int64; y = -1 is not counted
    *,
    steps: int,                 # updates of the whole run
    start: int = 0,             # updates done before
    schedule: Callable[[int], float],  # multiplier of every group's initial_lr, by updates done
    accumulate: int = 1,        # micro-batches per update
    clip: float = 1.0,          # largest norm of the whole gradient
    reduce: Callable | None = None,    # averages a list of tensors over the ranks, in place
    forward: Callable | None = None,   # a compiled (x, y) -> loss; the model itself unless given
) -> Iterator[Step]:
    """Train, and yield one record after each update, when everything is consistent.

    No step waits for the device: the loss is read one step late. An update whose loss or norm
    is not finite is suppressed on the device, and `UserError` names it when its loss is read."""
    params = [p for p in model.parameters() if p.requires_grad]
    device, waiting, known, batches = params[0].device, deque(), None, iter(batches)
    for t in range(start, steps):
        began, lr = time.perf_counter(), schedule(t)
        for group in optimizer.param_groups: group["lr"] = group["initial_lr"] * lr
        micro = [_to(device, next(batches)) for _ in range(accumulate)]
        optimizer.zero_grad(set_to_none=True)
        loss = gradients(model if forward is None else forward, params, micro, reduce)
        norm = clip_by_global_norm(params, clip)
        optimizer.step(loss.isfinite() & norm.isfinite())
        waiting.append((t + 1, _later(torch.stack([loss, norm]))))
        known = _read(waiting, int(start < t < steps - 1), known)     # first and last: read at once
        tokens = sum(x.numel() for x, _ in micro)
        yield Step(step=t + 1, loss=known[1], loss_step=known[0], lr=lr, tokens=tokens,
                   seconds=time.perf_counter() - began, grad_norm=known[2])


# %%
model, loader = small(), Loader(TRAIN, 8, seed=0)
optimizer = AdamW(model.parameters(), lr=0.003)
records = list(train(model, optimizer, loader, steps=4, schedule=lambda t: 1 - t / 4, accumulate=2))
for r in records: print(f"step {r.step}: loss {r.loss:.3f} (of step {r.loss_step}), rate x {r.lr}, {r.tokens} tokens")
assert [r.loss_step for r in records] == [1, 1, 2, 4] and records[0].tokens == 2 * 8 * T


# %% [markdown]
# The first loss is read at once, so that something can be shown, and the last, so that nothing bad slips out at the end.
#
# **Trap: the silent NaN.** Here is the old six-line loop and ours, with a model whose loss turns into NaN at the third step.

# %%
def poisoned(model):
    "The model, with a loss that is NaN at the third call."
    calls = iter(range(1, 1000))
    return lambda x, y: model(x, y) * (float("nan") if next(calls) == 3 else 1.0)

old, batches = small(), Loader(TRAIN, 8, seed=0)
descent, forward = torch.optim.AdamW(old.parameters(), lr=0.003), poisoned(old)
for x, y in islice(batches, 5): descent.zero_grad(); forward(x, y).backward(); descent.step()
print("old loop: weights finite?", all(p.isfinite().all().item() for p in old.parameters()))

ours = small()
try:
    for r in train(ours, AdamW(ours.parameters(), lr=0.003), Loader(TRAIN, 8, seed=0), steps=5, schedule=lambda t: 1.0,
                   forward=poisoned(ours)): pass
except UserError as e: print("our loop:", e)
assert all(p.isfinite().all() for p in ours.parameters()) and not all(p.isfinite().all() for p in old.parameters())


# %% [markdown]
# ## A run that cannot be lost
#
# To go on exactly, four things must come back: weights, optimizer, the place in the data, and the random numbers. Lesson 02e
# stores them; `resume` puts them back. With several processes each has its own place in the data.

# %%
#| export
def resume(
    stage,                           # where the checkpoints are
    model, optimizer, loader,        # get their state back
    fingerprint: str | None = None,  # of the tokenizer
) -> dict:                           # step, tokens and seconds so far; zeros without a checkpoint
    "Go on from a stage's newest checkpoint: weights, optimizer, place in the data, random numbers."
    if last_step(stage.path) is None: return {"step": 0, "tokens": 0, "seconds": 0.0}
    found = load_checkpoint(stage.path, model=model, optimizer=optimizer, fingerprint=fingerprint)
    rank, _, world = ranks()
    places = found["extra"]["loader"]
    if len(places) != world and any(place != places[0] for place in places):
        raise UserError(f"{found['path']} was written by {len(places)} processes that each had "
                        f"their own place in the data; go on with as many, not with {world}")
    loader.load_state_dict(places[rank % len(places)])
    set_rng_state(found["rng"])
    stage.rewind(found["step"])
    print0(f"going on after step {found['step']}")
    return {"step": found["step"], **found["extra"]["done"]}


# %% [markdown]
# Evaluation may draw random numbers (it samples stories). Training must not notice, or a run with another evaluation cadence would be
# another run.

# %%
#| export
def evaluate(
    model,             # as every evaluator takes it
    evaluators: dict,  # name -> f(model) -> dict
) -> dict:             # name -> that dict, and "seconds"
    "Run evaluators without disturbing the random numbers of training."
    state, began = rng_state(), time.perf_counter()
    results = {name: measure(model) for name, measure in evaluators.items()}
    set_rng_state(state)
    return results | {"seconds": time.perf_counter() - began}


# %%
torch.manual_seed(0)
expected = torch.rand(1).item()
torch.manual_seed(0)
found = evaluate(None, {"noisy": lambda model: {"value": torch.rand(1000).mean().item()}})
assert torch.rand(1).item() == expected
print(sorted(found))


# %% [markdown]
# `fit` puts the consumers together, from the inside out: the loop, the log, the checkpoints, the live display, the evaluators. The order is
# the point. Upstream, a run once died in an evaluation *before* its checkpoint was written. Here a file is on disk before
# any evaluator sees the record.

# %%
#| export
def _counted(steps: Iterable[Step], stage, done: dict) -> Iterator[Step]:
    "Count tokens and seconds and log each record; inside the checkpoints, so that none is lost."
    for record in steps:
        done["step"] = record.step
        done["tokens"] += record.tokens
        done["seconds"] += record.seconds
        stage.log(asdict(record))
        yield record


def _spent(done: dict) -> dict:
    "What a checkpoint keeps of the counters."
    return {"tokens": done["tokens"], "seconds": done["seconds"]}


def _watched(steps: Iterable[Step], start: int, total: int, label: str) -> Iterator[Step]:
    "Show the loss live, and say after three timed steps how long this machine will take."
    with Live(total, label) as live:
        first = []
        for record in steps:
            first.append(record.seconds)
            if len(first) == 4 and total - start > 20:
                each = sorted(first[1:])[1]          # the first step also compiles and warms up
                todo, left = total - record.step, clock(each * (total - record.step))
                print0(f"{label}: {todo} steps to go, about {left} on this machine", flush=True)
            rate = int(record.tokens * ranks()[2] / record.seconds)
            live.step(record.step, record.loss, lr=record.lr, tokens_per_s=rate)
            yield record


# %% [markdown]
# Evaluations on the way are a consumer too, the outermost. The last one, after the end, belongs to `fit` itself: if a kill hits it,
# the next start finds a finished training and only evaluates.

# %%
#| export
def _evaluated(steps: Iterable[Step], when: Callable, stage, model, evaluators: dict, done: dict):
    "Evaluate and log after the steps that `when` picks; their seconds are counted apart."
    done["eval_seconds"] = 0.0
    for record in steps:
        if evaluators and when(record.step):
            results = evaluate(model, evaluators)
            done["eval_seconds"] += results["seconds"]
            stage.log({"step": record.step, "evals": results})
        yield record


# %%
records = [Step(i, 2.0, i, 1.0, 10, 0.1, 0.5) for i in range(1, 7)]
with tempfile.TemporaryDirectory() as folder:
    stage, done = Run("demo", home=folder).stage("base", {}, None, "none"), {}
    stage.start()
    for r in _evaluated(records, lambda i: i % 2 == 0, stage, None, {"one": lambda model: {"x": 1}}, done): pass
    print("evaluated after steps", [r["step"] for r in stage.records()])
    assert [r["step"] for r in stage.records()] == [2, 4, 6] and done["eval_seconds"] >= 0


# %% [markdown]
# The function itself is long for this course. It is one list of what a run consists of, in the order in which it happens.

# %%
#| export
def fit(
    stage,                     # `path` for checkpoints, `log` and `rewind` for the log
    model, optimizer, loader,  # what is trained, how, and on what; all three resume
    *,
    steps: int,                # updates of the whole stage
    schedule: Callable[[int], float],  # multiplier of the learning rates
    save_every: int,           # updates between checkpoints; the last one is always saved
    evaluators: dict | None = None,    # name -> f(model) -> dict
    eval_every: int = 0,       # updates between evaluations; 0: only at the end
    label: str = "",           # for the live display
    fingerprint: str | None = None,    # of the tokenizer
    extra: dict | None = None, # JSON values to keep in each checkpoint, such as the model's sizes
    keep: int = 2,             # checkpoints that stay
    gather: Callable[[object], list] = lambda x: [x],   # one object of each rank, on all ranks
    agree: Callable[[bool], bool] = bool,               # True everywhere when it is on any rank
    **options,                 # accumulate, clip, reduce, forward: passed to `train`
) -> dict:                     # steps, tokens, seconds, eval_seconds, loss, evals, skills
    """Train a stage to its end, whatever happens: checkpoints, log, display, evaluators, resume.

    A checkpoint is on disk before anything is evaluated. Ctrl-C saves, then `SystemExit(130)`."""
    stage.start()
    done = resume(stage, model, optimizer, loader, fingerprint)
    start, record, evaluators = done["step"], None, evaluators or {}

    def save(record):
        extras = {**(extra or {}), "loader": gather(loader.state_dict()), "done": _spent(done)}
        save_checkpoint(stage.path, record.step, model=model, optimizer=optimizer, extra=extras,
                        fingerprint=fingerprint, keep=keep)

    def due(step): return eval_every and step % eval_every == 0 and step < steps

    with Interrupt(agree) as interrupt:
        run = train(model, optimizer, loader, steps=steps, start=start, schedule=schedule,
                    **options)
        run = checkpointed(_counted(run, stage, done), save=save, every=save_every, last=steps,
                           interrupt=interrupt)
        run = _evaluated(_watched(run, start, steps, label), due, stage, model, evaluators, done)
        for record in run: pass
    results = evaluate(model, evaluators)
    eval_seconds = done["eval_seconds"] + results.pop("seconds")
    skills = [row for r in results.values() for row in r.get("skills", [])]
    return {**_spent(done), "steps": steps, "tokens": done["tokens"] * ranks()[2], "skills": skills,
            "eval_seconds": eval_seconds, "loss": record and record.loss, "evals": results}


# %% [markdown]
# **Check it: kill and resume.** A run of 8 steps, and the same run killed after step 5 and started again. Their weights must be equal in
# every bit, not only nearly.

# %%
def run(folder: str, die_at: int | None = None) -> GPT:
    "Eight steps of a small model, with a checkpoint every 2; dies before update `die_at` if asked to."
    def rate(t):
        if t == die_at: raise KeyboardInterrupt("the power is gone")
        return schedule(t, 8)
    model = small()
    stage = Run("demo", home=folder).stage("base", {"steps": 8}, None, "world")
    fit(stage, model, AdamW(model.parameters(), lr=0.003), Loader(TRAIN, 4, seed=0), steps=8, schedule=rate, save_every=2)
    return model

with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
    straight = run(a)
    try: run(b, die_at=5)
    except KeyboardInterrupt as e: print("killed:", e)
    resumed = run(b)
assert all(torch.equal(p, q) for p, q in zip(straight.parameters(), resumed.parameters()))
print("equal in every bit")


# %% [markdown]
# ## What fits, and how fast
#
# Two tools for other machines. `torch.compile` fuses the small operations of the forward pass; it pays after about half a minute of
# training, and only for one fixed shape, so evaluation and sampling keep the plain model. And on a GPU we try how many rows fit.

# %%
#| export
def compile_forward(
    model,  # called as model(x, y) -> loss
):          # the same, compiled where this machine can
    "Compile the forward pass for one static shape; evaluation and sampling keep the plain model."
    device = next(model.parameters()).device
    return torch.compile(model, dynamic=False) if can_compile(device.type) else model


# %%
os.environ["NANOCHAT_COMPILE"] = "0"                 # as on a machine without a C++ compiler
model = small()
assert compile_forward(model) is model
del os.environ["NANOCHAT_COMPILE"]
print("without a compiler the plain model is used")


# %% [markdown]
# The rows are tried from the largest number down, and only numbers that divide the batch.

# %%
#| export
def find_micro_batch(
    attempt: Callable[[int], object],  # runs forward and backward with that many rows
    rows: int,                         # rows per update on this device
) -> int:                              # rows at a time; divides `rows`
    "The most rows at a time that fit into memory. `UserError` when not even one row fits."
    for size in (n for n in range(rows, 0, -1) if rows % n == 0):
        try:
            attempt(size)
            return size
        except torch.OutOfMemoryError: pass
        if torch.cuda.is_available(): torch.cuda.empty_cache()     # the handler still held tensors
    raise UserError("not even one row fits into this device's memory; "
                    "use a smaller depth or a shorter context")


# %%
def pretend(rows: int):
    if rows > 5: raise torch.OutOfMemoryError("a GPU that holds 5 rows")

print("rows at a time:", find_micro_batch(pretend, 32), "of 32")
assert find_micro_batch(pretend, 32) == 4


# %% [markdown]
# ## The stage
#
# All of it behind one function: a stage that is passed over when finished, resumed when killed, and refused when its recipe changed.

# %%
#| export
def pretrain(
    stage,                     # Stage: its folder and its hash
    recipe: dict,              # steps, save_every; may hold warmup, warmdown, final, eval_every
    *,
    make_model: Callable,      # () -> model
    make_optimizer: Callable,  # model -> optimizer
    loader,                    # endless batches of packed documents
    evaluators: dict | None = None,  # name -> f(model) -> dict
    **options,                 # forward, reduce, fingerprint, extra, gather, agree: passed to `fit`
) -> dict:                     # the metrics, also written to the stage's folder
    "The pretraining stage: skipped when finished, resumed when killed, `UserError` when changed."
    stage.start()
    if stage.status() == "finished": return stage.metrics()
    model = make_model()
    shape = {k: recipe[k] for k in ("warmup", "warmdown", "final") if k in recipe}
    rest = {k: recipe[k] for k in ("eval_every", "accumulate", "clip") if k in recipe}
    config = {"config": model.config.to_dict()} if hasattr(model, "config") else {}
    options["extra"] = {**config, **options.get("extra", {})}
    steps = recipe["steps"]
    metrics = fit(stage, model, make_optimizer(model), loader, steps=steps, evaluators=evaluators,
                  schedule=lambda t: schedule(t, steps, **shape), save_every=recipe["save_every"],
                  label=recipe.get("label", "pretraining"), **rest, **options)
    stage.finish(metrics)
    return metrics


# %% [markdown]
# Let it run: a real pretraining, small, watched on held-out text. **Predict** where the curve will stand at the end, between the fresh
# model's 8 bits and the floor.

# %%
steps, curve = by_tier(40, 300), []

def watch(model) -> dict:
    "Bits per byte on held-out text."
    curve.append(evaluate_bpb(model, held_out(), BYTES)["bpb"])
    return {"bpb": curve[-1]}

recipe = {"steps": steps, "save_every": 100, "eval_every": steps // 10, "warmdown": 0.6, "label": "small world"}
with tempfile.TemporaryDirectory() as folder:
    stage = Run("demo", home=folder).stage("base", recipe, None, "world")
    make = lambda model: AdamW(model.parameters(), lr=0.003, betas=(0.9, 0.95))
    metrics = pretrain(stage, recipe, make_model=small, make_optimizer=make, loader=Loader(TRAIN, 16, seed=0),
                       evaluators={"val": watch})
    print(f"{metrics['tokens']:,} tokens, {metrics['evals']['val']['bpb']:.3f} bits per byte; floor {floor:.3f}")
assert floor < metrics["evals"]["val"]["bpb"] < by_tier(4.5, 3.5)

# %%
import matplotlib.pyplot as plt

fig, ax = plt.subplots(figsize=(5.5, 2.6), layout="constrained")
ax.plot([steps // 10 * (i + 1) for i in range(len(curve))], curve, "o-", label="model")
ax.axhline(floor, linestyle="--", color="gray", label="entropy of the text")
ax.set(xlabel="step", ylabel="bits per byte, held out", ylim=(0, None))
ax.legend(frameon=False)
figure(fig, caption="Bits per byte on held-out text while a small model trains on bytes.",
       alt="A falling curve with ten points, steep at first and then flatter, and far below it a dashed line, the entropy of the text.")

# %% [markdown]
# The gap to the dashed line is what is left to learn. The laptop recipe closes most of it, with tokens instead of bytes, a four-layer
# model and the optimizer of lesson 04.
#
# ## At scale
#
# One token costs about six operations per weight, forward and backward together. For the 20-layer model: 3.49 billion operations a
# token (lesson 02a counts them), and 20 tokens per parameter.

# %%
flops_per_token, tokens = 3.491758e9, 20 * 560_988_160
total, rate = flops_per_token * tokens, 8 * 989e12 * 0.45          # eight H100 at 45% of their peak
print(f"{tokens / 1e9:.1f} billion tokens, {total:.2e} operations, {total / rate / 3600:.1f} hours, "
      f"about {total / rate / 3600 * 24:.0f} dollars at 24 dollars an hour")
assert abs(total / 3.917670e19 - 1) < 0.01

# %% [markdown]
# On those GPUs a step of 524,288 tokens takes half a second, and each avoided wait is a part of a millisecond that costs nothing to avoid.
# 45% of the peak is an assumption here; the capstone prints what it measured.
#
# ## Recap
#
# * Bits per byte: total nats over total bytes. It does not depend on the tokenizer, and the entropy of the text is its floor.
# * A large batch is a *weighted* sum of micro-batches.
# * Read numbers late, let the device decide about bad updates, and stop one step later with a message.
# * The loop is a generator; everything else consumes its records. A checkpoint comes first.
# * Resume means equal in every bit: weights, optimizer, place in the data, random numbers.
#
# **Quiz.** *Why does the record of step 2 carry the loss of step 1?* Reading the loss of step 2 would make Python wait for it. *Two models
# have losses 2.9 and 3.1 with different tokenizers. Which is better?* You cannot know; ask for bits per byte. *The run stopped at a NaN.
# Is the newest checkpoint safe?* Yes: the update was suppressed on the device before it could be saved.
