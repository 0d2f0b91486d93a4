"""Training throughput: our model, loop and optimizer against `transformers`' NanoChatForCausalLM, in the same run.

    python benchmarks/train.py                                 # depths 2, 4, 6 on the CPU, two threads: about 15 minutes
    python benchmarks/train.py --threads 1 --clock cpu         # CPU seconds of one thread: for a machine that is not quiet
    python benchmarks/train.py --depths 12 20 --device cuda --rows 16 --length 2048 --vocab 65536 --head-dim 128 --peak 989

Both sides train the same function (weights converted, as many KV heads as heads, loss on every position, gradient clipped to 1), on
the same batches. Before anything is timed the first loss must be equal in fp32, the compiled losses of the first three updates too
(with AdamW on both sides, so that gradients, clipping and updates are the same). Each set-up is a process of its own; blocks of steps
are timed in turns. The peer's set-ups are raced first, the fastest one goes on. `ratio` has Muon on our side, `ratio_adamw` AdamW on
both. Memory is the peak while training less what the process had before it made a model. The last line is one JSON object.
"""
import argparse
import json
import math
import multiprocessing as mp
import os
import platform
import shlex
import statistics
import sys
import time
from datetime import date
from importlib.metadata import version
from itertools import cycle
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = ("muon", "adamw")
PEERS = ("eager float32", "sdpa float32", "eager bfloat16", "sdpa bfloat16")     # attention, dtype of autocast; compiled
LR = 1e-3           # of the peer and of our AdamW: the same everywhere, so that the losses can be compared


# -- one side, in a process of its own -----------------------------------------------------------------------------------

def make_model(depth: int, args):
    "Our model with every weight random: at the usual start many are zero, and a wrong conversion would go unseen."
    import torch
    from nanochat.gpt import GPT, config_for
    model = GPT(config_for(depth, args.vocab, args.length, head_dim=args.head_dim), seed=0)
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        if not p.detach().any(): torch.nn.init.normal_(p, std=p.shape[1] ** -0.5, generator=generator)
    return model.to(args.device)


def make_batches(args) -> list[tuple]:
    "Four batches of random tokens and their targets."
    import torch
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randint(args.vocab, (args.rows, args.length + 1), generator=generator).to(args.device) for _ in range(4)]
    return [(r[:, :-1].contiguous(), r[:, 1:].contiguous()) for r in rows]


def our_side(name: str, depth: int, args) -> dict:
    "Our model as `nanochat.train.train` trains it."
    import torch
    from nanochat.muon import MuonAdamW, ADAMW, make_optimizer
    from nanochat.optim import clip_by_global_norm
    from nanochat.train import train
    from nanochat.workshop import pick_dtype
    model, batches = make_model(depth, args), make_batches(args)
    params = list(model.parameters())
    with torch.no_grad(): start = model(*batches[0]).item()
    model.compute_dtype = dtype = pick_dtype(torch.device(args.device), args.dtype)
    optimizer = (make_optimizer(model, ns_dtype=dtype) if name == "muon" else MuonAdamW([ADAMW | {"params": params, "lr": LR}]))
    forward = torch.compile(model, dynamic=False) if args.compile else model      # as `compile_forward`, but never silently not
    run = train(model, optimizer, cycle(batches), steps=10**9, schedule=lambda t: 1.0, forward=forward)

    def update():
        norm = clip_by_global_norm(params, 1.0)
        optimizer.step(norm.isfinite())

    def first_losses() -> list[float]:
        losses = {r.loss_step: r.loss for r in (next(run) for _ in range(4))}     # each is read one update late
        return [losses[t] for t in (1, 2, 3)]

    return {"start": start, "first_losses": first_losses, "step": lambda: next(run), "update": update,
            "dtype": str(dtype).removeprefix("torch."), "flops": model.flops_per_token()}


def their_side(name: str, depth: int, args) -> dict:
    "The peer with converted weights: compiled as one function with its loss, fused AdamW."
    import torch
    sys.path.insert(0, str(ROOT / "tests"))
    from nanochat_hf import to_transformers
    attention, dtype = name.split()
    model, batches = to_transformers(make_model(depth, args), attn_implementation=attention), make_batches(args)
    model.train()
    params = list(model.parameters())
    optimizer = torch.optim.AdamW(params, lr=LR, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0, fused=True)

    def loss_of(x, y):
        return model(input_ids=x, labels=y, shift_labels=y).loss      # the target of every position is given: no shift

    def half(x, y):
        with torch.autocast(args.device, torch.bfloat16, enabled=dtype == "bfloat16"): return loss_of(x, y)

    forward = torch.compile(half, dynamic=False) if args.compile else half
    with torch.no_grad(): start = loss_of(*batches[0]).item()
    turns = cycle(batches)

    def update():
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = forward(*next(turns))
        loss.backward()
        update()
        return loss

    return {"start": start, "first_losses": lambda: [step().item() for _ in range(3)], "step": step, "update": update,
            "dtype": dtype}


class Memory:
    "Peak memory since `reset`, in MB: of the process, or of the device where it has its own."
    def __init__(self, device: str): self.cuda, self.before = device.startswith("cuda"), 0.0

    def now(self, field: str = "VmRSS") -> float:
        status = Path("/proc/self/status")
        if not status.exists(): return math.nan                # not Linux
        return next(int(line.split()[1]) / 1e3 for line in status.read_text().splitlines() if line.startswith(field))

    def reset(self):
        import torch
        if self.cuda: torch.cuda.reset_peak_memory_stats()
        elif Path("/proc/self/clear_refs").exists(): Path("/proc/self/clear_refs").write_text("5")      # VmHWM starts again

    def peak(self) -> float:
        import torch
        return torch.cuda.max_memory_allocated() / 1e6 if self.cuda else self.now("VmHWM") - self.before


def work(pipe, side: str, name: str, depth: int, args):
    "Make one side, then answer orders: seconds of so many steps, of so many updates, memory."
    import torch
    from nanochat.workshop import keep_memory
    torch.set_num_threads(args.threads)
    keep_memory()                                               # for both sides alike
    if side == "theirs": import transformers                    # before memory is counted
    memory, clock = Memory(args.device), {"wall": time.perf_counter, "cpu": time.process_time}[args.clock]

    def timed(f, count: int) -> float:
        began = clock()
        for _ in range(count): f()
        if args.device.startswith("cuda"): torch.cuda.synchronize()
        return clock() - began

    try:
        memory.before = memory.now()
        made = (our_side if side == "ours" else their_side)(name, depth, args)
        began = time.perf_counter()
        losses = made["first_losses"]()
        ready = {"start": made["start"], "losses": losses, "dtype": made["dtype"], "flops": made.get("flops"),
                 "compile_s": time.perf_counter() - began}
        memory.reset()
        pipe.send(ready)
        while (order := pipe.recv()) is not None:
            if order == "peak": pipe.send(memory.peak())
            else: pipe.send(timed(made[order[0]], order[1]))
    except Exception as error:                                  # the parent says which side failed
        pipe.send(error)


class Side:
    "A process that trains one side, and what it measured."
    def __init__(self, side: str, name: str, depth: int, args):
        context = mp.get_context("spawn")
        self.name, self.seconds, self.tokens = f"{side} {name}", [], args.rows * args.length
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=work, args=(end, side, name, depth, args), daemon=True)
        self.process.start()
        self.facts = self.answer()

    def answer(self):
        if isinstance(got := self.pipe.recv(), Exception): raise SystemExit(f"{self.name}: {type(got).__name__}: {got}")
        return got

    def ask(self, order):
        self.pipe.send(order)
        return self.answer()

    def block(self, steps: int): self.seconds.append(self.ask(("step", steps)) / steps)

    def rate(self) -> float:  # tokens a second, median of the blocks
        return self.tokens / statistics.median(self.seconds)

    def update_share(self) -> float:  # of clipping and optimizer in a step
        return statistics.median(self.ask(("update", 1)) for _ in range(7)) / statistics.median(self.seconds)

    def end(self):
        self.pipe.send(None)
        self.process.join(60)


# -- the comparison ------------------------------------------------------------------------------------------------------

def same_function(sides: list[Side]):
    "Stop unless all sides start at one loss, and those with AdamW have one loss after each of the first updates."
    first = sides[0].facts
    for side in sides:
        if abs(side.facts["start"] - first["start"]) > 1e-4:
            raise SystemExit(f"{side.name}: loss {side.facts['start']:.6f}, not {first['start']:.6f}: not the same function")
    ours = next(s.facts for s in sides if s.name == "ours adamw")
    for side in sides:
        exact = side.facts["dtype"] == ours["dtype"] == "float32"
        count = 1 if side.name == "ours muon" else 3
        for a, b in zip(side.facts["losses"][:count], ours["losses"]):
            if abs(a - b) > (1e-4 if exact else 1e-2) * max(1.0, b):
                raise SystemExit(f"{side.name}: compiled losses {side.facts['losses']}, ours {ours['losses']}")


def race(depth: int, args) -> dict:
    "Both our sides and the fastest of the peer's, in turns."
    ours = {name: Side("ours", name, depth, args) for name in OURS}
    peers = [Side("theirs", name, depth, args) for name in args.peers]
    same_function([*ours.values(), *peers])
    for side in [*ours.values(), *peers]: side.block(1)                     # warm, and how long a step takes
    steps = max(1, round(args.seconds / ours["adamw"].seconds[0]))
    for side in [*ours.values(), *peers]: side.seconds.clear()
    for trial in range(args.trials):
        for side in peers:
            if not trial or side.rate() > 0.7 * max(p.rate() for p in peers): side.block(steps if trial else 1)
    tried = {side.name.removeprefix("theirs "): round(side.rate()) for side in peers}
    peers.sort(key=Side.rate, reverse=True)
    for side in peers[1:]: side.end()
    peer, sides = peers[0], [*ours.values(), peers[0]]
    for side in sides: side.seconds.clear()
    for i in range(args.blocks):
        for side in (sides if i % 2 else sides[::-1]): side.block(steps)
    report = summary(depth, ours, peer, tried, steps)
    for side in sides: side.end()
    return report


def summary(depth: int, ours: dict, peer: Side, tried: dict, steps: int) -> dict:
    "All that one depth showed."
    muon, adamw = ours["muon"], ours["adamw"]

    def pairs(side: Side) -> list[float]:      # quartiles of the ratio within each round
        ratios = [b / a for a, b in zip(side.seconds, peer.seconds)]
        return [round(q, 3) for q in statistics.quantiles(ratios, n=4)] if len(ratios) > 1 else ratios

    def facts(side: Side) -> dict:
        return {"tokens_per_s": round(side.rate()), "optimizer_share": round(side.update_share(), 4),
                "compile_s": round(side.facts["compile_s"], 1), "peak_mb": round(side.ask("peak")),
                "dtype": side.facts["dtype"]}

    return {"depth": depth, "steps_per_block": steps, "blocks": len(peer.seconds), "peer": peer.name.removeprefix("theirs "),
            "peers_tried": tried, "flops_per_token": muon.facts["flops"], "losses": adamw.facts["losses"],
            "peer_losses": peer.facts["losses"], "sides": {"muon": facts(muon), "adamw": facts(adamw), "peer": facts(peer)},
            "ratio": round(muon.rate() / peer.rate(), 3), "ratio_adamw": round(adamw.rate() / peer.rate(), 3),
            "pairs": pairs(muon), "pairs_adamw": pairs(adamw)}


def table(found: dict, args) -> str:
    "One line for each side of each depth."
    lines = ["| depth | side | tokens/s | TFLOP/s | against the peer (quartiles of pairs) | optimizer | first steps | peak |",
             "|---|---|---|---|---|---|---|---|"]
    for depth, r in found.items():
        for name, s in r["sides"].items():
            label = {"muon": "ours, Muon", "adamw": "ours, AdamW", "peer": f"transformers, {r['peer']}"}[name]
            ratio, spread = {"muon": (r["ratio"], r["pairs"]), "adamw": (r["ratio_adamw"], r["pairs_adamw"])}.get(name, (1, []))
            tera = s["tokens_per_s"] * r["flops_per_token"] / 1e12
            mfu = f" ({tera / args.peak:.1%} of peak)" if args.peak else ""
            quartiles = f" ({spread[0]:.2f} to {spread[-1]:.2f})" if spread else ""
            lines.append(f"| {depth} | {label}, {s['dtype']} | {s['tokens_per_s']:,} | {tera:.3f}{mfu} | {ratio:.2f}{quartiles} "
                         f"| {s['optimizer_share']:.1%} | {s['compile_s']:.0f} s | {s['peak_mb']:,} MB |")
    tried = "; ".join(f"d{d}: " + ", ".join(f"{k} {v:,}" for k, v in r["peers_tried"].items()) for d, r in found.items())
    return "\n".join(lines) + f"\n\nThe peer's set-ups, tokens/s: {tried}"


def last_line(found: dict, device: str, versions: dict) -> dict:
    "The figures by depth, in the form that others read."
    def one(r: dict) -> dict:
        sides = r["sides"]
        return {"ours": sides["muon"]["tokens_per_s"], "peer": sides["peer"]["tokens_per_s"], "ratio": r["ratio"],
                "ratio_adamw": r["ratio_adamw"], "optimizer_share": sides["muon"]["optimizer_share"],
                "peak_mb": sides["muon"]["peak_mb"]}
    return {"device": device, "versions": versions, "depths": {str(d): one(r) for d, r in found.items()}}


def settings_of(args) -> dict:
    "What two measurements must have in common to stand in one file."
    return {k: getattr(args, k) for k in ("rows", "length", "vocab", "head_dim", "threads", "clock", "dtype", "compile")}


def keep(path: Path, result: dict, about: dict, found: dict):
    "Write the results, beside those of other depths that the file already holds for this device and these versions."
    old = json.loads(path.read_text()) if path.exists() else {}
    alike = all(r.get("settings") in (None, about.get("settings")) for r in old.get("detail", {}).values())     # older files do not say
    if not alike or any(old.get(k) != result[k] for k in ("device", "versions")): old = {"depths": {}, "detail": {}}
    depths = old["depths"] | result["depths"]
    detail = old["detail"] | {str(d): about | {"load": os.getloadavg()} | r for d, r in found.items()}
    order = sorted(depths, key=int)
    path.write_text(json.dumps(result | {"depths": {d: depths[d] for d in order}, "detail": {d: detail[d] for d in order}},
                               indent=1) + "\n")


def options(arguments: list[str] | None = None):
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, text in (
            ("rows", 16, "rows of a batch"), ("length", 256, "tokens of a row"), ("vocab", 1024, "tokens of the vocabulary"),
            ("head-dim", 64, "size of a head"), ("threads", 2, "threads of each side"), ("blocks", 12, "timed blocks of each side"),
            ("trials", 3, "blocks in which the peer's set-ups are raced"), ("seconds", 2.0, "of one block, about"),
            ("peak", 0.0, "TFLOP/s of the device, to print the share of it")):
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} (default {default})")
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 4, 6], help="layers; the width is 64 times as much")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="auto", help="ours: auto, float32 or bfloat16")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: seconds of the process, for one thread")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="set-ups of the peer to race")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="both sides as they are")
    parser.add_argument("--save", type=Path, help="where everything measured is written, as JSON")
    args = parser.parse_args(arguments)
    if args.device.partition(":")[0] not in ("cpu", "cuda"): parser.error(f"--device {args.device}: cpu or cuda; others are not waited for")
    if args.clock == "cpu" and args.threads != 1: parser.error("--clock cpu needs --threads 1: waiting threads count as busy")
    return args


def main(arguments: list[str] | None = None) -> dict:
    args = options(arguments)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"): os.environ[variable] = str(args.threads)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])     # the children's
    import torch
    from nanochat.workshop import machine
    facts = machine() | {"threads": args.threads}
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else facts["cpu"]
    versions = {"python": platform.python_version(), **{p: version(p) for p in ("torch", "transformers")}}
    found = {}
    for depth in args.depths:
        found[depth] = race(depth, args)
        print(table({depth: found[depth]}, args), flush=True)
        result = last_line(found, device, versions)
        if args.save:                                            # after each depth, so that an interruption costs one
            command = shlex.join(["python", "benchmarks/train.py", *(sys.argv[1:] if arguments is None else arguments)])
            keep(args.save, result, {"command": command, "date": str(date.today()), "machine": facts, "settings": settings_of(args)}, found)
    if len(found) > 1: print("\n" + table(found, args))
    print(json.dumps(result))
    return result


if __name__ == "__main__": main()
