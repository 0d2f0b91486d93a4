# %%
#| default_exp identity

# %% [markdown]
# # 10 · Identity: who are you?
#
# **Promise.** You will give your model a name and a few facts about itself that hold under questions it was never asked in training,
# and you will check that it does not talk about itself when nobody asked.
#
# After this lesson you can
#
# * write a persona as one table of facts, questions and answers;
# * give one question many wordings with cheap frames;
# * test on whole wordings that training never saw;
# * measure leakage: the persona turning up in answers to other questions;
# * put a persona of your own in its place.
#
# **Before:** 06 (SFT), 04a (tasks). **Time:** 15 minutes to read, 20 to do, seconds to compute.

# %%
#| export
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from random import Random
from typing import NamedTuple

from nanochat.microworld import general_prompts
from nanochat.tasks import Task, has_word
from nanochat.workshop import UserError

# %% [markdown]
# ## Nobody told it
#
# A language model has no self. Asked for its name, it continues the text with a likely name, and in a world of stories that is the
# name of some child. In a prototype of this course, a model with good stories and good sums answered "Who are you?" with nonsense until conversations
# about itself were added to its training.
#
# So identity is data like any other. The facts stand in one file, which is meant to be edited:

# %%
text = files("nanochat").joinpath("lexicon/identity.txt").read_text(encoding="utf-8")
start = text.index("= name")
print(text[start : start + 420])
assert "> My name is Nano." in text


# %% [markdown]
# Each fact has **key phrases** (any one makes an answer right), several answers, questions for training (`?`) and questions held
# out for the test (`!`). Parse it into a table:

# %%
#| export
class Fact(NamedTuple):
    "One fact of a persona: what must be said, ways to say it, ways to ask for it."
    name: str
    keys: list[str]
    answers: list[str]
    train: list[str]
    test: list[str]


class Persona(NamedTuple):
    "Facts, and marks: phrases that give the persona away where nobody asked for it."
    facts: list[Fact]
    marks: list[str]


def phrases(text: str) -> list[str]:
    "The phrases of a line, which semicolons separate."
    return [p.strip() for p in text.split(";") if p.strip()]


# %%
assert phrases("you made me; you built me") == ["you made me", "you built me"]


# %%
#| export
def parse_persona(text: str) -> Persona:
    "Read a persona in the format of identity.txt; UserError names a line that does not fit."
    facts, marks = [], []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        sign, rest = line[:1], line[1:].strip()
        if not line or sign == "#": continue
        if line.startswith("marks"): marks = phrases(line.partition(":")[2])
        elif sign == "=":
            name, _, keys = rest.partition(":")
            facts.append(Fact(name.strip(), phrases(keys), [], [], []))
        elif sign in ">?!" and facts:
            {">": facts[-1].answers, "?": facts[-1].train, "!": facts[-1].test}[sign].append(rest)
        else:
            raise UserError(f"persona line {number} begins with {sign!r}, not one of = > ? ! #")
    for fact in facts:
        if not (fact.keys and fact.answers and fact.train and fact.test):
            raise UserError(f"persona fact {fact.name!r} needs key phrases, answers (>), "
                            "questions (?) and held-out questions (!)")
    if not facts or not marks:
        raise UserError("a persona needs facts (=) and a line 'marks: phrase; phrase', by which it is told from others")
    return Persona(facts, marks)


@cache
def default_persona() -> Persona:
    "The persona of the course's model, from nanochat/lexicon/identity.txt."
    path = files("nanochat").joinpath("lexicon/identity.txt")
    return parse_persona(path.read_text(encoding="utf-8"))


# %% [markdown]
# Here is the whole table. A line that does not fit is named, so that your own file cannot fail silently.

# %%
persona = default_persona()
for fact in persona.facts:
    print(f"{fact.name:10s} {len(fact.train):2d} + {len(fact.test)} questions   {fact.answers[0]}")
assert len(persona.facts) >= 12 and all(
    len(f.train) >= 8 and len(f.test) >= 3 for f in persona.facts
)
try: parse_persona("= name : Nano\n* hello")
except UserError as e: print("UserError:", e)

# %% [markdown]
# ## One question, many faces
#
# People greet, forget the question mark and type in lower case. Each of these is cheap to imitate: a **frame** goes around the question and a
# **style** over it. The test has frames of its own, so neither the question nor its frame was seen.

# %%
#| export
FRAMES = {
    "train": ["{}", "{}", "{}", "Hello! {}", "Hi. {}", "Excuse me. {}", "One question. {}",
              "Please answer me. {}", "Hey you. {}", "{} I want to know.", "Good evening. {}",
              "May I know something? {}", "{} Tell the truth.", "Good day. {}",
              "I have a question. {}", "May I learn something? {}", "{} I am curious.",
              "{} Say it plainly.", "{} Answer truly.", "{} Do not fib."],
    "test": ["{}", "{}", "Good morning. {}", "May I ask you something? {}", "{} Be honest."],
}


def styled(question: str, random: Random) -> str:
    "The question as people type it: sometimes in lower case, sometimes without its final mark."
    if random.random() < 0.2: question = question.lower()
    return question.rstrip("?.") if random.random() < 0.15 else question


def ask(fact: Fact, split: str, random: Random) -> str:
    "A question about a fact, with the wordings and frames of one split."
    question = random.choice(fact.train if split == "train" else fact.test)
    return styled(random.choice(FRAMES[split]).format(question), random)


# %%
random = Random(0)
for split in ("train", "test"):
    print(split, [ask(persona.facts[0], split, random) for _ in range(4)])
assert ask(persona.facts[0], "train", Random(1)) == ask(persona.facts[0], "train", Random(1))

# %% [markdown]
# The conversations take the facts in turn, so each occurs equally often. One in four has a first exchange about a fact drawn at random, so that the
# model also learns to answer the *last* question.
#
# **Trap.** The generator is seeded with a text that contains the split. Seeding train rows with $i$ and test rows with $-i$ looks neat and is a
# disaster: Python's generator ignores the sign, so the test would repeat the training rows. Published nanochat shipped that.

# %%
assert Random(7).random() == Random(-7).random()            # the trap
assert Random("train 7").random() != Random("test 7").random()


# %%
#| export
def _turns(fact: Fact, split: str, random: Random) -> list[dict]:
    "A question about a fact and one of its answers, as two messages."
    return [{"role": "user", "content": ask(fact, split, random)},
            {"role": "assistant", "content": random.choice(fact.answers)}]


def identity_conversations(
    n: int,
    seed: int = 0,
    split: str = "train",               # "test" uses the held-out wordings and frames
    persona: Persona | None = None,     # the course's own when None
) -> list[dict]:                        # messages, kind, fact, answer (accepted key phrases)
    "Conversations about the model itself, all facts equally often."
    if split not in FRAMES: raise UserError(f"no split {split!r}; choose train or test")
    facts, rows = (persona or default_persona()).facts, []
    for i in range(n):
        random = Random(f"identity {split} {seed} {i}")
        fact = facts[i % len(facts)]
        before = _turns(random.choice(facts), split, random) if random.random() < 0.25 else []
        rows.append({"messages": before + _turns(fact, split, random), "kind": "identity",
                     "fact": fact.name, "answer": fact.keys})
    return rows


# %%
for row in identity_conversations(3, seed=1) + identity_conversations(2, seed=1, split="test"):
    print(f"{row['fact']:9s}", " | ".join(m["content"] for m in row["messages"]))
train = {
    m["content"]
    for row in identity_conversations(2000)
    for m in row["messages"]
    if m["role"] == "user"
}
test = {
    m["content"]
    for row in identity_conversations(200, split="test")
    for m in row["messages"]
    if m["role"] == "user"
}
print(
    f"{len(train)} different training questions, {len(test)} test questions, "
    f"{len(train & test)} in both"
)
assert not train & test and len(train) > 700


# %% [markdown]
# ## Judging
#
# An answer is right if it holds a key phrase *of the fact that was asked*. "My name is Nano" is no answer to "Who made you?".

# %%
#| export
def judge_identity(conversation: dict, completion: str) -> bool:
    "Does the completion state the fact that was asked?"
    return any(has_word(completion, key) for key in conversation["answer"])


def mentions_identity(text: str, persona: Persona | None = None) -> bool:
    "Does a text hold a mark of the persona? It should not, unless somebody asked."
    return any(has_word(text, mark) for mark in (persona or default_persona()).marks)


# %%
asked = identity_conversations(16)
rights = [
    [judge_identity(row, answer) for fact in persona.facts for answer in fact.answers]
    for row in asked
]
own = sum(judge_identity(row, a) for row, fact in zip(asked, persona.facts) for a in fact.answers)
print(
    f"own answers accepted: {own} of {sum(len(f.answers) for f in persona.facts)}; "
    f"answers of other facts accepted: {sum(map(sum, rights)) - own}"
)
assert own == sum(len(f.answers) for f in persona.facts) and sum(map(sum, rights)) == own
assert mentions_identity("I am Nano.") and not mentions_identity("Lily lost her red kite.")

# %%
import matplotlib.pyplot as plt

from nanochat.workshop import figure

table = [
    [
        sum(judge_identity(row, a) for a in fact.answers) / len(fact.answers)
        for fact in persona.facts
    ]
    for row in asked
]
fig, ax = plt.subplots(figsize=(4.4, 3.6), layout="constrained")
ax.imshow(table, cmap="Blues")
names = [f.name for f in persona.facts]
ax.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
ax.set_yticks(range(len(names)), names, fontsize=7)
ax.set(xlabel="fact of the answer", ylabel="fact that was asked")
figure(
    fig,
    caption="Which answers the judge accepts for which question: only a fact's own.",
    alt="A square table of sixteen facts by sixteen; only the diagonal is dark, all other cells "
    "are empty.",
)


# %% [markdown]
# ## Leakage
#
# Train too much on one persona, and it answers *everything* with its name. So the same model also gets ordinary questions, and we count the
# answers that mention the persona. At most 2 in 50 may.

# %%
#| export
class IdentityTask(Task):
    "Questions about the model itself, judged by the key phrases of the fact that was asked."

    def __init__(self, n: int, seed: int = 0, split: str = "train", persona: Persona | None = None):
        super().__init__(
            "identity", identity_conversations(n, seed, split, persona), judge_identity
        )


class LeakTask(Task):
    "Ordinary questions; an answer is right when it does not mention the persona."

    def __init__(self, n: int, seed: int = 0, split: str = "test", persona: Persona | None = None):
        prompts: Sequence[str] = general_prompts(n, seed, split)
        rows = [{"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": ""}],
                 "kind": "leak", "answer": ""} for p in prompts]
        super().__init__("leak", rows, lambda row, text: not mentions_identity(text, persona))


# %%
leak = LeakTask(50)
stubborn = sum(not leak.evaluate(row, "My name is Nano.") for row in leak)
print(f"a model that always says its name leaks in {stubborn} of {len(leak)} answers")
print([row["messages"][0]["content"] for row in leak][:3])
assert stubborn == 50 and all(leak.evaluate(row, "The kite is red.") for row in leak)
assert len(IdentityTask(32, split="test")) == 32

# %% [markdown]
# ## A short finetuning
#
# Does it work? Here is a two-layer model that has read nothing else at all: no stories, no pretraining. It learns the persona from scratch, for a few
# seconds at the smoke tier and about half a minute at the full one. In the tour, about one conversation in six is of these.
#
# **Predict, then run.** It answers held-out wordings. On questions that are not about itself, will it keep quiet about its name?

# %%
from nanochat.chat_eval import generation_accuracy
from nanochat.data import Loader, pack_conversations
from nanochat.engine import make_engine
from nanochat.gpt import GPT, config_for
from nanochat.muon import make_optimizer
from nanochat.optim import schedule
from nanochat.tokenizer import Tokenizer
from nanochat.train import train
from nanochat.workshop import by_tier

rows = identity_conversations(by_tier(320, 1600))
tokenizer = Tokenizer.train([m["content"] for row in rows for m in row["messages"]], 400)
packed = pack_conversations([tokenizer.render(row) for row in rows], 128, tokenizer.bos)
model = GPT(config_for(2, tokenizer.vocab_size, 128, head_dim=64))
model.init_weights(seed=0)
steps = by_tier(80, 300)
run = train(model, make_optimizer(model, batch_tokens=8 * 128), iter(Loader(packed, 8, seed=0)),
            steps=steps, schedule=lambda t: schedule(t, steps))
losses = [step.loss for step in run]
print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f} in {steps} steps")
assert losses[-1] < 0.5 * losses[0]

# %%
sampler = make_engine(model, [tokenizer.assistant_end, tokenizer.bos])
exams = {"held-out wordings": IdentityTask(32, split="test"), "quiet elsewhere": LeakTask(16)}
for name, task in exams.items():
    found = generation_accuracy(sampler, tokenizer, task, max_new_tokens=20)
    print(f"{name:18s} {found['value']:.2f}  ({found['low']:.2f} to {found['high']:.2f})")
    for wrong in found["failures"][:2]: print("   ", wrong["question"], "->", wrong["completion"])
    if name == "held-out wordings": assert found["value"] >= by_tier(0.0, 0.6)

# %% [markdown]
# (At the smoke tier the steps are few, so the first number is low.) Read the second beside it: a model that has read about nothing but itself has nothing
# else to say, whatever it is asked. In the full mixture about one conversation in six is about the model, and all others are about the world. That is the
# cure for leakage: most of what it reads must be about something else.
#
# ## A persona of your own
#
# Write a file of the same form and pass it on:

# %%
mine = parse_persona("""
= name : Pim
> I am Pim.
> They call me Pim.
? Who are you?
? What is your name?
! How may I call you?
marks : Pim
""")
for row in identity_conversations(2, persona=mine): print([m["content"] for m in row["messages"]])
assert judge_identity(identity_conversations(1, persona=mine)[0], "I am Pim.")

# %% [markdown]
# ## At scale
#
# Published nanochat used 1,000 conversations written by a larger model from a list of facts and 200 opening lines, twice in midtraining and once in
# finetuning. The idea is the same: facts in one place, many wordings, and a check afterwards. Templates are enough for a small world; for
# open questions, a larger writer pays.
#
# ## Recap
#
# * Identity is data: facts, key phrases, answers, questions.
# * Many wordings, in frames and styles; whole wordings are held out for the test.
# * A judge that accepts only the fact that was asked.
# * Leakage is measured on questions that are not about the model.
# * Never tell train and test apart by the sign of a seed.
