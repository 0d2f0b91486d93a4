"""What the report of a run leaves out: warm stories, leaks of the persona, letters before midtraining, the story judge.

    python benchmarks/bars.py RUN [RUN ...]

Reads the weights that finished runs kept. The last line is one JSON object.
"""
import json
import sys

from nanochat import __main__ as roof
from nanochat import chat_eval, identity, microworld, spelling
from nanochat.checkpoint import load_weights
from nanochat.tools import make_tool


def judge_of_stories(items: int = 200) -> dict:
    "Share of the generator's own stories that the judge passes, and of stories with one swap midway."
    passed = {"own": 0, "swapped": 0}
    rows = microworld.conversations("story", items, roof.TEST_SEED, split="test")
    for i, row in enumerate(rows):
        text = row["messages"][-1]["content"]
        for name, story in (("own", text), ("swapped", microworld.corrupt_story(text, i))):
            passed[name] += microworld.judge_story(story, row["hero"], row["object"], row["colour"])["ok"]
    return {name: n / items for name, n in passed.items()}


def leaks(course, model, items: int = 50) -> dict:
    "Share of ordinary requests whose answer does not speak of the persona."
    task = identity.LeakTask(items, roof.TEST_SEED)
    return chat_eval.generation_accuracy(course.sampler(model), course.tokenizer, task, max_new_tokens=60)


def bars(name: str) -> dict:
    "The figures of one run."
    course, stage = roof.finished_course(name, "base")
    course.source, model = roof.open_source(course.recipe), course.trained(stage)
    found = {"run": name, "story at 0.7": roof.measure_stories(course, model, 0.7)["value"],
             "letter choice before midtraining": roof.measure_chat(course, model, ("letter_choice",))[0]["value"]}
    for stage in ("sft", "rl"):
        load_weights(course.run.path / stage, model=model)
        result = leaks(course, model)
        asked = spelling.SpellingTask(microworld.spelling_words(), course.tokenizer, 200, roof.TEST_SEED, "new")
        options = dict(max_new_tokens=96, tool=make_tool(course.tokenizer))
        new = chat_eval.generation_accuracy(course.sampler(model), course.tokenizer, asked, **options)
        found[f"spelling in new wordings after {stage}"] = new["value"]
        found[f"leaks after {stage}"] = f"{round((1 - result['value']) * result['items'])} of {result['items']}"
    return found


if __name__ == "__main__":
    results = {"judge": judge_of_stories(), "runs": [bars(name) for name in sys.argv[1:]]}
    print(json.dumps(results))
