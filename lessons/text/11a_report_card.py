# %% [markdown]
# # 11a The report card
#
# **Promise.** After a run you have five folders of numbers. In this lesson you turn them into one page that a person
# can read and one file that a program can read, and you put two runs side by side.
#
# After this lesson you can
#
# * write a report from plain files, without loading a model;
# * say what an interval of a score means and how many items a claim needs;
# * compare two runs, and say when a difference is no difference;
# * read a report without being fooled by it.
#
# You need lessons 02e (runs) and 03a (intervals). Reading: 12 minutes. Doing: 15 minutes. Computing: seconds.

# %%
#| default_exp report

# %%
#| export
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from nanochat.workshop import UserError, atomic_write, clock

# %% [markdown]
# ## A score that fooled somebody
#
# Two models take the same test. One answers 14 of 20 questions right, the other 12 of 20. Which is better? Before you
# run the cell, guess how often a fair coin puts two *equal* models at least that far apart.

# %%
import random

random.seed(0)
def score(p: float, n: int) -> int:
    "How many of n questions a model gets right that knows each with chance p."
    return sum(random.random() < p for _ in range(n))

apart = sum(abs(score(0.65, 20) - score(0.65, 20)) >= 2 for _ in range(5000)) / 5000
print(f"two equal models differ by 2 or more of 20 questions in {apart:.0%} of all tests")
assert apart > 0.5

# %% [markdown]
# More than half of the time. So a number without its interval is a rumour. Lesson 03a gave you Wilson's interval for `k` right
# answers of `n`. It says which true rates would make the result you saw unsurprising.

# %%
from nanochat.core import wilson

for k, n in ((14, 20), (140, 200), (1400, 2000)):
    low, high = wilson(k, n)
    print(f"{k:5d} of {n:5d}: {k / n:.2f}, between {low:.2f} and {high:.2f}")
assert wilson(140, 200)[0] > 0.5 + 0.1

# %% [markdown]
# To halve the interval you need four times the items. A report in this course therefore writes every accuracy with its
# interval and its number of items, and the comparison at the end of this lesson will not call a difference a win
# when the intervals overlap.
#
# ## What a report may read
#
# A report that loads a model can fail, takes minutes, and may measure something else than the run did. Ours reads JSON
# and nothing else. Each stage left a `metrics.json`:
#
# ```
# RUN/run.json                      recipe, seed, commit, data, machine, entropy_bpb
# RUN/tokenizer/metrics.json        {"seconds": ...}
# RUN/base/metrics.json             {"seconds": ..., "eval_seconds": ..., "skills": [...]}
# RUN/mid/ sft/ rl/ metrics.json    the same
# ```
#
# `seconds` is the stage's own work, `eval_seconds` what measuring took. A skill is one row:
# `{"skill": "profile", "value": 0.85, "items": 200, "low": 0.79, "high": 0.89}`. A skill that cannot be measured has
# `"value": null` and a `"note"` that says why.
#
# Let us make such a run by hand, so that you can see all of it.

# %%
import tempfile

place = Path(tempfile.mkdtemp())

def skill(name: str, k: int, n: int) -> dict:
    "One row of metrics: k right of n."
    low, high = wilson(k, n)
    return {"skill": name, "value": k / n, "items": n, "low": low, "high": high}

def bits(value: float) -> dict:
    "A row for bits per byte, which has no interval here."
    return {"skill": "bpb", "value": value, "items": 300_000, "low": None, "high": None}

def made_up_run(name: str, profile: int, words: int) -> Path:
    "A run folder with invented numbers."
    run = place / name
    stages = {"tokenizer": [], "base": [bits(0.41), skill("letter_choice", 52, 200)],
              "mid": [bits(0.43), skill("letter_choice", 121, 200)],
              "sft": [skill("profile", profile, 200), skill("word_easy", words, 200)],
              "rl": [skill("profile", profile - 3, 200), skill("word_easy", words + 30, 200)]}
    for i, (stage, rows) in enumerate(stages.items()):
        metrics = {"seconds": 10.0 * (i + 1), "eval_seconds": 2.0 * bool(rows), "skills": rows}
        atomic_write(run / stage / "metrics.json", json.dumps(metrics))
    facts = {"recipe": "example", "seed": 0, "commit": "none", "data": "microworld", "entropy_bpb": 0.33,
             "machine": {"cpu": "a laptop", "cores": 2, "ram_gb": 8.0, "dtype": "float32",
                         "threads": 2, "torch": "2.13"}}
    atomic_write(run / "run.json", json.dumps(facts))
    return run

run = made_up_run("first", profile=170, words=80)
print(*sorted(str(p.relative_to(run)) for p in run.rglob("*.json")), sep="\n")
assert (run / "run.json").is_file()

# %% [markdown]
# ## Reading it
#
# A file that is missing is normal: a run that was stopped after SFT has no `rl` folder. A file that is broken is not, and
# the reader is told which one.

# %%
#| export
STAGES = ("base", "mid", "sft", "rl")
SKILLS = ("bpb", "bpb_ratio", "story", "core", "core_multiple_choice", "core_schema",
          "core_language_modeling", "letter_choice", "profile", "reading", "word_easy",
          "word_hard", "spelling", "identity")
MACHINE = ("cpu", "cores", "ram_gb", "dtype", "threads", "torch")


def _read_json(path: Path) -> dict:
    "A JSON object from a file; an empty dict when there is no file."
    try: found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError: return {}
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read ({e}); run that stage again") from e
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object; run that stage again")
    return found


def read_run(
    folder: Path | str,    # a run: one folder per stage, and run.json
) -> tuple[dict, dict]:    # facts of the run, metrics by stage ({} where a stage did not finish)
    "What a run's JSON files say. UserError when the folder holds no run or a file is broken."
    folder = Path(folder)
    facts = _read_json(folder / "run.json")
    if not facts:
        raise UserError(f"{folder} holds no run: run.json is missing; name a run's folder")
    return facts, {s: _read_json(folder / s / "metrics.json") for s in ("tokenizer", *STAGES)}


# %%
facts, metrics = read_run(run)
print(facts["recipe"], {stage: m["seconds"] for stage, m in metrics.items()})
try: read_run(place / "nowhere")
except UserError as e: print("refused:", e)


# %% [markdown]
# From this comes the record. It is the same information in one fixed form, so that a later program, or a person with two
# reports, finds every number under the same name. Two rules keep it honest. Times are taken from the files, never measured again. And a value that
# is not finite becomes `null`, because JSON has no word for NaN and a reader should not have to guess.

# %%
#| export
def _number(value: object) -> float | None:
    "A finite float, or None."
    if isinstance(value, bool) or not isinstance(value, int | float): return None
    return float(value) if abs(value) < float("inf") else None


def _skill_row(stage: str, row: dict) -> dict:
    "One measured skill in the report's form; a note stays only where there is one."
    fixed = {"skill": row["skill"], "stage": stage, "value": _number(row.get("value")),
             "items": row.get("items"),
             "low": _number(row.get("low")), "high": _number(row.get("high"))}
    return fixed | ({"note": row["note"]} if row.get("note") else {})


def _seconds(metrics: dict, wall: float | None) -> dict:
    "Seconds by stage, all evaluation apart, and the total: by the clock on the wall where the run kept it."
    spent = {stage: m.get("seconds") or 0.0 for stage, m in metrics.items()}
    spent["eval"] = sum(m.get("eval_seconds") or 0.0 for m in metrics.values())
    total = max(wall or 0.0, sum(spent.values()))          # a killed run's clock may have stopped early
    return {k: round(v, 2) for k, v in (spent | {"total": total}).items()}


def report_record(
    facts: dict,    # run.json
    metrics: dict,  # stage -> metrics.json
) -> dict:          # what report.json holds
    "The numbers of a run in one fixed form: facts, seconds, and one row per skill and stage."
    machine = facts.get("machine", {})
    rows = [_skill_row(stage, row) for stage in STAGES for row in metrics[stage].get("skills", [])]
    order = {name: i for i, name in enumerate(SKILLS)}
    return {
        **{key: facts.get(key) for key in ("recipe", "seed", "commit", "data")},
        "machine": {k: machine.get(k) for k in MACHINE},
        "entropy_bpb": _number(facts.get("entropy_bpb")),
        "seconds": _seconds(metrics, facts.get("wall_seconds")),
        "skills": sorted(rows, key=lambda r: (order.get(r["skill"], len(SKILLS)),
                                              STAGES.index(r["stage"]))),
    }


# %%
record = report_record(facts, metrics)
print(json.dumps(record["seconds"]))
print(json.dumps(record["skills"][0]))
assert record["seconds"]["total"] == 10 + 20 + 30 + 40 + 50 + 4 * 2
assert [r["stage"] for r in record["skills"] if r["skill"] == "bpb"] == ["base", "mid"]


# %% [markdown]
# ## Writing it
#
# The page has one table: skills down, stages across. You read a row from left to right and see what a stage did to a skill. A
# number that fell is as visible as one that rose: reports that only show the last stage hide what finetuning broke.

# %%
#| export
def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    "A Markdown table."
    lines = [[str(c).replace("|", "\\|") for c in line]
             for line in (head, ["---"] * len(head), *rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(row: dict | None) -> str:
    "A value with its interval and items: `0.85 (0.79-0.89, n=200)`."
    if row is None: return ""
    if row["value"] is None: return row.get("note", "not measured")
    text, inside = f"{row['value']:.3f}", []
    if row["low"] is not None and row["high"] is not None:
        inside.append(f"{row['low']:.2f} to {row['high']:.2f}")
    if row["items"] and inside: inside.append(f"n={row['items']:,}")
    return f"{text} ({', '.join(inside)})" if inside else text


def skills_table(record: dict) -> str:  # Markdown
    "Skills by stage; a stage that measured nothing has no column."
    found = {(r["skill"], r["stage"]): r for r in record["skills"]}
    stages = [s for s in STAGES if any(stage == s for _, stage in found)]
    names = dict.fromkeys(r["skill"] for r in record["skills"])
    rows = [[n.replace("_", " "), *(_cell(found.get((n, s))) for s in stages)] for n in names]
    return _table(["skill", *stages], rows)


# %%
print(skills_table(record))
assert "0.850 (0.79 to 0.89, n=200)" in skills_table(record)


# %%
#| export
def _machine_line(machine: dict) -> str:
    "The machine in one line."
    return (f"{machine['cpu']}, {machine['cores']} cores, {machine['ram_gb']} GB, "
            f"{machine['dtype']}, {machine['threads']} threads, torch {machine['torch']}")


def _page(record: dict) -> str:
    "The report as Markdown."
    spent = record["seconds"]
    floor = record["entropy_bpb"]
    note = (f"The world's own entropy is {floor:.3f} bits per byte: "
            "no model can go below it on fresh text."
            if floor is not None else
            f"Skills of the small world are not applicable: trained on {record['data']}.")
    return "\n\n".join([
        f"# Report: {record['recipe']}",
        f"Seed {record['seed']}, commit {record['commit']}, data {record['data']}.",
        "## Skills by stage",
        "In parentheses: 95% interval and number of items. Accuracies are between 0 and 1; "
        "`bpb` is bits per byte, lower is better.",
        skills_table(record) if record["skills"] else "Nothing was measured yet.",
        note,
        "## Time",
        _table(list(spent), [[clock(v) for v in spent.values()]]),
        "## Machine",
        _machine_line(record["machine"]),
    ]) + "\n"


def write_report(
    folder: Path | str,  # a run
) -> dict:               # what report.json holds
    """Write `report.md` and `report.json` into a run's folder, from its JSON files only.

    `seconds` of a stage is its own work, evaluation is counted apart.
    UserError when there is no run."""
    folder = Path(folder)
    record = report_record(*read_run(folder))
    atomic_write(folder / "report.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    atomic_write(folder / "report.md", _page(record))
    return record


# %%
write_report(run)
page = (run / "report.md").read_text()
print(page)
assert json.loads((run / "report.json").read_text()) == record

# %% [markdown]
# In a notebook you can have it rendered: `IPython.display.Markdown(page)`.
#
# **Own text.** A run on your own folder of documents has no profiles and no known entropy. The roof then leaves these skills out or
# writes a note, and the page says "not applicable" instead of a zero. A zero would be a claim.

# %%
own = made_up_run("own", profile=170, words=80)
facts["data"], facts["entropy_bpb"] = "DIR", None
atomic_write(own / "run.json", json.dumps(facts))
base = {"seconds": 10.0, "skills": [bits(1.9), {"skill": "profile", "value": None, "note": "not applicable"}]}
atomic_write(own / "base" / "metrics.json", json.dumps(base))
write_report(own)
lines = (own / "report.md").read_text().splitlines()
print(*(line for line in lines if "not applicable" in line), sep="\n")
assert any("trained on DIR" in line for line in lines)


# %% [markdown]
# ## Comparing runs
#
# Two runs, one table: the last stage that measured a skill, for each run. The last column says what you may claim. If the
# intervals overlap it says "no clear difference", even when one number is larger. (Two intervals that overlap a little can still hide
# a real difference: this rule is careful, and errs towards silence.)

# %%
#| export
def _last_rows(record: dict) -> dict:
    "Skill -> its row at the latest stage that has a value."
    rows = [r for r in record["skills"] if r["value"] is not None]
    return {r["skill"]: r for r in sorted(rows, key=lambda r: STAGES.index(r["stage"]))}


def _verdict(rows: Sequence[dict | None], names: Sequence[str]) -> str:
    "Which run is clearly best at a skill, if any: its interval lies above all the others."
    if any(r is None or r["low"] is None or r["high"] is None for r in rows): return ""
    best = max(range(len(rows)), key=lambda i: rows[i]["value"])
    clear = all(rows[best]["low"] > r["high"] for i, r in enumerate(rows) if i != best)
    return f"{names[best]} is better" if clear else "no clear difference"


def _names(folders: Sequence[Path]) -> list[str]:
    "The names of folders, with what is above them where two are called alike."
    return [f.name if sum(f.name == g.name for g in folders) == 1 else str(f) for f in folders]


def compare_runs(
    folders: Sequence[Path | str],  # two runs or more
) -> str:                           # Markdown
    "Runs side by side: each skill at its last stage, with intervals, and what may be claimed."
    folders = [Path(f) for f in folders]
    if len(folders) < 2: raise UserError("comparing needs two runs or more; name their folders")
    names = _names(folders)
    last = [_last_rows(report_record(*read_run(f))) for f in folders]
    skills = [s for s in SKILLS if any(s in rows for rows in last)]
    lines = []
    for s in skills:
        rows = [found.get(s) for found in last]
        lines.append([s.replace("_", " "), *map(_cell, rows), _verdict(rows, names)])
    return _table(["skill", *names, "claim"], lines)


# %%
second = made_up_run("second", profile=174, words=140)
comparison = compare_runs([run, second])
print(comparison)
assert "second is better" in comparison.split("word easy")[1]
assert "no clear difference" in comparison.split("profile")[1].split("\n")[0]


# %% [markdown]
# The same as a picture: points with their intervals, where your eye sees at once which ones overlap.

# %%
#| export
def compare_figure(
    folders: Sequence[Path | str],  # runs
):                                  # a matplotlib Figure
    "Accuracies of runs side by side, as points with 95% intervals."
    from matplotlib.figure import Figure
    folders = [Path(f) for f in folders]
    records = {name: _last_rows(report_record(*read_run(f))) for name, f in zip(_names(folders), folders)}
    skills = [s for s in SKILLS
              if any(r.get(s, {}).get("low") is not None for r in records.values())]
    fig = Figure(figsize=(6, 0.8 + 0.4 * len(skills)), layout="constrained")
    ax = fig.subplots()
    for i, (name, rows) in enumerate(records.items()):
        points = [(y + 0.15 * (i - (len(records) - 1) / 2), rows[s]) for y, s in enumerate(skills)
                  if rows.get(s, {}).get("low") is not None]
        error = [[max(0, r["value"] - r["low"]) for _, r in points],
                 [max(0, r["high"] - r["value"]) for _, r in points]]
        ax.errorbar([r["value"] for _, r in points], [y for y, _ in points], xerr=error,
                    fmt="osD^v"[i % 5], label=name, capsize=3)
    ax.set(yticks=range(len(skills)), yticklabels=[s.replace("_", " ") for s in skills],
           xlabel="accuracy")
    ax.invert_yaxis()
    ax.legend(frameon=False)
    return fig


# %%
from nanochat.workshop import figure

figure(compare_figure([run, second]), caption="Two invented runs, last stage, 95% intervals.",
       alt="Three skills of two runs. The points for letter choice lie on each other, those for profile overlap, "
           "and for easy word problems the second run lies clearly to the right of the first.")

# %% [markdown]
# **Trap: finding metrics by name.** Published nanochat's report searches text for metric names, so "CORE" also matches the line
# "ChatCORE". Ours looks up exact names. The test for this is a run whose skills contain one another's names:

# %%
tricky = made_up_run("tricky", profile=170, words=80)
rows = [skill("core_schema", 10, 20), skill("core", 15, 20)]
atomic_write(tricky / "base" / "metrics.json", json.dumps({"seconds": 1.0, "skills": rows}))
by_name = {r["skill"]: r["value"] for r in write_report(tricky)["skills"] if r["stage"] == "base"}
print(by_name)
assert by_name == {"core": 0.75, "core_schema": 0.5}

# %% [markdown]
# ## Recap
#
# * A report reads JSON files and nothing else, so it cannot disagree with the run.
# * Every accuracy stands with its interval and its number of items.
# * Skills down, stages across: what a stage broke is as visible as what it gained.
# * What was not measured is `null` with a note, never zero.
# * Two runs differ only where their intervals do.
#
# Next: 11b, where you talk to the model.
#
# **Papers.** Wilson (1927), *Probable inference, the law of succession, and statistical inference*. Miller (2024), *Adding error bars
# to evals*.
