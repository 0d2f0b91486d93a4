# %% [markdown]
# # 05 Midtraining: from documents to conversations
#
# **Promise.** You take a model that can only continue text and give it its first conversations. Nothing in the training
# loop changes. Only the batches do.
#
# After this lesson you can
#
# * turn conversations and documents into packed rows, and say what each target is;
# * explain why a conversation must never be cut, and show what goes wrong when it is;
# * run a midtraining stage that survives a kill;
# * measure whether a model picks the right letter, and tell "knows the format" from "knows the answer";
# * say why some plain text stays in the mixture.
#
# You need lessons 01 (chat rendering), 02b (packing), 03 (the loop) and 04b (letters). Reading: 20 minutes.
# Doing: 30 minutes. Computing on two cores: about two minutes.

# %%
#| default_exp midtrain

# %%
import tempfile
from pathlib import Path

import torch

from nanochat import microworld
from nanochat.checkpoint import Run
from nanochat.gpt import GPT, config_for
from nanochat.muon import make_optimizer
from nanochat.tokenizer import Tokenizer
from nanochat.train import pretrain
from nanochat.workshop import by_tier, figure, seed_all

seed_all(0)
T = 256
texts = [d.text for d in microworld.corpus(by_tier(200_000, 4_000_000))]
tokenizer = Tokenizer.train(texts[:1500], 512)
print(f"{len(texts):,} documents, {tokenizer.vocab_size} tokens")

# %% [markdown]
# ## A model that has never been asked anything
#
# First a base model: two layers, half a minute of pretraining with the stage of lesson 03. (At the smoke tier it is trained for a
# moment only and knows next to nothing. What follows does not depend on that.)

# %%
#| export
from collections.abc import Callable, Iterable
from functools import partial

from nanochat.data import Loader, Rows, encode_documents, pack_conversations_all, share
from nanochat.optim import schedule
from nanochat.train import fit
from nanochat.workshop import print0

# %%
from nanochat.data import pack_documents

run = Run("lesson05", tempfile.mkdtemp())
model = GPT(config_for(2, tokenizer.vocab_size, T, head_dim=64), seed=1)
documents = pack_documents(encode_documents(tokenizer, texts), T)
recipe = {"rows": by_tier(4, 8), "steps": by_tier(20, 500), "warmdown": 0.5, "save_every": 0}
base = run.stage("base", recipe, None, "microworld")
metrics = pretrain(base, recipe, make_model=lambda: model, make_optimizer=make_optimizer,
                   loader=Loader(documents, recipe["rows"], seed=0))
print(f"loss {metrics['loss']:.2f} nats per token after {metrics['steps']} steps")
assert metrics["loss"] < by_tier(5.5, 2.5)

# %% [markdown]
# Now ask it something. We write the question as the chat format wants it and let the model go on after
# `<|assistant_start|>`. Guess what it will do with a token it has never seen in its life.

# %%
from nanochat.sample import make_sampler

question = microworld.conversations("profile", 1, 0)[0]
sampler = make_sampler(model, (tokenizer.assistant_end, tokenizer.bos))

def ask(conversation: dict, n: int = 20) -> str:
    "The model's greedy answer, special tokens shown."
    sample, = sampler([tokenizer.render_prompt(conversation)], max_new_tokens=n, temperature=0)
    return tokenizer.decode(sample.tokens)

print(question["messages"][0]["content"], "->", repr(ask(question)))
newborn = GPT(model.config, seed=1)
row = tokenizer.user_start
assert torch.equal(model.wte.weight[row], newborn.wte.weight[row])      # training never touched it


# %% [markdown]
# It continues a document. The embedding of `<|user_start|>` is still the random vector of its birth, because no document contains
# it. Everything the model knows about the world sits in its weights, but nothing connects it to the act of answering.
#
# ## What midtraining changes
#
# Published nanochat puts a stage between pretraining and finetuning. It has three purposes:
#
# 1. **Format.** Eight special tokens get a meaning: who speaks, where a turn ends, where a tool is called.
# 2. **New kinds of text.** Multiple choice by letter, calculations with a tool, spelling: rare or absent in documents.
# 3. **Gently.** The loss is still next-token prediction on *every* token, the learning rate is still large. It is
#    pretraining on other data, not yet "learn to be an assistant".
#
# So the recipe for a batch is short. Render each conversation to tokens (lesson 01). Put a `<|bos|>` before each document. Pack both
# into rows (lesson 02b): conversations whole, documents cut where they are longer than a row. Every token is a target, except the padding and the seam before each `<|bos|>`.

# %%
#| export
def cut_documents(
    tokenizer,
    texts: Iterable[str],           # plain documents
    T: int,                         # row length
) -> list[tuple]:                   # (ids, mask): at most a row of each, every token a target
    "Documents in the form of rendered conversations, so that they can be packed among them."
    documents = (ids[: T + 1] for ids in encode_documents(tokenizer, texts))
    return [(ids, [1] * len(ids)) for ids in documents]


def midtrain_rows(
    tokenizer,
    conversations: Iterable[dict],  # {"messages": [...]}, as `tasks` and `microworld` give them
    texts: Iterable[str],           # plain documents, so that the language is not forgotten
    T: int,                         # row length
) -> Rows:                          # (N, T); all but padding and seams are targets
    "Whole conversations, and documents cut to a row, packed together. `UserError` when none fits."
    rendered = [tokenizer.render(c) for c in conversations]
    return pack_conversations_all(rendered + cut_documents(tokenizer, texts, T), T, tokenizer.bos)


# %%
choices = microworld.conversations("choice", by_tier(300, 6000), 0)
profiles = microworld.conversations("profile", by_tier(100, 1500), 0)
rows = midtrain_rows(tokenizer, choices + profiles, texts[:by_tier(50, 1500)], T)
print(f"{len(rows)} rows of {T}; {(rows.y == -1).float().mean():.1%} of the targets are padding or seam; "
      f"{rows.left_out} left out")
print(tokenizer.decode(rows.x[0, :90].tolist()))
assert rows.x[0, 0] == tokenizer.bos and (rows.y == tokenizer.user_start).any()

# %% [markdown]
# The last assertion is the difference to the next lesson in one line: the *question* is a target too. The model learns to
# predict what users say. That sounds wasteful, but at this stage it helps: it ties the new tokens to everything else.
#
# The figure shows some packed rows. Each colour change is a new item; the light part is padding, which counts for nothing.

# %%
import matplotlib.pyplot as plt

def kinds(rows: Rows, n: int) -> torch.Tensor:
    "0 padding, 1 document, 2 question, 3 answer, for the first n rows."
    picture = torch.zeros(n, rows.x.shape[1])
    for r in range(n):
        kind = 0
        for t, token in enumerate(rows.x[r].tolist()):
            if token == tokenizer.bos: kind = 1 if rows.y[r, t] != -1 else 0
            if token == tokenizer.user_start: kind = 2
            if token == tokenizer.assistant_start: kind = 3
            picture[r, t] = kind
    return picture

shown = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))[:24]
picture = kinds(Rows(rows.x[shown], rows.y[shown]), len(shown))
fig, ax = plt.subplots(figsize=(6, 2.6), layout="constrained")
ax.imshow(picture, aspect="auto", interpolation="nearest", cmap=plt.get_cmap("YlGnBu", 4), vmin=0, vmax=3)
ax.set(xlabel="position in the row", ylabel="row")
figure(fig, caption="Packed rows: padding (lightest), documents, questions, answers (darkest).",
       alt="Twenty-four rows, each filled with several conversations and documents; questions take far more room "
           "than the short dark answers, and a little light padding stands at the right end.")

# %% [markdown]
# **Trap: cutting a conversation.** In pretraining a document that does not fit is cropped, and nobody minds: half a story is still
# a story. Published nanochat did the same to conversations for a while. Look at what the old packing does to multiple choice: the
# end of a row cuts off the *answer*, the one token we care about, and the rest is thrown away.

# %%
rendered = [tokenizer.render(c)[0] for c in choices]
cropped = pack_documents(rendered, T)
whole = midtrain_rows(tokenizer, choices, [], T)
for name, packed in (("cropping", cropped), ("whole", whole)):
    asked, answered = ((packed.y == token).sum().item() for token in (tokenizer.user_start, tokenizer.assistant_end))
    print(f"{name:9s} {asked:5d} questions, {answered:5d} finished answers")
assert (whole.y == tokenizer.assistant_end).sum() == len(choices)
assert (cropped.y == tokenizer.assistant_end).sum() < (cropped.y == tokenizer.user_start).sum()


# %% [markdown]
# The price of never cutting is padding at the row ends: you printed the share above. What is longer than a row cannot be kept and is
# left out. Saying so matters: at short rows published nanochat silently filled its batches with padding only, and the loss became NaN.
#
# ## The stage
#
# The rest is plumbing that you know: a `Loader` over the rows, a fresh optimizer, `fit` from lesson 03. We write it as one function
# that takes *finished rows*, because the next lesson will use the same function with other rows.

# %%
#| export
def fit_settings(recipe: dict) -> dict:
    """The part of a recipe that the loop of lesson 03 reads, under the names it uses.

    steps and save_every; perhaps warmup, warmdown, final, eval_every, accumulate, clip."""
    shape = {key: recipe[key] for key in ("warmup", "warmdown", "final") if key in recipe}
    rest = {key: recipe[key] for key in ("eval_every", "accumulate", "clip") if key in recipe}
    return {"steps": recipe["steps"], "save_every": recipe["save_every"],
            "schedule": partial(schedule, steps=recipe["steps"], **shape), **rest}


# %%
settings = fit_settings({"steps": 10, "save_every": 0, "warmdown": 0.4})
print([round(settings["schedule"](t), 2) for t in range(10)])
assert settings["schedule"](9) < settings["schedule"](5) == 1.0


# %% [markdown]
# The first version of nanochat's midtraining let the rate *rise* at the end instead of falling (issue 68). Nothing crashed. Print your
# schedule once.

# %%
#| export
def _say_left_out(rows: Rows) -> None:
    "Tell when conversations did not fit into a row: silence here once cost people a night."
    if rows.left_out:
        print0(f"{rows.left_out} conversations are longer than {rows.x.shape[1]} tokens "
               "and were left out")


def train_on_rows(
    stage,                      # of `checkpoint`: where it is stored
    recipe: dict,               # rows (of all ranks together), lr_scale, seed, what `fit_settings` reads
    make_rows: Callable[[], Rows],  # packs the data; only called when there is something to do
    *,
    model,                      # starts from the weights it has; changed in place
    tokenizer,
    make_optimizer: Callable,   # (model, lr_scale=..., batch_tokens=...) -> a fresh optimizer
    rank: int = 0, world: int = 1,
    **options,                  # evaluators, reduce, forward, gather, agree: handed to `fit`
) -> dict:                      # metrics, also written to the stage's folder
    """One finetuning stage: packed rows through the loop of lesson 03, with a fresh optimizer.

    Resumed when killed; when finished, only its metrics are read.
    `UserError` when its recipe changed."""
    stage.start()
    if stage.status() == "finished": return stage.metrics()
    rows = make_rows()
    _say_left_out(rows)
    loader = Loader(rows, share(recipe["rows"], world), seed=recipe.get("seed", 0), rank=rank, world=world)
    tokens = recipe["rows"] * rows.x.shape[1] * recipe.get("accumulate", 1)
    optimizer = make_optimizer(model, lr_scale=recipe["lr_scale"], batch_tokens=tokens)
    metrics = fit(stage, model, optimizer, loader, label=stage.name,
                  fingerprint=tokenizer.fingerprint(), extra={"config": model.config.to_dict()},
                  **fit_settings(recipe), **options)
    metrics |= {"rows": len(rows), "left_out": rows.left_out}
    stage.finish(metrics)
    return metrics


# %%
tiny = GPT(config_for(1, tokenizer.vocab_size, T, head_dim=64), seed=0)
short = {"rows": 2, "steps": 2, "lr_scale": 0.5, "save_every": 0}
stage = run.stage("trial", short, base, "trial")
done = train_on_rows(stage, short, lambda: rows, model=tiny, tokenizer=tokenizer, make_optimizer=make_optimizer)
again = train_on_rows(stage, short, lambda: 1 / 0, model=tiny, tokenizer=tokenizer, make_optimizer=make_optimizer)
print({k: done[k] for k in ("steps", "tokens", "rows", "left_out")})
assert again == done                       # finished: the rows are not even packed a second time


# %% [markdown]
# With that, midtraining is two lines.

# %%
#| export
def midtrain(
    stage,                          # of `checkpoint`: where it is stored
    recipe: dict,                   # as for `train_on_rows`
    *,
    model,                          # a pretrained model; changed in place
    tokenizer,
    conversations: Iterable[dict],
    texts: Iterable[str] = (),      # documents of the pretraining text
    make_optimizer: Callable,       # (model, lr_scale=..., batch_tokens=...) -> optimizer
    **options,                      # evaluators, rank, world, reduce, forward, gather, agree
) -> dict:                          # metrics, also written to the stage's folder
    "Midtraining: conversations and some plain text, every token a target (as in nanochat)."
    rows = partial(midtrain_rows, tokenizer, conversations, texts, model.config.seq_len)
    return train_on_rows(stage, recipe, rows, model=model, tokenizer=tokenizer,
                         make_optimizer=make_optimizer, **options)


# %% [markdown]
# ## Three things a letter can show
#
# A multiple-choice question here is answered in two steps, as in lesson 04b: say the answer, then its letter, `A hen says cluck=C`. The letter is what counts, but when it is
# wrong you want to know why. So we ask three questions. Does the reply name *one of the options*? That is format. Is the letter *the one behind the option it named*? That is looking
# something up in the prompt. Is it the *right* letter? That needs both, and the knowledge.

# %%
import re

from nanochat.chat_eval import completions, letter_accuracy
from nanochat.sample import make_sampler
from nanochat.tasks import WorldTask

test = WorldTask("choice", by_tier(20, 100), seed=1, split="test")

def letters(model) -> dict:
    "Shares of replies that name an option, give its letter, and are right; and of right letters when one must be chosen."
    sampler = make_sampler(model, [tokenizer.assistant_end, tokenizer.bos])
    said = completions(sampler, tokenizer, test.rows, max_new_tokens=16, temperature=0.0, top_k=None)
    named = bound = right = 0
    for row, text in zip(test.rows, said):
        options = dict(re.findall(r"^- (.*)=([A-D])$", row["messages"][0]["content"], re.M))
        words, _, letter = text.partition("=")
        option = next((o for o in options if words.endswith(o)), None)
        named += option is not None
        bound += option is not None and options[option] == letter[:1]
        right += option is not None and options[option] == letter[:1] == row["answer"]
    found = letter_accuracy(model, tokenizer, test, sampler=sampler)
    return {"named": named / len(test), "bound": bound / len(test), "right": right / len(test), **{k: found[k] for k in ("value", "low", "high")}}

before = letters(model)
print({k: round(v, 3) for k, v in before.items()})
assert before["named"] < 0.2

# %% [markdown]
# **Predict, then run.** We midtrain for a moment. Which of the three will move first? By how much?

# %%
recipe = {"rows": by_tier(4, 8), "steps": by_tier(30, 500), "warmdown": 0.6, "lr_scale": 0.5,
          "save_every": 200, "eval_every": by_tier(10, 125)}
stage = run.stage("mid", recipe, base, "choice, profile and text")
metrics = midtrain(stage, recipe, model=model, tokenizer=tokenizer, conversations=choices + profiles,
                   texts=texts[:by_tier(50, 1500)], make_optimizer=make_optimizer, evaluators={"letters": letters})
after = metrics["evals"]["letters"]
print({k: round(v, 3) for k, v in after.items()})
assert after["named"] >= max(before["named"], by_tier(0.0, 0.1)) and after["right"] <= after["bound"] <= after["named"]

# %%
points = [(0, before)] + [(r["step"], r["evals"]["letters"]) for r in stage.records() if "evals" in r]
points.append((recipe["steps"], after))
fig, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
ax.plot([s for s, _ in points], [p["named"] for _, p in points], "o-", label="names an option")
ax.plot([s for s, _ in points], [p["bound"] for _, p in points], "^-", label="the letter of that option")
ax.plot([s for s, _ in points], [p["right"] for _, p in points], "s-", label="and it is right")
ax.errorbar([s for s, _ in points], [p["value"] for _, p in points], fmt="x--", label="right, if a letter must be chosen",
            yerr=[[p["value"] - p["low"] for _, p in points], [p["high"] - p["value"] for _, p in points]])
ax.axhline(0.25, color="grey", linewidth=1)
ax.set(xlabel="step", ylabel="share", ylim=(0, 1.05))
ax.legend(frameon=False)
figure(fig, caption="What a reply to a multiple-choice question gets right, while midtraining. The grey line is guessing.",
       alt="Four curves over the steps of midtraining. The likeliest of the four letters stays near the grey line of guessing throughout; the share of replies that name an option rises from 0 to a quarter, "
           "those with the letter of that option to 0.06, and those that are right stay at 0.01.")

# %% [markdown]
# In the stored run 25 of 100 replies name an option after 500 steps of this small model, 6 with its letter, and one of these is right; the likeliest of the four letters is where guessing is. It is still learning manners.
#
# Read the three solid curves from top to bottom. What is missing from the first is manners; what is lost between the first and the second is lost in looking up the letter; what is lost between
# the second and the third is lost in knowing the answer. A report that only said "so many right" would have hidden which of them to mend. The course's own laptop model was mended
# with just this table: of 200 replies 172 named an option, and only 82 had its letter. Games with letters helped one seed of three. Once the documents held a game in which nothing can be
# known by heart (the pairs of lesson 00b), the base model could look things up before midtraining began, and three quarters and more of the letters were right with every seed
# (`benchmarks/RESULTS.md`).
#
# ## Not forgetting
#
# Each step on conversations is a step away from documents. How far? We measure bits per byte on fresh documents, after midtraining with
# and without plain text in the mixture.

# %%
from copy import deepcopy

from nanochat.checkpoint import load_weights
from nanochat.train import evaluate_bpb

fresh = [d.text for d in microworld.validation(by_tier(8_000, 100_000), 0, exclude=set(texts))]
held_out = pack_documents(encode_documents(tokenizer, fresh), T)
batches = [(held_out.x[i:i + 8].long(), held_out.y[i:i + 8].long()) for i in range(0, len(held_out), 8)]
bpb = lambda model: evaluate_bpb(model, batches, tokenizer.token_bytes())["bpb"]

bare = deepcopy(model)
load_weights(base.path, model=bare)
results = {"base model": bpb(bare), "with text": bpb(model)}
midtrain(run.stage("mid_bare", recipe, base, "no text"), recipe | {"eval_every": 0}, model=bare, tokenizer=tokenizer,
         conversations=choices + profiles, make_optimizer=make_optimizer)
results["without text"] = bpb(bare)
for name, value in results.items(): print(f"{name:13s} {value:.3f} bits per byte on documents")
assert results["with text"] < results["without text"]

# %% [markdown]
# Some plain text in the mixture is cheap insurance. In the prototype behind this course single facts that occurred in few
# documents were overwritten by confident guesses when the finetuning data held no text (from 0.25 right to 0.13).
#
# ## At scale
#
# Published nanochat midtrains its d20 on about 850,000 conversations in one epoch: 460,000 of SmolTalk, 100,000 multiple-choice questions, 8,000
# word problems with calculator steps, 280,000 about spelling, a thousand about itself. Batch 524,288 tokens, rows of 2,048, learning-rate factor 1.0,
# constant for 80% of the steps and then down to 0. On 8xH100 that is some 8 minutes of a four-hour run. The recipe here differs in
# three places: conversations are never cut, some documents stay in the mixture, and gradients are clipped as in pretraining.
#
# ## Recap
#
# * Midtraining is pretraining on conversations: same loop, other batches, every token a target.
# * Documents may be cropped; conversations may not. What does not fit is left out and said.
# * A stage is a function of a folder: finished means skipped, killed means resumed, changed means refused.
# * Format comes first and fast, knowledge later: measure both.
# * Keep some plain text in, or the model forgets its language.
#
# **Quiz.** Why is the padding never a target, although in this stage everything else is? (Because its content was chosen by the packer:
# learning it would teach the model to write `<|bos|>` after the end of an answer, as often as rows happen to have room.)
#
# **Papers.** Hendrycks et al. (2021), *Measuring massive multitask language understanding*. Ding et al. (2024), *Fewer truncations improve language
# modeling* (best-fit packing). Karpathy (2025), *nanochat*.
