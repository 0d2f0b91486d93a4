"""Is the package's learning-rate rule near the best one, at small and large batches, small and larger depths?

    python benchmarks/lr_rule.py                        all cases: hours
    python benchmarks/lr_rule.py --part d2-4096         one case: d2-4096 d4-4096 d6-4096 d2-65536 d4-65536 d6-65536

A case is a depth and a number of tokens per update. The rates are those of `make_optimizer(model, batch_tokens=..., steps=...)`, all
multiplied by one number: five powers of 1.5 around 1 (three at depth 6). Where the best is at an edge, the row grows (not at depth 6). The best
and the rule itself (multiplier 1) are then run with three seeds; the bar is that the rule ends within 3% of the best.
`--scale 0.1` gives every run a tenth of its tokens: a short version for trying the script, which is no measurement of the bar.
`--timid` adds one run at published nanochat's rule, the square root of the batch over 524,288 tokens.
Every finished run goes into the JSON file at once; start again to go on. `results/lr_rule.json` was made with `--rounds 5`;
other settings need an `--out` of their own.
"""
import argparse
import json
import math
import sys
from functools import partial
from pathlib import Path

import torch
from muon_vs_adamw import HERE, Results, run, world

from nanochat import workshop
from nanochat.muon import make_optimizer, ns_rounds
from nanochat.optim import horizon_scale

FACTOR, MICRO = 1.5, 16                       # between neighbours; rows that are worked on at once
TOKENS = {4096: 3e6, 65536: 8e6}              # of a whole run, by tokens per update


def best_of(results: Results, case: str, trial, powers: list[int], grow: bool) -> int:
    "The power of 1.5 with the lowest bits per byte; the row grows where the best is at an edge."
    while True:
        found = {k: results.get(f"{case} power {k} seed 0", partial(trial, FACTOR**k, 0))["bpb"] for k in powers}
        best = min(found, key=lambda k: math.inf if found[k] is None else found[k])
        if found[best] is None: sys.exit(f"{case}: every run diverged")
        if not grow or best not in (powers[0], powers[-1]): return best
        powers = [powers[0] - 1, *powers] if best == powers[0] else [*powers, powers[-1] + 1]


def measure(a, w: dict, results: Results, depth: int, batch: int) -> dict:
    "One case: the sweep, then the rule and the winner on more seeds."
    case, steps = f"d{depth}-{batch}", max(1, round(a.scale * TOKENS[batch] / batch))
    settings = argparse.Namespace(**vars(a) | {"depth": depth, "rows": MICRO})
    def trial(multiplier, seed):
        make = partial(make_optimizer, lr_scale=multiplier, batch_tokens=batch, steps=steps, ns_dtype=a.dtype,
                       ns_steps=a.rounds or ns_rounds(64 * depth, batch))
        return run(settings, w, make, steps, seed, accumulate=batch // (MICRO * a.seq_len))
    best = best_of(results, case, trial, [-1, 0, 1] if depth == 6 else [-2, -1, 0, 1, 2], grow=depth < 6)
    if a.timid: results.get(f"{case} published rule seed 0", lambda: trial((batch / 2**19) ** 0.5 / horizon_scale(steps), 0))
    ends = {k: [results.get(f"{case} power {k} seed {s}", partial(trial, FACTOR**k, s))["bpb"] for s in range(a.seeds)]
            for k in sorted({0, best})}
    mean = {k: math.inf if None in e else sum(e) / len(e) for k, e in ends.items()}      # None: that run diverged
    summary = {"steps": steps, "best_power": best, "mean": {k: None if math.isinf(m) else m for k, m in mean.items()}, "seeds": a.seeds,
               "rule_over_best": mean[0] / mean[best], "held": mean[0] <= 1.03 * mean[best]}
    results.data.setdefault("summary", {})[case] = summary
    results.save()
    return summary


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--part", help="one case, such as d2-4096")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--scale", type=float, default=1.0, help="share of the tokens of each run; below 1 nothing is proved")
    p.add_argument("--megabytes", type=float, default=12.0, help="text of the world")
    p.add_argument("--timid", action="store_true")
    p.add_argument("--rounds", type=int, default=0, help="of Newton-Schulz; 0: as many as a recipe would make (results/lr_rule.json has 5)")
    p.add_argument("--out", type=Path, default=HERE / "results" / "lr_rule.json")
    a = p.parse_args()
    a.seq_len, a.vocab_size, a.val_kilobytes = 256, 1024, 25 * a.megabytes
    cases = [(d, b) for b in TOKENS for d in (2, 4, 6)]
    chosen = [(d, b) for d, b in cases if a.part in (None, f"d{d}-{b}")]
    if not chosen: p.error(f"there is no case {a.part!r}: " + ", ".join(f"d{d}-{b}" for d, b in cases))
    workshop.keep_memory()
    a.dtype = workshop.pick_dtype(torch.device("cpu"))
    results = Results(a.out, {"command": "python benchmarks/lr_rule.py " + " ".join(sys.argv[1:]),
                              "settings": {"seq_len": 256, "vocab_size": 1024, "megabytes": a.megabytes, "micro_batch": MICRO, "scale": a.scale, "rounds": a.rounds,
                                           "tokens": {str(k): v for k, v in TOKENS.items()}},
                              "machine": workshop.machine(), "dtype": str(a.dtype)})
    w = world(a)
    results.data["entropy_bpb"] = w["entropy_bpb"]
    for depth, batch in chosen: print(f"d{depth}-{batch}", json.dumps(measure(a, w, results, depth, batch)), flush=True)


if __name__ == "__main__": main()
