# %% [markdown]
# # 03. Pretraining: the loop

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

from nanochat.checkpoint import (Interrupt, checkpointed, last_step, load_checkpoint, rng_state, save_checkpoint,
                                 set_rng_state)
from nanochat.optim import clip_by_global_norm, schedule
from nanochat.workshop import Live, UserError, can_compile, clock, print0, ranks


# %%
#| export
@dataclass
class Step:
    "What is known after one update. `loss` and `grad_norm` are those of update `loss_step`: mostly the one before."
    step: int         # updates done, from 1
    loss: float       # nats per token, mean over the targets of that update
    loss_step: int    # the update that `loss` and `grad_norm` belong to
    lr: float         # multiplier that the schedule gave for this update
    tokens: int       # tokens that this process read in this update
    seconds: float    # that this update took, without what the consumer did in between
    grad_norm: float  # length of the gradient before clipping


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
#| export
def _later(values: Tensor) -> Callable[[], list]:
    "Start copying numbers to the host and return what waits for just them, not for work queued since."
    if not values.is_cuda: return values.tolist
    host, event = values.to("cpu", non_blocking=True), torch.cuda.Event()
    event.record()
    return lambda: (event.synchronize(), host.tolist())[1]


def _read(waiting: deque, leave: int, known: tuple | None) -> tuple[int, float, float]:
    "The newest known (step, loss, norm) when all but `leave` are read. `UserError` for a number that is not finite."
    while len(waiting) > leave:
        step, read = waiting.popleft()
        loss, norm = read()
        known = step, loss, norm
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise UserError(f"step {step}: the loss is {loss} and the gradient norm {norm}, so its update was not "
                            "made; your last checkpoint is kept. Start again to go on from it, or lower the rates")
    return known


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

    No step waits for the device: the loss is read one step late. An update whose loss or norm is not finite
    is suppressed on the device, and `UserError` names it when its loss is read."""
    params = [p for p in model.parameters() if p.requires_grad]
    device, waiting, known, batches = params[0].device, deque(), None, iter(batches)
    for t in range(start, steps):
        began, lr = time.perf_counter(), schedule(t)
        for group in optimizer.param_groups: group["lr"] = group["initial_lr"] * lr
        micro = [[z.to(device, non_blocking=True) for z in next(batches)] for _ in range(accumulate)]
        optimizer.zero_grad(set_to_none=True)
        loss = gradients(forward or model, params, micro, reduce)
        norm = clip_by_global_norm(params, clip)
        optimizer.step(loss.isfinite() & norm.isfinite())
        waiting.append((t + 1, _later(torch.stack([loss, norm]))))
        known = _read(waiting, int(start < t < steps - 1), known)     # the first and the last are read at once
        tokens = sum(x.numel() for x, _ in micro)
        yield Step(step=t + 1, loss=known[1], loss_step=known[0], lr=lr, tokens=tokens,
                   seconds=time.perf_counter() - began, grad_norm=known[2])


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
    if size == 0: raise UserError("bits per byte: the evaluation text has no byte to predict; give it more text")
    return {"bpb": nats / (math.log(2) * size), "bytes": int(size), "nats": nats}


# %%
#| export
def resume(
    stage,                           # where the checkpoints are
    model, optimizer, loader,        # get their state back
    fingerprint: str | None = None,  # of the tokenizer
) -> dict:                           # step, tokens and seconds so far; zeros when there is no checkpoint
    "Go on from the newest checkpoint of a stage: weights, optimizer, place in the data and random numbers."
    if last_step(stage.path) is None: return {"step": 0, "tokens": 0, "seconds": 0.0}
    found = load_checkpoint(stage.path, model=model, optimizer=optimizer, fingerprint=fingerprint)
    rank, _, world = ranks()
    places = found["extra"]["loader"]
    if len(places) != world and any(place != places[0] for place in places):
        raise UserError(f"{found['path']} was written by {len(places)} processes that each had their own place in the "
                        f"data; go on with as many, not with {world}")
    loader.load_state_dict(places[rank % len(places)])
    set_rng_state(found["rng"])
    stage.rewind(found["step"])
    print0(f"going on after step {found['step']}")
    return {"step": found["step"], **found["extra"]["done"]}


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
#| export
def _counted(steps: Iterable[Step], stage, done: dict) -> Iterator[Step]:
    "Count tokens and seconds and write each record to the log; inside the checkpoints, so that none is lost."
    for record in steps:
        done["step"] = record.step
        done["tokens"] += record.tokens
        done["seconds"] += record.seconds
        stage.log(asdict(record))
        yield record


def _watched(steps: Iterable[Step], start: int, total: int, label: str) -> Iterator[Step]:
    "Show the loss live, and say after three timed steps how long this machine will take."
    with Live(total, label) as live:
        first = []
        for record in steps:
            first.append(record.seconds)
            if len(first) == 4 and total - start > 20:
                each = sorted(first[1:])[1]                 # the first step also compiles and warms up
                left = clock(each * (total - record.step))
                print0(f"{label}: {total - record.step} steps to go, about {left} on this machine", flush=True)
            rate = int(record.tokens * ranks()[2] / record.seconds)
            live.step(record.step, record.loss, lr=record.lr, tokens_per_s=rate)
            yield record


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
    """Train a stage to its end, whatever happens in between: checkpoints, log, live display, evaluators, resume.

    A checkpoint is on disk before anything is evaluated. Ctrl-C saves and raises `SystemExit(130)`."""
    stage.start()
    evaluators, done, record = evaluators or {}, resume(stage, model, optimizer, loader, fingerprint), None
    start, eval_seconds = done["step"], 0.0

    def save(record):
        kept = {"loader": gather(loader.state_dict()), "done": {k: done[k] for k in ("tokens", "seconds")}}
        save_checkpoint(stage.path, record.step, model=model, optimizer=optimizer, extra={**(extra or {}), **kept},
                        fingerprint=fingerprint, keep=keep)

    with Interrupt(agree) as interrupt:
        run = train(model, optimizer, loader, steps=steps, start=start, schedule=schedule, **options)
        run = checkpointed(_counted(run, stage, done), save=save, every=save_every, last=steps, interrupt=interrupt)
        for record in _watched(run, start, steps, label):
            if evaluators and eval_every and record.step % eval_every == 0 and record.step < steps:
                results = evaluate(model, evaluators)
                eval_seconds += results["seconds"]
                stage.log({"step": record.step, "evals": results})
    results = evaluate(model, evaluators)
    eval_seconds += results.pop("seconds")
    skills = [row for r in results.values() for row in r.get("skills", [])]
    return {"steps": steps, "tokens": done["tokens"] * ranks()[2], "seconds": done["seconds"], "loss": record and record.loss,
            "eval_seconds": eval_seconds, "evals": results, "skills": skills}


# %%
#| export
def compile_forward(
    model,  # called as model(x, y) -> loss
):          # the same, compiled where this machine can
    "Compile the forward pass for one static shape; evaluation and sampling keep the plain model."
    device = next(model.parameters()).device
    return torch.compile(model, dynamic=False) if can_compile(device.type) else model


# %%
#| export
def find_micro_batch(
    attempt: Callable[[int], object],  # runs forward and backward with that many rows
    rows: int,                         # rows per update on this device
) -> int:                              # rows at a time; divides `rows`
    "The most rows at a time that fit into memory, the largest tried first. `UserError` when not even one row fits."
    for size in (n for n in range(rows, 0, -1) if rows % n == 0):
        try:
            attempt(size)
            return size
        except torch.OutOfMemoryError: pass
        if torch.cuda.is_available(): torch.cuda.empty_cache()       # after the handler: it still held the tensors
    raise UserError("not even one row fits into this device's memory; use a smaller depth or a shorter context")


# %%
#| export
def pretrain(
    stage,                     # Stage: its folder and its hash
    recipe: dict,              # steps, save_every; warmup, warmdown, final, eval_every, accumulate, clip unless usual
    *,
    make_model: Callable,      # () -> model
    make_optimizer: Callable,  # model -> optimizer
    loader,                    # endless batches of packed documents
    evaluators: dict | None = None,  # name -> f(model) -> dict
    **options,                 # forward, reduce, fingerprint, extra, gather, agree: passed to `fit`
) -> dict:                     # the metrics, also written to the stage's folder
    "The pretraining stage: skipped when finished, resumed when killed. `UserError` when its recipe changed."
    stage.start()
    if stage.status() == "finished": return stage.metrics()
    model = make_model()
    shape = {k: recipe[k] for k in ("warmup", "warmdown", "final") if k in recipe}
    rest = {k: recipe[k] for k in ("eval_every", "accumulate", "clip") if k in recipe}
    config = {"config": model.config.to_dict()} if hasattr(model, "config") else {}
    options["extra"] = {**config, **options.get("extra", {})}
    metrics = fit(stage, model, make_optimizer(model), loader, steps=recipe["steps"], evaluators=evaluators,
                  schedule=lambda t: schedule(t, recipe["steps"], **shape), save_every=recipe["save_every"],
                  label=recipe.get("label", "pretraining"), **rest, **options)
    stage.finish(metrics)
    return metrics
