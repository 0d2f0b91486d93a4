"""The program as a user meets it: whole runs at the smoke tier, mistakes, kills, own data."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nanochat import __main__ as program
from nanochat import train
from nanochat.report import SKILLS, STAGES
from nanochat.workshop import UserError

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--set", "base.steps=4", "--set", "mid.steps=2", "--set", "sft.steps=2", "--set", "rl.steps=1",
        "--set", "eval.items=4", "--set", "data.megabytes=0.4", "--set", "tokenizer.megabytes=0.2"]


def environment(home: Path) -> dict:
    return {**os.environ, "NANOCHAT_HOME": str(home), "NANOCHAT_COMPILE": "0", "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT)}


def nanochat(home: Path, *words: str, timeout: float = 300) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "nanochat", *words], cwd=ROOT, env=environment(home), text=True,
                          capture_output=True, timeout=timeout, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    "One whole smoke run, shared by the tests of this file."
    home = tmp_path_factory.mktemp("home")
    return home, nanochat(home, "run", "smoke", "--chat", *TINY)


@pytest.mark.slow
def test_a_whole_run_writes_every_stage_and_the_report(smoke):
    home, done = smoke
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((home / "smoke" / "report.json").read_text())
    assert set(report) == {"recipe", "seed", "commit", "data", "machine", "entropy_bpb", "seconds", "skills"}
    assert set(report["seconds"]) == {"tokenizer", "base", "mid", "sft", "rl", "eval", "total"}
    assert {"cpu", "cores", "ram_gb", "dtype", "threads", "torch"} == set(report["machine"])
    found = {(s["skill"], s["stage"]) for s in report["skills"]}
    assert {skill for skill, _ in found} == set(SKILLS)
    assert {stage for _, stage in found} == set(STAGES)
    for row in report["skills"]:
        if row["low"] is not None: assert row["low"] <= row["value"] <= row["high"]
    for stage in STAGES: assert list((home / "smoke" / stage).glob("step_*/model.safetensors"))


@pytest.fixture
def finished(smoke, tmp_path, monkeypatch) -> Path:
    "A copy of the finished run, alone in its home."
    shutil.copytree(smoke[0] / "smoke", tmp_path / "smoke")
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path))
    monkeypatch.setenv("NANOCHAT_COMPILE", "0")
    return tmp_path / "smoke"


@pytest.mark.slow
@pytest.mark.parametrize("words", [["base", "--set", "model.head_dim=7"], ["tokenizer", "--set", "tokenizer.vocab_size=10"],
                                   ["base", "--seed", "99999999999999999999999"], ["base", "--depth", "1000"]])
def test_what_cannot_work_is_refused_before_from_deletes_anything(finished, words, capsys):
    before = sorted(p.relative_to(finished) for p in finished.rglob("*"))
    assert program.main(["run", "smoke", *TINY, "--from", *words]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert sorted(p.relative_to(finished) for p in finished.rglob("*")) == before


@pytest.mark.slow
def test_a_damaged_finished_stage_must_be_redone_not_replaced_by_an_older_checkpoint(finished, capsys):
    weights = max(finished.glob("sft/step_*")) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert program.main(["run", "smoke", *TINY, "--from", "rl"]) == 2
    assert "redo the stage with --from sft" in capsys.readouterr().err and (finished / "rl" / "metrics.json").exists()
    shutil.rmtree(weights.parent)
    assert program.main(["chat", "--stage", "sft", "--ask", "hello"]) == 2
    assert "redo it with --from sft" in capsys.readouterr().err


@pytest.mark.slow
def test_run_json_of_another_form_and_empty_names_are_one_line(finished, capsys):
    assert program.main(["chat", "--name", "", "--ask", "hello"]) == 2
    assert program.main(["chat", "--ask", " "]) == 2 and program.main(["chat", "--ask", "long " * 400]) == 2
    for content in ("[]", "3", "null", '{"settings": {}}'):
        (finished / "run.json").write_text(content)
        assert program.main(["chat", "--ask", "hello"]) == 2, content
    assert all(line.startswith("nanochat: ") for line in capsys.readouterr().err.strip().splitlines())


@pytest.mark.slow
def test_a_reader_that_leaves_stops_no_run(smoke, tmp_path):
    "`| head -1` closes the output; the run goes on to its end."
    run = subprocess.Popen([sys.executable, "-m", "nanochat", "pretrain", "--recipe", "smoke", *TINY], cwd=ROOT, env=environment(tmp_path),
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    run.stdout.close()
    error = run.stderr.read().decode()
    assert run.wait(300) in (0, 141) and "Traceback" not in error and "Exception" not in error, error
    assert (tmp_path / "smoke" / "base" / "metrics.json").exists()


@pytest.mark.slow
def test_a_run_without_a_terminal_ends_in_a_dialogue(smoke):
    _, done = smoke
    assert "knows only the world" in done.stdout and done.stdout.count("you: ") == 5


@pytest.mark.slow
def test_a_finished_run_does_nothing_again(smoke):
    home, _ = smoke
    before = {p: p.stat().st_mtime_ns for p in (home / "smoke").glob("*/metrics.json")}
    again = nanochat(home, "run", "smoke", *TINY)
    assert again.returncode == 0, again.stderr
    assert before == {p: p.stat().st_mtime_ns for p in (home / "smoke").glob("*/metrics.json")}


@pytest.mark.slow
def test_a_changed_recipe_is_named(smoke):
    home, _ = smoke
    done = nanochat(home, "run", "smoke", *TINY, "--set", "base.warmdown=0.31")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert "base" in line and "0.31" in line and "--name" in line and "--from" in line


@pytest.mark.slow
@pytest.mark.parametrize("words, named", [
    (["run", "smoke", "--depth", "3"], "base"),                                    # run.json would say depth 3, the weights not
    (["tokenizer", "--recipe", "smoke", "--depth", "3"], "base"),                  # nor may a shorter run write that
    (["run", "smoke", "--seed", "7"], "tokenizer"),
    (["run", "smoke", "--from", "sft", "--set", "base.steps=3"], "base"),          # sft and rl would be gone
    (["pretrain", "--recipe", "smoke", "--from", "sft"], "--from sft")])
def test_a_refused_run_changes_nothing(smoke, words, named, monkeypatch, capsys):
    home, _ = smoke
    for key, value in environment(home).items(): monkeypatch.setenv(key, value)
    def state(): return {str(p): p.read_bytes() for p in (home / "smoke").rglob("*.json*")}
    before = state()
    assert program.main([words[0], *TINY, *words[1:]]) == 2
    assert named in capsys.readouterr().err and state() == before and len(before) > 10


@pytest.mark.slow
def test_chat_and_eval_find_the_newest_run(smoke):
    home, _ = smoke
    answer = nanochat(home, "chat", "--ask", "Who are you?")
    assert answer.returncode == 0 and "you: Who are you?" in answer.stdout
    measured = nanochat(home, "eval", "--stage", "base")
    assert measured.returncode == 0 and "bpb" in measured.stdout, measured.stderr


@pytest.mark.slow
def test_a_checkpoint_of_another_tokenizer_is_refused(smoke, tmp_path):
    import shutil
    home, _ = smoke
    shutil.copytree(home / "smoke", tmp_path / "mixed")
    from nanochat.tokenizer import Tokenizer
    Tokenizer.train(["other words than those"] * 3, 512).save(tmp_path / "mixed" / "tokenizer")
    done = nanochat(tmp_path, "chat", "--name", "mixed", "--ask", "Hello")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "tokenizer" in done.stderr or "shape" in done.stderr


@pytest.mark.parametrize("words, named", [
    (["run", "nothing"], "nothing"),
    (["sing"], "sing"),
    (["run", "smoke", "--volume", "11"], "--volume"),
    (["run", "smoke", "--set", "base.step=3"], "base.step"),
    (["run", "smoke", "--set", "base.steps=-3"], "base.steps"),
    (["run", "smoke", "--set", "base.steps=0"], "base.steps"),
    (["run", "smoke", "--set", "base.matrix_lr=nan"], "base.matrix_lr"),
    (["run", "smoke", "--set", "sft.warmdown=3.0"], "sft: "),
    (["run", "smoke", "--minutes", "0"], "--minutes"),
    (["run", "smoke", "--minutes", "nan"], "--minutes"),
    (["run", "smoke", "--set", "model.seq_len=0"], "model.seq_len"),
    (["run", "smoke", "--depth", "0"], "depth"),
    (["run", "smoke", "--data", "/nowhere/at/all"], "/nowhere/at/all"),
    (["run", "smoke", "--device", "cuda:7"], "cuda:7"),
    (["run", "smoke", "--name", "../up"], "../up"),
    (["run", "smoke", "--until", "dinner"], "dinner"),
    (["chat", "--name", "nobody"], "nobody"),
    (["chat"], "python -m nanochat run"),
    (["report", "nobody"], "nobody"),
])
def test_a_mistake_is_one_line_with_status_2(words, named, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path))
    monkeypatch.setenv("NANOCHAT_COMPILE", "0")
    assert program.main(words) == 2
    error = capsys.readouterr().err.strip()
    assert named in error and len(error.splitlines()) == 1 and error.startswith("nanochat: ")
    assert not list(tmp_path.rglob("step_*")), "nothing half-written"
    assert not list(tmp_path.glob("*/*/")), "no stage was begun"


@pytest.mark.parametrize("name, content", [("empty", {}), ("broken.parquet", {"a.parquet": b"no parquet"}),
                                           ("not text", {"a.txt": b"\xff\xfe\x00\xd8" * 50}),
                                           ("column", {"a.jsonl": b'{"body": "hello"}\n'})])
def test_a_bad_data_folder_is_named(name, content, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NANOCHAT_COMPILE", "0")
    folder = tmp_path / "texts"
    folder.mkdir()
    for file, data in content.items(): (folder / file).write_bytes(data)
    assert program.main(["run", "smoke", "--data", str(folder)]) == 2
    error = capsys.readouterr().err.strip()
    assert str(folder) in error and len(error.splitlines()) == 1


def own_texts(folder: Path) -> Path:
    folder.mkdir()
    lines = [f"Line {i}: the {a} {b} sat on the {c}." for i in range(60) for a in ("old", "young", "grey")
             for b in ("cat", "dog", "hen") for c in ("mat", "log", "roof")]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in lines))
    return folder


@pytest.mark.slow
def test_own_data_trains_and_says_what_does_not_apply(tmp_path):
    done = nanochat(tmp_path / "home", "run", "smoke", "--name", "own", "--data", str(own_texts(tmp_path / "texts")),
                    *TINY)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "home" / "own" / "report.json").read_text())
    rows = {(s["skill"], s["stage"]): s for s in report["skills"]}
    assert report["entropy_bpb"] is None and rows["bpb", "base"]["value"] > 0
    for skill in ("story", "core", "profile"):
        assert all(r["value"] is None for (s, _), r in rows.items() if s == skill)
    assert "not applicable: trained on" in (tmp_path / "home" / "own" / "report.md").read_text()


@pytest.mark.slow
def test_ctrl_c_saves_says_how_to_go_on_and_the_rest_is_equal(tmp_path):
    words = ["pretrain", "--recipe", "smoke", *TINY, "--set", "base.steps=30", "--set", "base.save_every=100"]
    child = subprocess.Popen([sys.executable, "-m", "nanochat", *words, "--name", "cut"], cwd=ROOT, text=True,
                             env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    log = tmp_path / "cut" / "base" / "log.jsonl"
    deadline = time.time() + 120
    while time.time() < deadline and (not log.exists() or len(log.read_text().splitlines()) < 3): time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    said, _ = child.communicate(timeout=120)
    assert child.returncode == 130, said[-2000:]
    assert "saved" in said and "same command" in said
    resumed = nanochat(tmp_path, *words, "--name", "cut")
    whole = nanochat(tmp_path, *words, "--name", "whole")
    assert resumed.returncode == whole.returncode == 0, resumed.stderr[-2000:]
    weights = [(tmp_path / n / "base" / "step_000030" / "model.safetensors").read_bytes() for n in ("cut", "whole")]
    assert weights[0] == weights[1], "a resumed run must end in the same bits"


def test_two_runs_in_one_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path))
    monkeypatch.setenv("NANOCHAT_COMPILE", "0")
    held = "from nanochat.checkpoint import Run\nwith Run('smoke').lock(): print('in', flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", held], cwd=ROOT, env=environment(tmp_path), text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline().strip() == "in"
    assert program.main(["run", "smoke", *TINY]) == 2
    assert "in use" in capsys.readouterr().err
    child.communicate("\n", timeout=30)


def test_minutes_that_are_refused_delete_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path))
    monkeypatch.setenv("NANOCHAT_COMPILE", "0")
    (tmp_path / "smoke" / "base").mkdir(parents=True)
    assert program.main(["run", "smoke", "--from", "base", "--minutes", "0"]) == 2
    assert "--minutes" in capsys.readouterr().err and (tmp_path / "smoke" / "base").is_dir()


def test_minutes_keep_what_was_decided_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path))
    kept = program.load_recipe("laptop")
    kept["base"]["steps"], kept["model"]["depth"] = 77, 3
    (tmp_path / "laptop").mkdir()
    (tmp_path / "laptop" / "run.json").write_text(json.dumps({"note": "to fit the time asked for: depth 3", "settings": kept}))
    seen = []
    def look(recipe, *rest):
        seen.append(recipe)
        raise UserError("seen")
    monkeypatch.setattr(program, "open_course", look)
    for words in (["--seed", "5"], ["--depth", "6"], ["--set", "base.rows=8"]):
        assert program.main(["run", "laptop", "--minutes", "5", *words]) == 2
    assert [r["base"]["steps"] for r in seen] == [77, 77, 77]
    assert [r["model"]["depth"] for r in seen] == [3, 6, 3] and seen[0]["seed"] == 5 and seen[2]["base"]["rows"] == 8


def test_minutes_that_change_nothing_are_a_decision_too(monkeypatch):
    monkeypatch.setattr(program, "step_seconds", lambda course: 1e-6)
    course = program.Course(program.load_recipe("laptop"), None, {"compile": False}, None)
    assert "nothing had to change" in program.fit_minutes(course, 60)       # so that the same command goes on


@pytest.mark.slow
def test_a_run_stays_on_its_device_and_can_be_used_anywhere(smoke, monkeypatch, capsys):
    home, _ = smoke
    for key, value in environment(home).items(): monkeypatch.setenv(key, value)
    kept, path = json.loads((home / "smoke" / "run.json").read_text()), home / "smoke" / "run.json"
    other = {"bfloat16": "float32", "float32": "bfloat16"}[kept["probed"]["dtype"]]
    assert program.main(["run", "smoke", *TINY, "--dtype", other]) == 2 and "--name NEW" in capsys.readouterr().err
    monkeypatch.setattr(program, "home", lambda: home)
    away = kept | {"probed": kept["probed"] | {"device": "cuda:7"}}
    try:
        path.write_text(json.dumps(away))
        assert program.main(["run", "smoke", *TINY, "--device", "cpu"]) == 2
        assert "was begun on cuda:7" in capsys.readouterr().err
        assert program.main(["chat", "--name", "smoke", "--ask", "Who are you?"]) == 0
    finally: path.write_text(json.dumps(kept))


def test_the_estimate_is_the_slowest_ranks_and_goes_by_parts(monkeypatch):
    recipe = program.load_recipe("smoke")
    course = program.Course(recipe, None, {"device": "cpu", "dtype": "float32", "compile": False}, None)
    seen = []
    monkeypatch.setattr(program.distributed, "gather_objects", lambda thing: [thing, 7.0])
    monkeypatch.setattr(program.train, "rows_that_fit", lambda model, rows: seen.append(rows) or 1)
    assert program.step_seconds(course) == 7.0 and seen == [recipe["base"]["rows"]]


def test_large_batches_get_five_rounds():
    from nanochat.gpt import GPT, config_for
    recipe = program.load_recipe("laptop")
    course = program.Course(recipe, None, {"device": "cpu", "dtype": "float32"}, None)
    with torch.device("meta"): model = GPT(config_for(4, 1024, 256, head_dim=64))
    def rounds(): return program.optimizer_maker(course)(model).param_groups[2]["ns_steps"]
    assert rounds() == 3                          # 4,096 tokens a step
    recipe["base"]["accumulate"] = 16             # 65,536
    assert rounds() == 5


def test_without_git_the_commit_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert program._commit() == "unknown"


def test_the_chat_at_the_end_is_with_the_last_stage(monkeypatch):
    from types import SimpleNamespace
    said, course = [], SimpleNamespace(run=SimpleNamespace(path=Path("nowhere")))
    monkeypatch.setattr(program, "train_command", lambda args, until: course)
    monkeypatch.setattr(program, "talk", lambda course, stage, temperature: said.append(stage))
    monkeypatch.setattr(program.Path, "read_text", lambda *a, **k: "")
    for until in ("sft", "rl", "tokenizer"):
        program.run_command(SimpleNamespace(until=until, chat=True))
    assert said == ["sft", "rl"]


def test_minutes_fits_steps_first_then_depth(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "step_seconds", lambda course: 0.05 * course.recipe["model"]["depth"] ** 2)
    course = program.Course(program.load_recipe("laptop"), None, {"compile": False}, None)
    before = course.recipe["base"]["steps"]
    note = program.fit_minutes(course, 10)
    assert program.estimate(course) < 11 * 60 and course.recipe["base"]["steps"] < before and note
    with pytest.raises(UserError, match="too short"): program.fit_minutes(course, 0.1)


@pytest.mark.slow
def test_two_processes_train_the_same_recipe(tmp_path):
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29577", "-m", "nanochat",
             "pretrain", "--recipe", "smoke", "--name", "pair", *TINY, "--minutes", "60",      # decided together
             "--set", "base.rows=8", "--dtype", "float32"]             # rows of an update, however many processes
    done = subprocess.run(words, cwd=ROOT, env=environment(tmp_path), text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    single = nanochat(tmp_path, "pretrain", "--recipe", "smoke", "--name", "one", *TINY, "--set", "base.rows=8",
                      "--dtype", "float32")
    assert single.returncode == 0, single.stderr[-2000:]
    from safetensors.torch import load_file
    pair, one = (load_file(tmp_path / n / "base" / "step_000004" / "model.safetensors") for n in ("pair", "one"))
    for name in one:      # AdamW divides by almost nothing for rare tokens, so single entries may differ visibly
        assert (pair[name] - one[name]).norm() < 1e-4 * one[name].norm(), name


@pytest.mark.slow
def test_no_process_reads_weights_that_are_still_being_written(tmp_path):
    "The next stage of rank 1 began with an older checkpoint, or with none, when rank 0's disk was slow."
    script = tmp_path / "slow_disk.py"
    script.write_text("""
import sys, time
from nanochat import __main__ as program, checkpoint
publish = checkpoint._publish
def slowly(temp, final): time.sleep(6 if "base" in str(final) else 0); publish(temp, final)
checkpoint._publish = slowly
sys.exit(program.main(sys.argv[1:]))
""")
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29578", str(script), "midtrain",
             "--recipe", "smoke", "--name", "slow", *TINY, "--set", "base.save_every=100", "--dtype", "float32"]
    done = subprocess.run(words, cwd=ROOT, env=environment(tmp_path), text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("change, said", [
    ({"rl": {"task": "story"}}, "rl.task: 'story' is none of"), ({"rl": {"task": "nosuch"}}, "rl.task"),
    ({"rl": {"samples": 1}}, "rl.samples must be 2 or more"), ({"rl": {"mixture": [["story", 1, 5]]}}, "rl.mixture: no task 'story'"),
    ({"sft": {"mixture": [["word1", 1]]}}, "sft.mixture: .* must be \\[task, times, rows\\]"),
    ({"sft": {"mixture": [["wrod1", 1, 20]]}}, "sft.mixture: no task 'wrod1'"), ({"mid": {"mixture": [["word1", 1, -5]]}}, "mid.mixture"),
    ({"mid": {"mixture": [["humaneval", 1, 5]]}}, "no task 'humaneval'"), ({"mid": {"mixture": [["word1", 1.5, 5]]}}, "must be")])
def test_a_recipe_that_would_fail_after_hours_is_refused_at_once(change, said):
    recipe = program._join(program.load_recipe("smoke"), change)
    with pytest.raises(UserError, match=said): program.check_recipe(recipe)


def test_rows_that_the_processes_cannot_share_are_refused(monkeypatch):
    monkeypatch.setattr(program, "ranks", lambda: (0, 0, 3))
    with pytest.raises(UserError, match="16 rows or prompts cannot be shared by 3 processes"): program.check_recipe(program.load_recipe("laptop"))


def test_hub_tasks_take_the_training_split_and_so_many_rows(monkeypatch):
    asked = []
    def rows(path, config, split):
        asked.append((path, config, split))
        return [{"question": f"q{i}?", "choices": list("wxyz"), "answer": i % 4, "subject": "s"} for i in range(50)]
    monkeypatch.setattr(program.tasks, "hub_rows", rows)
    task = program.named_task(None, "mmlu", 7, 0)
    assert asked == [("cais/mmlu", "all", "auxiliary_train")] and len(task) == 7 and task[6]["messages"]


# ---- what the roof does on the way

def base_log(home: Path, name: str, *words: str) -> list[dict]:
    "Pretrain a tiny model in this process; the records of its log."
    assert program.main(["pretrain", "--recipe", "smoke", "--name", name, *TINY, *words]) == 0
    return [json.loads(line) for line in (home / name / "base" / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def in_process(tmp_path, monkeypatch) -> Path:
    for key, value in environment(tmp_path).items(): monkeypatch.setenv(key, value)
    return tmp_path


def test_base_is_watched_and_rows_are_split_where_memory_is_short(in_process, monkeypatch, capsys):
    whole = base_log(in_process, "whole", "--set", "base.eval_every=2", "--dtype", "float32")
    seen = [r["evals"] for r in whole if "evals" in r]
    assert len(seen) == 1 and {"val", "core", "sample"} <= seen[0].keys()
    skills = {row["skill"]: row["value"] for part in ("val", "core") for row in seen[0][part]["skills"]}
    assert 1 < skills["bpb"] < 10 and "core_schema" in skills
    assert seen[0]["sample"]["text"].startswith("One day") and seen[0]["sample"]["text"] in capsys.readouterr().out

    def two_rows(size):
        if size > 2: raise torch.OutOfMemoryError
    monkeypatch.setattr(train, "_counts", lambda model, hold: two_rows)
    parts = base_log(in_process, "parts", "--set", "base.eval_every=2", "--dtype", "float32")
    assert "2 of 8 rows at a time" in capsys.readouterr().out
    losses = lambda log: [r["loss"] for r in log if "loss" in r]
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-4)


def test_wandb_hears_all_that_the_log_says(in_process, monkeypatch, capsys):
    from types import SimpleNamespace
    heard, opened = [], []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(
        init=lambda **about: opened.append(about) or SimpleNamespace(log=lambda numbers, step: heard.append((step, numbers)))))
    log = base_log(in_process, "told", "--wandb", "course")
    assert [about["project"] for about in opened] == ["course"] and "told base" == opened[0]["name"]
    assert [step for step, _ in heard] == [r["step"] for r in log]
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert program.main(["pretrain", "--recipe", "smoke", "--name", "mute", *TINY, "--wandb", "course"]) == 2
    assert "pip install wandb" in capsys.readouterr().err
