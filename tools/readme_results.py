"""Fill the README's table and dialogue from finished runs: `python tools/readme_results.py RUN [RUN ...]`.

Of several runs (seeds) each skill shows its worst value; what runs in float32 reached stands beside it, in brackets. The
reports are copied to benchmarks/results/.
"""
import io
import json
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path

from nanochat import __main__ as roof
from nanochat.checkpoint import Run
from nanochat.report import SKILLS, STAGES

ROOT = Path(__file__).resolve().parent.parent
LOWER_IS_BETTER = ("bpb", "bpb_ratio")


def worst(reports: list[dict]) -> dict:
    "(skill, stage) -> worst value over the reports."
    found = {}
    for report in reports:
        for row in report["skills"]: found.setdefault((row["skill"], row["stage"]), []).append(row["value"])
    return {key: (max if key[0] in LOWER_IS_BETTER else min)(values) for key, values in found.items()}


def took(reports: list[dict]) -> str:
    "Seeds, machine and time of some runs, a sentence."
    machine, slowest = reports[0]["machine"], max(r["seconds"]["total"] for r in reports)
    seeds = ", ".join(str(r["seed"]) for r in reports)
    return (f"Seeds: {seeds}. {machine['cpu']}, {machine['cores']} cores, {machine['dtype']}, torch {machine['torch']}: "
            f"{slowest:,.0f} seconds (the slowest) from the command to the report, after installation.")


def table(reports: list[dict], exact: list[dict]) -> str:
    "Skills by stage as Markdown, with the machine below; `exact` are the runs in float32."
    values, beside = worst(reports), worst(exact)
    def cell(*key):
        if key not in values: return ""
        return f"{values[key]:.3f}" + (f" ({beside[key]:.3f})" if key in beside else "")
    lines = ["| skill | " + " | ".join(STAGES) + " |", "| --- |" + " --- |" * len(STAGES)]
    for skill in SKILLS:
        lines.append(f"| {skill.replace('_', ' ')} | " + " | ".join(cell(skill, s) for s in STAGES) + " |")
    lines += ["", took(reports)]
    if exact: lines += ["In brackets float32. " + took(exact)]
    return "\n".join(lines)


def dialogue(name: str) -> str:
    "The sample dialogue of a run."
    course, stage = roof.finished_course(name, None)
    said = io.StringIO()
    from nanochat.chat import Chat, sample_dialogue, suggestions
    from nanochat.tools import make_tool
    chat = Chat(course.trained(stage), course.tokenizer, make_tool(course.tokenizer), temperature=0.0)
    with redirect_stdout(said): sample_dialogue(chat, suggestions(course.seed), write=said.write)
    return "```\n" + said.getvalue().strip() + "\n```"


def put(text: str, mark: str, content: str) -> str:
    "The README with what stands between two marks replaced."
    between = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.S)
    if not between.search(text): raise SystemExit(f"README.md has no marks for {mark}")
    return between.sub(lambda m: f"{m[1]}{content}\n{m[2]}", text)


def main(names: list[str]) -> None:
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    groups = {"": [], "float32-": []}
    for name in names:
        report = json.loads((Run(name).path / "report.json").read_text(encoding="utf-8"))
        group = "float32-" if report["machine"]["dtype"] == "float32" else ""
        groups[group].append(report)
        (folder / f"laptop-{group}seed{report['seed']}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    readme = ROOT / "README.md"
    text = put(readme.read_text(encoding="utf-8"), "results", table(*groups.values()))
    readme.write_text(put(text, "dialogue", dialogue(names[0])), encoding="utf-8")


if __name__ == "__main__": main(sys.argv[1:])
