"The report: exact names, honest gaps, sums of times, comparisons."
import json

import pytest

from nanochat.report import SKILLS, STAGES, compare_figure, compare_runs, read_run, skills_table, write_report
from nanochat.workshop import UserError

MACHINE = {"cpu": "C|PU", "cores": 2, "ram_gb": 8.0, "dtype": "float32", "threads": 2, "torch": "2.13", "gpu": None}


def row(skill, value, low=None, high=None, items=200, **more):
    return {"skill": skill, "value": value, "items": items, "low": low, "high": high, **more}


def make_run(folder, stages, **facts):
    "Write a run's files by hand."
    folder.mkdir(parents=True)
    for stage, metrics in stages.items():
        (folder / stage).mkdir()
        (folder / stage / "metrics.json").write_text(json.dumps(metrics))
    known = {"recipe": "laptop", "seed": 3, "commit": "abc", "data": "microworld", "machine": MACHINE, "entropy_bpb": 0.3}
    (folder / "run.json").write_text(json.dumps(known | facts))
    return folder


FULL = {"tokenizer": {"seconds": 2.5},
        "base": {"seconds": 100, "eval_seconds": 3, "skills": [row("bpb", 0.41), row("letter_choice", .25, .2, .31)]},
        "mid": {"seconds": 40, "eval_seconds": 4, "skills": [row("letter_choice", .7, .63, .76)]},
        "sft": {"seconds": 30.25, "skills": [row("profile", .9, .85, .93), row("word_hard", .2, .15, .26)]},
        "rl": {"seconds": 60, "eval_seconds": 5, "skills": [row("word_hard", .5, .43, .57), row("profile", .88, .83, .92)]}}


def test_record_has_exactly_the_promised_form(tmp_path):
    record = write_report(make_run(tmp_path / "a", FULL))
    assert list(record) == ["recipe", "seed", "commit", "data", "machine", "entropy_bpb", "seconds", "skills"]
    assert list(record["machine"]) == ["cpu", "cores", "ram_gb", "dtype", "threads", "torch"]
    assert record["seconds"] == {"tokenizer": 2.5, "base": 100, "mid": 40, "sft": 30.25, "rl": 60, "eval": 12, "total": 244.75}
    assert all(list(r) == ["skill", "stage", "value", "items", "low", "high"] for r in record["skills"])
    assert [(r["skill"], r["stage"]) for r in record["skills"]] == [
        ("bpb", "base"), ("letter_choice", "base"), ("letter_choice", "mid"), ("profile", "sft"), ("profile", "rl"),
        ("word_hard", "sft"), ("word_hard", "rl")]
    assert json.loads((tmp_path / "a" / "report.json").read_text()) == record
    assert set(STAGES) == {"base", "mid", "sft", "rl"} and len(set(SKILLS)) == 14


def test_the_total_is_never_less_than_its_parts(tmp_path):
    "A hard kill stops the clock on the wall; the stages' own seconds are in their files."
    for wall, total in ((40.0, 244.75), (300.0, 300.0)):
        assert write_report(make_run(tmp_path / str(wall), FULL, wall_seconds=wall))["seconds"]["total"] == total


def test_page_shows_every_value_in_its_column(tmp_path):
    make_run(tmp_path / "a", FULL)
    write_report(tmp_path / "a")
    lines = (tmp_path / "a" / "report.md").read_text().splitlines()
    cells = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in lines if line.startswith("|")}
    assert cells["skill"] == ["base", "mid", "sft", "rl"]
    assert cells["word hard"] == ["", "", "0.200 (0.15 to 0.26, n=200)", "0.500 (0.43 to 0.57, n=200)"]
    assert cells["bpb"] == ["0.410", "", "", ""]
    assert any("entropy is 0.300 bits" in line for line in lines)
    assert any("float32" in line for line in lines)


def test_unfinished_and_failed_parts_are_gaps_not_zeros(tmp_path):
    run = make_run(tmp_path / "a", {"base": {"seconds": 7, "skills": [row("bpb", float("nan")), row("story", None, note="no stories")]}})
    record = write_report(run)
    assert record["seconds"]["rl"] == 0 and record["seconds"]["total"] == 7
    assert [r["value"] for r in record["skills"]] == [None, None]
    assert record["skills"][1]["note"] == "no stories"
    text = (run / "report.json").read_text()
    assert "NaN" not in text and json.loads(text, parse_constant=pytest.fail) == record
    assert "| story | no stories |" in (run / "report.md").read_text()
    assert "| rl |" not in skills_table(record)


def test_own_text_is_named_not_graded(tmp_path):
    run = make_run(tmp_path / "a", {"base": {"seconds": 7, "skills": [row("bpb", 1.5)]}}, data="/texts", entropy_bpb=None)
    record = write_report(run)
    assert record["entropy_bpb"] is None
    assert "not applicable: trained on /texts" in (run / "report.md").read_text()


def test_names_are_compared_whole(tmp_path):
    "Published nanochat finds metrics by substring, so CORE also matches ChatCORE."
    rows = [row("core_schema", .5, .4, .6), row("core", .75, .7, .8), row("word_easy", .1, .05, .2)]
    record = write_report(make_run(tmp_path / "a", {"base": {"seconds": 1, "skills": rows}}))
    assert {r["skill"]: r["value"] for r in record["skills"]} == {"core": .75, "core_schema": .5, "word_easy": .1}


def test_errors_name_the_file(tmp_path):
    with pytest.raises(UserError, match="holds no run"): read_run(tmp_path / "none")
    run = make_run(tmp_path / "a", FULL)
    (run / "mid" / "metrics.json").write_text('{"seconds": 1')
    with pytest.raises(UserError, match="mid/metrics.json cannot be read"): write_report(run)
    (run / "mid" / "metrics.json").write_text("[]")
    with pytest.raises(UserError, match="holds no JSON object"): write_report(run)


def test_empty_run_still_gets_a_page(tmp_path):
    write_report(make_run(tmp_path / "a", {}))
    assert "Nothing was measured yet" in (tmp_path / "a" / "report.md").read_text()


def test_compare_takes_the_last_stage_and_claims_only_what_intervals_allow(tmp_path):
    a = make_run(tmp_path / "a", FULL)
    better = {**FULL, "rl": {"seconds": 60, "skills": [row("word_hard", .8, .74, .85), row("profile", .9, .85, .93)]}}
    b = make_run(tmp_path / "b", better)
    cells = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in compare_runs([a, b]).splitlines()}
    assert cells["word hard"] == ["0.500 (0.43 to 0.57, n=200)", "0.800 (0.74 to 0.85, n=200)", "b is better"]
    assert cells["profile"][2] == "no clear difference" and cells["bpb"] == ["0.410", "0.410", ""]
    with pytest.raises(UserError, match="two runs"): compare_runs([a])


def test_compare_with_a_skill_that_one_run_lacks(tmp_path):
    a, b = make_run(tmp_path / "a", FULL), make_run(tmp_path / "b", {"base": FULL["base"]})
    line, = [l for l in compare_runs([a, b]).splitlines() if l.startswith("| word hard")]
    assert line == "| word hard | 0.500 (0.43 to 0.57, n=200) |  |  |"


def test_figure_draws_every_measured_point(tmp_path):
    a, b = make_run(tmp_path / "a", FULL), make_run(tmp_path / "b", {"base": FULL["base"]})
    ax = compare_figure([a, b]).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["letter choice", "profile", "word hard"]
    assert sorted(len(c.lines[0].get_xdata()) for c in ax.containers) == [1, 3]
    assert list(ax.containers[0].lines[0].get_xdata()) == [.7, .88, .5]
