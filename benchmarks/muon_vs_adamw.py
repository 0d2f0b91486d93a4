"""Does Muon reach in 108 seconds what AdamW reaches in 180? On the microworld, each at its own best learning rate.

    python benchmarks/muon_vs_adamw.py                             the bar: depth 4, 16 x 256 tokens, 108 s against 180 s
    python benchmarks/muon_vs_adamw.py --adamw-steps 300 --depth 2 --rows 8 --seq-len 128 --out results/x.json   short

1. Time: blocks of steps of both, in turns; a second is a number of steps times the median step.
2. Sweep: AdamW's matrix and embedding rates, apart, for the whole 180 s. The grid grows until its best is not at an edge.
3. Race: AdamW at its best rates and Muon at the package's rates, whose whole schedule lasts 108 s; three seeds. Beside it
   Muon with as many seconds as AdamW.

Every finished run goes into the JSON file at once, so the script can be stopped and started again; `--part` runs one of
the three. With `--adamw-steps N` AdamW gets N steps and Muon what fits into 108/180 of that time: a short version, or a
new Muon against old runs of AdamW. `results/muon_vs_adamw.json` was made with `--adamw-steps 1288`; other settings need an
`--out` of their own.
"""
import argparse
import json
import math
import statistics
import sys
import time
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from nanochat import data, microworld, workshop
from nanochat.gpt import GPT, config_for
from nanochat.muon import make_adamw, make_optimizer
from nanochat.optim import schedule
from nanochat.tokenizer import Tokenizer
from nanochat.train import compile_forward, evaluate_bpb, train

HERE = Path(__file__).resolve().parent
FACTOR = 2.0                                # between neighbours of the sweep
# The rule, and the seconds of its whole schedule.
RACES = {"Muon": ("Muon", 108), "AdamW": ("AdamW", 180), "Muon for 180 s": ("Muon", 180)}


def world(a) -> dict:
    "Packed rows to train on and to measure on, and the counted entropy; the same for every run."
    documents = microworld.corpus(int(a.megabytes * 1e6), 0)
    held = microworld.validation(int(a.val_kilobytes * 1e3), 0, exclude={d.text for d in documents})
    texts = [d.text for d in documents]
    size, sample = 0, []
    for text in texts:
        sample.append(text)
        size += len(text.encode())
        if size > 4e6: break
    tokenizer = Tokenizer.train(sample, a.vocab_size)
    pack = lambda texts: data.pack_documents(data.encode_documents(tokenizer, texts), a.seq_len)
    return {"train": pack(texts), "val": pack([d.text for d in held]), "bytes": tokenizer.token_bytes(),
            "entropy_bpb": microworld.entropy_bpb(held), "vocab_size": tokenizer.vocab_size}


def start(a, w: dict, seed: int) -> GPT:
    "An untrained model on this machine, in its fastest dtype."
    model = GPT(config_for(a.depth, w["vocab_size"], a.seq_len, head_dim=64), seed)
    model.compute_dtype = a.dtype
    return model


def bpb(a, w: dict, model: GPT) -> float:
    "Bits per byte on held-out text."
    rows = w["val"]
    batches = ((rows.x[i : i + 32].long(), rows.y[i : i + 32].long()) for i in range(0, len(rows), 32))
    return evaluate_bpb(model.eval(), batches, w["bytes"])["bpb"]


def run(a, w: dict, make, steps: int, seed: int = 0, accumulate: int = 1) -> dict:
    "Train from the beginning to the end of the schedule, and measure. A run that diverges says so."
    model = start(a, w, seed)
    loader = data.Loader(w["train"], a.rows, seed=seed)
    began, losses = time.perf_counter(), []
    try:
        for record in train(model, make(model), loader, steps=steps, accumulate=accumulate, forward=compile_forward(model),
                            schedule=lambda t: schedule(t, steps, warmdown=0.6)):
            losses.append(round(record.loss, 4))
        end = bpb(a, w, model)
    except workshop.UserError as e: return {"bpb": None, "error": str(e), "steps": steps, "seed": seed}
    return {"bpb": end, "steps": steps, "seed": seed, "wall_s": round(time.perf_counter() - began, 1),
            "losses": losses[:: max(1, len(losses) // 50)]}


class Results:
    "A JSON file that grows by one finished run at a time."
    def __init__(self, path: Path, head: dict):
        self.path = path
        self.data = json.loads(path.read_text()) if path.exists() else head | {"runs": {}}
        if any(self.data[key] != head[key] for key in ("settings", "dtype")):
            sys.exit(f"{path} belongs to other settings or another dtype; give --out another name")

    def get(self, name: str, make) -> dict:
        "The stored result of that name, or that of `make()`, stored now."
        if name not in self.data["runs"]:
            self.data["runs"][name] = make()
            self.save()
            r = self.data["runs"][name]
            print(name, r.get("bpb"), f"{r.get('wall_s', 0):.0f} s", flush=True)
        return self.data["runs"][name]

    def save(self) -> None:
        self.path.parent.mkdir(exist_ok=True)
        workshop.atomic_write(self.path, json.dumps(self.data, indent=1))


def step_times(a, w: dict, blocks: int = 12, size: int = 4) -> dict:
    "Median seconds of a step of each rule, in turns, after warming up."
    makers = {"Muon": partial(make_optimizer, ns_dtype=a.dtype), "AdamW": make_adamw}
    runs = {}
    for name, make in makers.items():
        model = start(a, w, 0)
        runs[name] = train(model, make(model), data.Loader(w["train"], a.rows, seed=0), steps=10**9, schedule=lambda t: 0.1,
                           forward=compile_forward(model))
        for _ in islice(runs[name], 3): pass
    seconds = {name: [] for name in runs}
    for _ in range(blocks):
        for name, steps in runs.items(): seconds[name] += [r.seconds for r in islice(steps, size)]
    return {name: statistics.median(s) for name, s in seconds.items()}


def grid(results: Results, trial, axes: list[list[float]]) -> tuple[tuple, dict]:
    "The best place, and the result at each, of a grid that grows wherever its best is at an edge; infinity where a run diverged."
    while True:
        value = {}
        for place in ((x, y) for x in axes[0] for y in axes[1]):
            r = results.get("sweep matrix {:g} embedding {:g}".format(*place), partial(trial, *place))
            value[place] = math.inf if r["bpb"] is None else r["bpb"]
        best = min(value, key=value.get)
        if math.isinf(value[best]): sys.exit("every run of the sweep diverged")
        grown = False
        for axis, at in zip(axes, best):
            if at == axis[0]: axis.insert(0, axis[0] / FACTOR); grown = True
            elif at == axis[-1]: axis.append(axis[-1] * FACTOR); grown = True
        if not grown: return best, value


def main(argv=None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--depth", type=int, default=4)
    p.add_argument("--rows", type=int, default=16)
    p.add_argument("--seq-len", type=int, default=256)
    p.add_argument("--vocab-size", type=int, default=1024)
    p.add_argument("--megabytes", type=float, default=12.0)
    p.add_argument("--val-kilobytes", type=float, default=300)
    p.add_argument("--adamw-steps", type=int, help="so many steps instead of what fits into 180 s")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--part", choices=("time", "sweep", "race", "all"), default="all")
    p.add_argument("--out", type=Path, default=HERE / "results" / "muon_vs_adamw.json")
    a = p.parse_args(argv)
    settings = {k: v for k, v in vars(a).items() if k not in ("part", "out", "seeds")}
    workshop.keep_memory()
    a.dtype = workshop.pick_dtype(torch.device("cpu"))
    results = Results(a.out, {"command": "python benchmarks/muon_vs_adamw.py " + " ".join(sys.argv[1:]), "settings": settings,
                              "machine": workshop.machine(), "dtype": str(a.dtype)})
    w = world(a)
    results.data["entropy_bpb"] = w["entropy_bpb"]
    times = results.get("time", lambda: step_times(a, w))
    full = RACES["AdamW"][1]
    whole = (a.adamw_steps or round(full / times["AdamW"])) * times["AdamW"]                # what stands for 180 s
    steps = {name: round(whole * seconds / full / times[rule]) for name, (rule, seconds) in RACES.items()}
    if a.part == "time": return print(json.dumps(times))
    adamw = lambda matrix, embedding: partial(make_adamw, matrix_lr=matrix, embedding_lr=embedding)
    best, swept = grid(results, lambda m, e: run(a, w, adamw(m, e), steps["AdamW"]), [[0.0015, 0.003, 0.006], [0.1, 0.2, 0.4]])
    if a.part == "sweep": return print(json.dumps({"best": best}))
    rules = {"Muon": lambda n: partial(make_optimizer, ns_dtype=a.dtype, batch_tokens=a.rows * a.seq_len, steps=n),
             "AdamW": lambda n: adamw(*best)}
    ends = {name: [results.get(f"race {name} seed {s}", lambda: run(a, w, rules[rule](steps[name]), steps[name], s))["bpb"]
                   for s in range(a.seeds)] for name, (rule, _) in RACES.items()}
    results.data["summary"] = {"steps": steps, "step_seconds": times, "adamw_best": dict(zip(("matrix", "embedding"), best)),
                               "sweep": [[*place, None if math.isinf(end) else end] for place, end in swept.items()],
                               "seconds": {name: seconds for name, (_, seconds) in RACES.items()},
                               "bpb": ends, "mean": {n: None if None in e else sum(e) / len(e) for n, e in ends.items()},      # None: it diverged
                               "held": all(m is not None and m <= min(e for e in ends["AdamW"] if e is not None) for m in ends["Muon"])}
    results.save()
    print(json.dumps(results.data["summary"]))


if __name__ == "__main__": main()
