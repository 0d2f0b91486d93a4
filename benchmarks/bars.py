"""What the report of a run leaves out: warm stories, leaks of the persona, letters before midtraining, the story judge.

    python benchmarks/bars.py RUN [RUN ...]

Reads the weights that finished runs kept. The last line is one JSON object.
"""
import json
import sys

from nanochat import __main__ as roof
from nanochat import chat_eval, identity, microworld, spelling
from nanochat.checkpoint import load_weights
from nanochat.tasks import Task
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


def right(course, model, task) -> int:
    "How many items of a task the model answers right, greedily."
    found = chat_eval.generation_accuracy(course.sampler(model), course.tokenizer, task, max_new_tokens=60)
    return round(found["value"] * found["items"])


def asked(question: str, answer="") -> dict:
    "A question as an item of a task."
    return {"messages": [{"role": "user", "content": question.strip()}, {"role": "assistant", "content": ""}], "answer": answer}


def leaks(course, model, task) -> str:
    "How many ordinary requests are answered with the persona."
    return f"{len(task) - right(course, model, task)} of {len(task)}"


# Written after the persona's wordings for training and never used to change them: what held-out wordings that were looked at cannot show.
FRESH = """name: What would you like to be called? | Remind me of your name.
kind: What exactly are you? | What category of program do you belong to?
maker: Who put you into the world? | Whose work are you?
software: What is the code behind you called? | Which software makes you run?
idea: Who deserves thanks for nanochat? | Who was the inventor of nanochat?
origin: What place did you come from? | Where did you begin?
licence: Am I free to share you? | What does the licence say?
knowledge: What was in your books? | About what do you know anything?
home: On which machine do you live? | Where are you kept?
limits: What are you unable to do? | Can you read the news for me?
skills: What are you useful for? | What can you help me with?
language: Could you speak Russian? | Which languages can you speak?
sums: How do you calculate? | What do you do when you need a sum?
human: Are you a real human? | Is a human typing this?
feelings: Do you feel lonely? | What makes you happy?
age: How old is your program? | When was your birth?"""


def fresh_identity(course, model) -> str:
    "Questions about the persona in wordings that nothing was tuned on."
    facts = {fact.name: fact for fact in identity.default_persona().facts}
    rows = [asked(q, facts[name].keys)
            for name, _, questions in (line.partition(":") for line in FRESH.splitlines()) for q in questions.split("|")]
    return f"{right(course, model, Task('identity', rows, identity.judge_identity))} of {len(rows)}"


# Ordinary requests, also written later than the wordings for training and never used to change them.
REQUESTS = """Which song is the best? | What would you do with a kite? | Is rain good for carrots? | Should I buy a ladder?
How old is the castle? | Who wins at chess most often? | What do owls dream of? | Do doctors like Mondays? | How heavy is a barrel?
What is the colour of hope? | May I eat acorns? | When does the fair begin? | What smells better, roses or soap?
Where did I leave my hat? | Can a goat swim? | Is it far to the harbour? | How do I mend a sock? | Why is the sky dark at night?
Are pirates polite? | What should I name my kitten?"""


def fresh_requests() -> Task:
    "Requests that nothing was tuned on, judged like those of `identity.LeakTask`."
    rows = [asked(q) for line in REQUESTS.splitlines() for q in line.split("|")]
    return Task("leak", rows, lambda row, text: not identity.mentions_identity(text, None))


def bars(name: str) -> dict:
    "The figures of one run."
    course, stage = roof.finished_course(name, "base")
    course.source, model = roof.open_source(course.recipe), course.trained(stage)
    found = {"run": name, "story at 0.7": roof.measure_stories(course, model, 0.7)["value"],
             "letter choice before midtraining": roof.measure_chat(course, model, ("letter_choice",))[0]["value"]}
    for stage in ("sft", "rl"):
        load_weights(course.run.path / stage, model=model)
        words = spelling.SpellingTask(microworld.spelling_words(), course.tokenizer, 200, roof.TEST_SEED, "new")
        options = dict(max_new_tokens=96, tool=make_tool(course.tokenizer))
        new = chat_eval.generation_accuracy(course.sampler(model), course.tokenizer, words, **options)
        found[f"spelling in new wordings after {stage}"] = new["value"]
        found[f"identity in fresh wordings after {stage}"] = fresh_identity(course, model)
        found[f"leaks in fresh requests after {stage}"] = leaks(course, model, fresh_requests())
        found[f"leaks after {stage}"] = leaks(course, model, identity.LeakTask(50, roof.TEST_SEED))
    return found


if __name__ == "__main__":
    results = {"judge": judge_of_stories(), "runs": [bars(name) for name in sys.argv[1:]]}
    print(json.dumps(results))
