"""Is reinforcement learning worth its time? The same seconds of further SFT, from the same weights.

    python benchmarks/more_sft.py RUN [RUN ...]

For each finished run it takes the weights after SFT, goes on with the SFT mixture (new conversations, and its documents) for as many steps as fit
into the seconds that the rl stage took, and measures the chat skills on the same held-out questions as the report.
The last line is one JSON object.
"""
import json
import sys
import tempfile

from nanochat import __main__ as roof
from nanochat.checkpoint import Run, load_weights
from nanochat.sft import sft


def further_sft(name: str) -> dict:
    "Skills of a run after RL, and after the same seconds of further SFT."
    course, _ = roof.finished_course(name, "rl")
    course.source = roof.open_source(course.recipe)
    metrics = {s: json.loads((course.run.path / s / "metrics.json").read_text()) for s in ("sft", "rl")}
    section = dict(course.recipe["sft"])
    section["steps"] = max(1, int(metrics["rl"]["seconds"] * section["steps"] / metrics["sft"]["seconds"]))
    model, forward = roof.learner(course)
    load_weights(course.run.path / "sft", model=model)
    with tempfile.TemporaryDirectory() as folder:
        stage = Run("further", folder).stage("sft", section, None, "further SFT")
        sft(stage, section, model=model, tokenizer=course.tokenizer, forward=forward,
            texts=roof.plain_texts(course, section), micro=roof.common_options(course, stage)["micro"],
            make_optimizer=roof.optimizer_maker(course), conversations=roof.mixture(course, section, course.seed + 7_000))
    after = {row["skill"]: row["value"] for row in roof.measure_chat(course, model)}
    reported = {s: {r["skill"]: r["value"] for r in metrics[s]["skills"]} for s in metrics}
    return {"run": name, "seconds": round(metrics["rl"]["seconds"]), "sft_steps": section["steps"],
            "skills": {k: {"after_sft": reported["sft"].get(k), "after_rl": reported["rl"].get(k), "more_sft": v}
                       for k, v in after.items()}}


if __name__ == "__main__":
    results = [further_sft(name) for name in sys.argv[1:]]
    for r in results:
        print(f"{r['run']}: {r['seconds']} s of rl, or {r['sft_steps']} more steps of SFT")
        for skill, row in r["skills"].items(): print(f"  {skill:15s}", *(f"{k} {v:.3f}" for k, v in row.items() if v is not None))
    print(json.dumps(results))
