# %% [markdown]
# # 00. Start here
#
# **Promise.** Before you build a ChatGPT, you talk to one. It is small, it lives on this computer, and at the end of the course
# there will be no part of it that you have not written yourself.
#
# After this lesson you can
#
# * say what the model can do and what it cannot;
# * name the stages through which it went, and the lesson of each;
# * tell how fast your own machine is at the work that lies ahead.
#
# You need some Python. No calculus, no GPU. Reading: 10 minutes. Computing: less than one.

# %% [markdown]
# ## Talk to it
#
# The next cell looks for a trained model on this computer. If you ran `make tour`, there is one. If not, the cell says so, and you can
# come back: `make tour` takes ten to twenty minutes in a terminal while you read on.

# %%
from nanochat.__main__ import finished_course
from nanochat.workshop import UserError

try: course, stage = finished_course(None, None)
except UserError:
    course = None
    print("No finished model yet. Run `make tour` in a terminal, then run this notebook again.")
else: print(f"Found the run {course.run.name!r}, trained as far as its stage {stage!r}.")

# %% [markdown]
# These are messages that suit it, one for each thing it learned: who it is, the people of its world, sums, spelling, stories.

# %%
from nanochat.chat import Chat, suggestions

examples = suggestions()
for text in examples: print("*", text)
assert len(examples) == 5

# %%
from nanochat.tools import make_tool

chat = None
if course:
    chat = Chat(course.trained(stage), course.tokenizer, make_tool(course.tokenizer), temperature=0.0)
    for text in examples:
        chat.clear()
        print("you:  ", text)
        print("model:", "".join(chat.say(text)).strip(), "\n")

# %% [markdown]
# Now you. Click an example or type a message of your own, press Enter, and press Stop when you have read enough.

# %%
from nanochat.workshop import ChatWidget

panel = ChatWidget(chat.reply, examples) if chat else None
if panel is None: print("The chat panel appears here when there is a model.")
panel

# %% [markdown]
# Ask it for the capital of France. It will answer something, in good English, and it will be nonsense: it has read nothing but
# texts about one small invented world. **This is the first trap of the course.** A language model always answers. That
# it sounds sure tells you nothing about whether it knows. In lesson 03a you measure what it knows, and in every later lesson you
# measure again.

# %% [markdown]
# ## How it came to be
#
# ![Map of the course. Seven rows from top to bottom: the bench, text to tokens, the model, it learns text, it learns to chat, it runs and acts, yours. Each row holds its lessons by number; spine lessons are blue.](course_map.svg)
#
# *The course. Blue lessons are the spine: read them in order. The others are as important, but you may put them off.*
#
# The model that answered you went through these stages. Each takes what the stage before left behind.
#
# | stage | what happens | lesson |
# |---|---|---|
# | tokenizer | text becomes numbers: frequent pieces of words get one number each | 01 |
# | base | a network reads millions of words and learns to guess the next piece | 02, 03, 04 |
# | mid | it learns the form of a conversation, and to pick an answer by its letter | 05 |
# | sft | it learns to answer well, from examples | 06 |
# | rl | it tries sums many times and keeps to what worked | 07 |
# | chat | an engine makes it fast, a calculator makes it right, a page makes it yours | 08 to 12 |
#
# The base model can continue a text but cannot answer. The stages after it add little knowledge and much manners.
# If there is a finished run, the next cell shows what each stage added. Numbers are shares of questions answered well.

# %%
import json

def skills_by_stage(path) -> dict[str, dict[str, float]]:
    "Skill to stage to value, from a run's report."
    table = {}
    for row in json.loads(path.read_text(encoding="utf-8"))["skills"]:
        if row.get("value") is not None: table.setdefault(row["skill"], {})[row["stage"]] = row["value"]
    return table

report = course.run.path / "report.json" if course else None
table = skills_by_stage(report) if report and report.exists() else {}
for skill, values in table.items():
    print(f"{skill:26s}", "  ".join(f"{stage} {value:.2f}" for stage, value in values.items()))
if not table: print("No report yet.")

# %% [markdown]
# ## Predict, then run
#
# The model reads pieces of words, not letters. How many pieces will it need for a sentence of its own world, and how many for a
# sentence of the same length about something it has never met? Write down two numbers, then run the cell.

# %%
from nanochat import microworld
from nanochat.tokenizer import Tokenizer

tokenizer = course.tokenizer if course else Tokenizer.train((d.text for d in microworld.corpus(1_000_000)), 1024)
familiar = next(d.text for d in microworld.documents(7) if len(d.text) > 60)[:60]
strange = "Quantum chromodynamics explains gluon confinement in hadrons"
counts = [len(tokenizer.encode(text)) for text in (familiar, strange)]
for text, n in zip((familiar, strange), counts): print(f"{n:3d} tokens   {text!r}")
assert counts[0] < counts[1]

# %% [markdown]
# The strange sentence costs more pieces, because the tokenizer has learned what is frequent in *its* world. You will
# build that tokenizer in lesson 01. First the bench: 00a_workshop. Then the little world itself: 00b_microworld.

# %% [markdown]
# ## Your machine
#
# Training is almost only matrix products. This cell measures how many multiplications and additions your processor does a second.
# The result depends on your machine; a laptop of the last years reaches 50 to 1,000 billion.

# %%
import time

import torch

from nanochat.workshop import machine

def rate(n: int = 1024, repeats: int = 4) -> float:
    "Billion multiplications and additions a second, in a product of two n x n matrices."
    a, b = torch.randn(n, n), torch.randn(n, n)
    a @ b                                              # the first product warms up
    start = time.perf_counter()
    for _ in range(repeats): a @ b
    return 2 * n**3 * repeats / (time.perf_counter() - start) / 1e9

facts = machine()
for name, value in facts.items(): print(f"{name:8s} {value}")
speed = rate()
print(f"{speed:.0f} billion operations a second")
assert speed > 0 and facts["cores"] >= 1

# %% [markdown]
# How long does the base model take at that speed? A model of N parameters needs about 6 N operations for each token it learns
# from: two for the guess, four for the correction. Lesson 02a derives the 6. Here are the sizes of three models in this course.

# %%
import matplotlib.pyplot as plt

from nanochat.gpt import GPTConfig, config_for
from nanochat.workshop import figure

def matrix_parameters(config: GPTConfig) -> int:
    "Numbers in the model's matrices: 12 C^2 a layer and the head."
    return 12 * config.n_layer * config.n_embd**2 + config.vocab_size * config.n_embd

models = {"laptop": (config_for(4, 1024, 256, head_dim=64), 4096 * 1400),
          "d20": (config_for(20, 65536, 2048), 20 * 561_000_000),
          "d32": (config_for(32, 65536, 2048), 20 * 1_880_000_000)}
hours = {}
for name, (config, tokens) in models.items():
    n = matrix_parameters(config)
    hours[name] = 6 * n * tokens / (speed * 1e9) / 3600
    print(f"{name:6s} {n/1e6:8.1f} million numbers x {tokens/1e6:8.1f} million tokens: {hours[name]:14,.2f} hours here")
assert hours["laptop"] < hours["d20"] < hours["d32"]

# %%
fig, ax = plt.subplots(figsize=(5, 2.2), layout="constrained")
ax.barh(list(hours), list(hours.values()), color="#4878a8")
ax.set_xscale("log")
ax.invert_yaxis()
ax.set(xlabel="hours of pretraining on this machine (powers of ten)")
figure(fig, caption="What the same code costs at three sizes, on this machine.",
       alt="Three bars on a logarithmic axis. The laptop model needs a fraction of an hour on this machine, the 20-layer model "
           "tens of thousands of hours or more, the 32-layer model about ten times that.")

# %% [markdown]
# So the laptop model is yours today, and the others need a rented machine: a node with eight H100s does about 3.5 million billion useful
# operations a second and trains the 20-layer model in about three hours. The code is the same; lesson 12 has the command, and works out the cost.

# %% [markdown]
# ## How to work
#
# * **Read, predict, run.** Where a text says "predict", write a number down before you run the cell. Being wrong is the point.
# * **You have your own copy.** `make lab` opened the folder `work/`. Change anything; no command overwrites your files.
# * **Exercises.** `make start NN=01` gives you the exercises of lesson 01, `make ex NN=01` checks them, in seconds. Lessons 02, 03 and 04 have some, too.
# * **Small by default.** No cell on the way needs a GPU or a download. Where there is one, it is marked.
# * **Words** are explained where they first occur, and in `glossary.md` beside this file.
# * **Interrupt** a long cell with Kernel > Interrupt. Training that runs in a terminal saves itself on Ctrl-C.
#
# ## Recap
#
# 1. A language model continues text. A chat model is one that was shown what a conversation looks like.
# 2. It was made in stages, each with its own lesson and its own measured gain.
# 3. It always answers; whether it knows must be measured.
# 4. It reads pieces of words, cheap for what it met often, dear for the rest.
# 5. Six operations per parameter and token: that one number tells you what fits your machine.
#
# Next: 00a_workshop, the bench.
