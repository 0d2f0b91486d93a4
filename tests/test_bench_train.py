"benchmarks/train.py at a tiny size: it runs, says what issue readers parse, and refuses two sides that are not one function."
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "train.py"
TINY = ("--depths 1 --rows 2 --length 16 --vocab 64 --threads 1 --blocks 2 --trials 1 --seconds 0.001 --no-compile "
        "--dtype float32 --peers").split() + ["eager float32"]


@pytest.fixture(scope="module")
def bench():
    "The script as a module."
    spec = importlib.util.spec_from_file_location("bench_train", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def side(name: str, start=4.0, losses=(4.0, 3.9, 3.8), dtype="float32"):
    "What a process says of itself."
    return SimpleNamespace(name=name, facts={"start": start, "losses": list(losses), "dtype": dtype})


def test_the_comparison_runs_and_its_last_line_is_json(tmp_path):
    saved = tmp_path / "train.json"
    done = subprocess.run([sys.executable, str(SCRIPT), *TINY, "--save", str(saved)], capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "TRANSFORMERS_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {"device", "versions", "depths"} and set(result["depths"]) == {"1"}
    one = result["depths"]["1"]
    assert set(one) == {"ours", "peer", "ratio", "ratio_adamw", "optimizer_share", "peak_mb"}
    assert one["ratio"] == pytest.approx(one["ours"] / one["peer"], abs=0.01) and 0 < one["optimizer_share"] < 1
    kept = json.loads(saved.read_text())
    assert kept["depths"] == result["depths"]
    detail = kept["detail"]["1"]
    assert detail["blocks"] == 2 and detail["losses"] == pytest.approx(detail["peer_losses"], abs=1e-4)
    assert "--no-compile" in detail["command"] and "| 1 | ours, Muon, float32 |" in done.stdout


def test_sides_that_are_not_one_function_are_not_timed(bench):
    ours, peer = side("ours adamw"), side("theirs eager float32")
    bench.same_function([ours, side("ours muon", losses=(4.0, 3.5, 3.1)), peer])     # another optimizer, another way down
    with pytest.raises(SystemExit, match="not the same function"):
        bench.same_function([ours, side("theirs eager float32", start=4.001)])
    with pytest.raises(SystemExit, match="compiled losses"):
        bench.same_function([ours, side("theirs eager float32", losses=(4.0, 3.9, 3.81))])     # gradients or updates differ
    bench.same_function([ours, side("theirs eager bfloat16", losses=(4.0, 3.9, 3.81), dtype="bfloat16")])
    with pytest.raises(SystemExit, match="compiled losses"):
        bench.same_function([ours, side("theirs eager bfloat16", losses=(4.0, 3.9, 3.9), dtype="bfloat16")])


def test_results_of_other_depths_stay_and_those_of_another_machine_go(bench, tmp_path):
    path = tmp_path / "train.json"
    for depth in ("4", "2"):
        bench.keep(path, {"device": "a", "versions": {}, "depths": {depth: {"ours": 1}}}, {}, {int(depth): {"blocks": 10}})
    assert list(json.loads(path.read_text())["depths"]) == ["2", "4"]
    bench.keep(path, {"device": "b", "versions": {}, "depths": {"6": {"ours": 1}}}, {}, {6: {"blocks": 10}})
    assert list(json.loads(path.read_text())["depths"]) == list(json.loads(path.read_text())["detail"]) == ["6"]


def test_cpu_seconds_are_for_one_thread(bench):
    assert bench.options(["--clock", "cpu", "--threads", "1"]).clock == "cpu"
    with pytest.raises(SystemExit): bench.options(["--clock", "cpu"])
