"""What does compute buy? Many small models on the microworld, each trained for several lengths, each with its own schedule.

    OMP_NUM_THREADS=1 nice -n 10 python benchmarks/scaling.py            # the whole grid; interrupt it, start it again
    python benchmarks/scaling.py --show                                  # the table and the fit, from what is there

Every run is (layers, width, tokens, rate, seed) and is stored in results/scaling.json the moment it ends; what is there is
not run again. The optimizer is lesson 02d's AdamW with one rule for all shapes: the rate of matrices and head falls like
1 / width, that of the embedding stays. The runs with a rate that is not 1 check the rule; those in HELD_OUT are
predicted by a fit to the others and take no part in it. The last line is one JSON object.
"""
import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch

from nanochat.data import Loader, encode_documents, pack_documents
from nanochat.gpt import GPT, GPTConfig
from nanochat.microworld import corpus, entropy_bpb, validation
from nanochat.optim import AdamW, schedule
from nanochat.tokenizer import Tokenizer
from nanochat.train import evaluate_bpb, fit_power_law, predict_loss, train
from nanochat.workshop import atomic_write, machine

RESULT = Path(__file__).parent / "results" / "scaling.json"
V, T, ROWS = 512, 128, 16                        # vocabulary, context, rows: 2,048 tokens an update
LENGTHS = {(1, 32): 4, (1, 64): 4, (2, 64): 3, (4, 64): 3, (1, 128): 2}         # (layers, width): 2^17 tokens, twice that, ...
HELD_OUT = [(2, 128, 2**17), (2, 64, 2**20)]     # a larger model than any in the fit, and a run with more operations
RATES = {"embedding": 0.1, "matrices": 0.016, "head": 0.016}                  # at width 64


def plan() -> list[tuple]:
    "All runs as (layers, width, tokens, rate, seed), the quick ones first."
    check = [(L, C, 2**17, rate, 0) for L, C in ((1, 64), (2, 128)) for rate in (0.5, 2.0)]
    noise = [(1, 64, 2**18, 1.0, seed) for seed in (1, 2)]
    grid = [(L, C, 2**(17 + k), 1.0, 0) for (L, C), n in LENGTHS.items() for k in range(n)]
    last = [(*run, 1.0, 0) for run in HELD_OUT]
    return sorted(check + noise + grid, key=lambda r: r[0] * r[1]**2 * r[2]) + last


def optimizer_for(model: GPT, rate: float) -> AdamW:
    "AdamW by part; matrices and head at a rate that falls like 1 / width."
    narrow = {"embedding": 1.0, "matrices": 64 / model.config.n_embd, "head": 64 / model.config.n_embd}
    return AdamW([{"params": ps, "lr": rate * narrow[k] * RATES[k]} for k, ps in model.parts().items()],
                 betas=(0.9, 0.95))


def one_run(rows, val, token_bytes, layers: int, width: int, tokens: int, rate: float, seed: int) -> dict:
    "Train one model; what is known at its end, and its loss curve in 64 points."
    model = GPT(GPTConfig(V, T, layers, width // 16, width // 16, width), seed)
    steps, curve, began = tokens // (ROWS * T), [], time.perf_counter()
    for r in train(model, optimizer_for(model, rate), Loader(rows, ROWS, seed=seed), steps=steps,
                   schedule=lambda t: schedule(t, steps, warmdown=0.5)):
        if r.step % max(1, steps // 64) == 0: curve.append([r.loss_step, round(r.loss, 4)])
    seconds = time.perf_counter() - began
    batches = ((val.x[i : i + 32].long(), val.y[i : i + 32].long()) for i in range(0, len(val), 32))
    counts = model.num_params()
    return {"layers": layers, "width": width, "tokens": tokens, "rate": rate, "seed": seed, "steps": steps,
            "weights": counts["matrices"] + counts["head"], "parameters": counts["total"],
            "flops": model.flops_per_token() * tokens, "seconds": round(seconds, 1), "curve": curve,
            "bpb": evaluate_bpb(model, batches, token_bytes)["bpb"]}


def main(minutes: float) -> None:
    "Do what is missing, for at most so long."
    torch.set_num_threads(1)
    began, found = time.perf_counter(), json.loads(RESULT.read_text()) if RESULT.exists() else {"runs": []}
    key = lambda r: tuple(r[k] for k in ("layers", "width", "tokens", "rate", "seed"))
    todo = [run for run in plan() if run not in {key(r) for r in found["runs"]}]
    if not todo: return
    docs, val = corpus(6_500_000, 0), validation(200_000, 0)
    tokenizer = Tokenizer.train([d.text for d in docs[:3000]], V)
    rows = pack_documents(encode_documents(tokenizer, [d.text for d in docs]), T)
    val_rows = pack_documents(encode_documents(tokenizer, [d.text for d in val]), T)
    assert rows.x.numel() >= max(D for *_, D in HELD_OUT), "each run reads every row once at most"
    size, n = sum(len(d.text.encode()) for d in docs), rows.x.numel()
    found |= {"entropy_bpb": entropy_bpb(val), "bytes_per_token": size / n, "vocabulary": V, "context": T, "rates": RATES,
              "tokens_a_step": ROWS * T, "held_out": HELD_OUT, "machine": machine(),
              "command": "OMP_NUM_THREADS=1 python benchmarks/scaling.py"}
    for run in todo:
        if time.perf_counter() - began > 60 * minutes: break
        found["runs"].append(one_run(rows, val_rows, tokenizer.token_bytes(), *run))
        atomic_write(RESULT, json.dumps(found, indent=None).replace('{"layers"', '\n{"layers"') + "\n")
        print({k: v for k, v in found["runs"][-1].items() if k != "curve"}, flush=True)


def report(found: dict) -> dict:
    "The table, the law, and what it says about the runs that took no part in the fit."
    runs = [r for r in found["runs"] if r["rate"] == 1 and r["seed"] == 0]
    held = {tuple(h) for h in found["held_out"]}
    inside = [r for r in runs if (r["layers"], r["width"], r["tokens"]) not in held]
    if len(inside) < 5: return {"law": None, "held_out": {}}            # the grid is not far enough
    law = fit_power_law(*([r[k] for r in inside] for k in ("weights", "tokens", "bpb")), floor=found["entropy_bpb"])
    for r in runs:
        r["predicted"] = predict_loss(law, r["weights"], r["tokens"])
        print(f"{r['layers']} x {r['width']:3d}  {r['tokens']:9,} tokens  {r['bpb']:.3f}  predicted {r['predicted']:.3f}", "" if r in inside else "held out")
    return {"law": law, "held_out": {str((r["layers"], r["width"], r["tokens"])): [r["bpb"], r["predicted"]] for r in runs if r not in inside}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after the run that is under way then")
    parser.add_argument("--show", action="store_true", help="train nothing")
    args = parser.parse_args()
    if not args.show: main(args.minutes)
    if not RESULT.exists(): sys.exit(f"{RESULT} is not there yet; leave out --show")
    print(json.dumps(report(json.loads(RESULT.read_text()))))
