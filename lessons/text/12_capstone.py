# %% [markdown]
# # 12 Capstone: the whole run
#
# **Promise.** You type one command and get a ChatGPT. In this lesson you write that command: it reads a recipe, runs every
# stage you have built, survives a kill, and prints a report card. Then you run it in two processes, and work out what the
# same code would cost on a node with eight H100s.
#
# After this lesson you can
#
# * read and change a recipe, and say which stages will run again and why;
# * run, kill and resume the whole course from a terminal;
# * predict FLOPs, hours and dollars of a large run from `depth`;
# * talk to the result in a notebook.
#
# You need every lesson before this one. Reading: 25 minutes. Computing on two cores: about one minute here, ten to twenty for the full tour.

# %%
#| default_exp __main__

# %%
#| export
import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import torch

# %% [markdown]
# ## A recipe is data
#
# A run is described by a small TOML file in `nanochat/recipes/`. Nothing in it is code, so nothing in it can surprise you:
# sections are stages, numbers are steps and sizes. Here is the one that `make tour` runs.

# %%
print((files("nanochat") / "recipes" / "laptop.toml").read_text())

# %% [markdown]
# A recipe may build on another one (`builds_on = "laptop"`): it then lists only what is different. `load_recipe` reads a file,
# joins it with what it builds on, applies `--set` changes and checks every number before anything starts. A misspelt
# key is an error, not a silent default: it costs one second now instead of a night later.

# %%
#| export
from nanochat.midtrain import fit_settings
from nanochat.workshop import (UserError, atomic_write, can_compile, home, keep_memory, machine, pick_device,
                               pick_dtype, print0, ranks, seed_all)

RECIPES = files("nanochat") / "recipes"


def recipe_names() -> list[str]:
    "Names of the recipes that come with the package."
    return sorted(p.name.removesuffix(".toml") for p in RECIPES.iterdir() if p.name.endswith(".toml"))


def _join(under: dict, over: dict) -> dict:
    "`under` with the keys of `over` put in its place, section by section."
    both = dict(under)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = _join(both[key], value) if nested else value
    return both


def load_recipe(
    name: str,            # name of a file in nanochat/recipes, without .toml
    changes: tuple = (),  # texts like "base.steps=20"
) -> dict:                # sections by name
    "Read, join, change and check a recipe. UserError names what is wrong."
    if name not in recipe_names():
        raise UserError(f"no recipe called {name!r}; there are: {', '.join(recipe_names())}")
    recipe = tomllib.loads((RECIPES / f"{name}.toml").read_text(encoding="utf-8"))
    if "builds_on" in recipe: recipe = _join(load_recipe(recipe.pop("builds_on")), recipe)
    for change in changes: change_recipe(recipe, change)
    return recipe


# %%
#| export
def change_recipe(recipe: dict, change: str) -> None:
    "Apply one `section.key=value` to a recipe. The key must exist and the value must be of its type."
    path, _, text = change.partition("=")
    section, _, key = path.rpartition(".")
    where = recipe.get(section) if section else recipe
    if not isinstance(where, dict) or key not in where:
        known = ", ".join(where) if isinstance(where, dict) else ", ".join(recipe)
        raise UserError(f"--set {change}: the recipe has no {path!r}; known here: {known}")
    try: value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError: value = text
    if type(value) is int and type(where[key]) is float: value = float(value)
    if type(value) is not type(where[key]):
        raise UserError(f"--set {change}: {path} must be of type {type(where[key]).__name__}")
    where[key] = value


# %%
recipe = load_recipe("laptop", ("base.steps=20",))
print(recipe["base"])
assert recipe["base"]["steps"] == 20
for bad in ("base.step=20", "base.steps=many"):
    try: load_recipe("laptop", (bad,))
    except UserError as error: print("refused:", error)

# %%
#| export
from nanochat import data, tasks
from nanochat.gpt import config_for


def graded(graders: dict) -> list[str]:
    "The names of the tasks whose answers are right or wrong."
    return [name for name, grade in graders.items() if grade not in (tasks.not_graded, None)]


def check_mixture(stage: str, parts: list) -> None:
    "`UserError` when a mixture is no list of [task, times, rows], or has a task that cannot be trained on."
    hub = {name: row[3] for name, row in tasks.HUB.items()}
    known = {*tasks.GRADERS, *hub, "spelling", "identity"} - {"humaneval"}       # HumanEval is an exam
    if stage == "rl": known = set(graded(tasks.GRADERS | hub))
    for part in parts:
        match part:
            case [str(name), int(times), int(rows)] if times >= 0 and rows >= 1: pass
            case _: raise UserError(f'recipe: {stage}.mixture: {part!r} must be [task, times, rows], such as ["word1", 1, 500]')
        if name not in known: raise UserError(f"recipe: {stage}.mixture: no task {name!r} here; there are {', '.join(sorted(known))}")


def check_recipe(recipe: dict) -> None:
    "Refuse sizes that cannot work, by name, before anything is written."
    for section, values in recipe.items():
        if not isinstance(values, dict): continue
        for key, value in values.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            may_be_zero = (key in ("text", "warmup", "final", "warmdown", "temperature", "weight_decay")
                           or (key == "steps" and section != "base"))      # later stages may be left out
            if number and not (0 < value < math.inf or (value == 0 and may_be_zero)):
                raise UserError(f"recipe: {section}.{key} is {value}; it must be finite and above zero")
    model, vocab_size = recipe["model"], recipe["tokenizer"]["vocab_size"]
    if vocab_size < 265: raise UserError(f"recipe: tokenizer.vocab_size is {vocab_size}; 256 bytes and nine specials need 265")
    if not -2**63 <= recipe["seed"] < 2**63: raise UserError(f"--seed {recipe['seed']}: it must fit into 64 bits")
    config_for(model["depth"], vocab_size, model["seq_len"], head_dim=model["head_dim"])      # refuses what fits no model
    for stage in ("base", "mid", "sft"):
        try: fit_settings(recipe[stage])["schedule"](0)
        except UserError as error: raise UserError(f"recipe: {stage}: {error}") from error
    for stage in ("mid", "sft", "rl"): check_mixture(stage, recipe[stage]["mixture"])
    if recipe["rl"]["task"] not in graded(tasks.GRADERS): raise UserError(f"recipe: rl.task: {recipe['rl']['task']!r} is none of {', '.join(graded(tasks.GRADERS))}")
    if recipe["rl"]["samples"] < 2: raise UserError("recipe: rl.samples must be 2 or more: one answer cannot be better than its siblings")
    for size in (recipe["base"]["rows"], recipe["mid"]["rows"], recipe["sft"]["rows"], recipe["rl"]["prompts"]): data.share(size, ranks()[2])
    context, items = recipe["model"]["seq_len"], recipe["eval"]["items"]
    if context < 64: raise UserError(f"recipe: model.seq_len is {context}; conversations need 64 or more")
    if items < 1: raise UserError("recipe: eval.items must be at least 1")


# %% [markdown]
# ## Where the text comes from
#
# The roof of the house is the only place that knows every room. A `Source` is what the stages need to know about text: the
# documents to train on, the documents to measure on, and the entropy of the world that wrote them (if anybody knows it).

# %%
#| export
from nanochat import microworld


@dataclass
class Source:
    "Text to learn from, text to measure on, and what is known about it."
    name: str                      # "microworld" or a folder
    train: list[str]
    val: list[str]
    entropy_bpb: float | None      # bits per byte of the world itself; None: nobody knows
    identity: str                  # a hash that changes when the text does

    @property
    def is_world(self) -> bool: return self.entropy_bpb is not None


def _digest(texts: list[str]) -> str:
    "sha256 of a list of texts."
    h = hashlib.sha256()
    for text in texts: h.update(text.encode() + b"\0")
    return h.hexdigest()


def microworld_source(megabytes: float, val_kilobytes: float, seed: int) -> Source:
    "The world of lesson 00b."
    train = microworld.corpus(int(megabytes * 1e6), seed)
    val = microworld.validation(int(val_kilobytes * 1e3), seed, exclude={d.text for d in train})
    texts = [d.text for d in train]
    return Source("microworld", texts, [d.text for d in val], microworld.entropy_bpb(val), _digest(texts))


def folder_source(folder: str, megabytes: float, val_kilobytes: float, seq_len: int) -> Source:
    "Your own texts, cut into pieces that fit into a row; a tenth, chosen by content, is kept for measuring."
    train, val = data.split_by_hash(data.read_texts(Path(folder), limit=2 * seq_len))     # a token is 2 to 4 characters
    train, val = _at_most(train, megabytes * 1e6), _at_most(val, val_kilobytes * 1e3)
    if not train or not val:
        raise UserError(f"{folder} holds too little text: add documents, or longer ones, until a tenth can be kept apart")
    return Source(str(folder), train, val, None, _digest(train + val))


def _at_most(texts: list[str], n_bytes: float) -> list[str]:
    "The first texts that fit into so many bytes."
    kept, size = [], 0
    for text in texts:
        if kept and size + len(text.encode()) > n_bytes: break
        kept.append(text); size += len(text.encode())
    return kept


def open_source(recipe: dict) -> Source:
    "The text a recipe asks for."
    d = recipe["data"]
    if d["source"] == "microworld":
        return microworld_source(d["megabytes"], d["val_kilobytes"], recipe["seed"])
    return folder_source(d["source"], d["megabytes"], d["val_kilobytes"], recipe["model"]["seq_len"])


# %%
source = microworld_source(0.2, 20, seed=0)
print(f"{len(source.train)} documents; the world's entropy is {source.entropy_bpb:.3f} bits per byte")
print(source.train[0])
assert not set(source.train) & set(source.val)


# %% [markdown]
# ## What a machine can do
#
# Everything that depends on the machine is probed once, stored in the run and used again on resume: a run that was started in bf16
# must not go on in fp32.

# %%
#| export
def probe(device_name: str = "auto", dtype_name: str = "auto") -> dict:
    "What this machine offers: device, dtype, whether compiling works, threads."
    device = pick_device(device_name)
    dtype = pick_dtype(device, dtype_name)
    return {"device": device_name if ":" in device_name else device.type, "dtype": str(dtype).removeprefix("torch."),
            "compile": can_compile(device.type), "threads": torch.get_num_threads()}


# %%
print(probe(), machine())

# %% [markdown]
# ## One run of one recipe
#
# A `Course` is a recipe, the run's folder, the text, and what was probed: all that the stages share. It knows how to make the
# model and the optimizer, because sizes live in `gpt`, rates in `muon` and numbers in the recipe, and only the roof sees all three.

# %%
#| export
from nanochat import distributed
from nanochat.checkpoint import Run, Stage, load_weights, newest_finished
from nanochat.engine import make_engine
from nanochat.gpt import GPT
from nanochat.muon import make_optimizer, ns_rounds
from nanochat.tokenizer import Tokenizer


@dataclass
class Course:
    "What the stages of one run share."
    recipe: dict
    run: Run
    probed: dict                         # of `probe`
    source: Source
    tokenizer: Tokenizer | None = None   # from the first stage on
    stages: dict = field(default_factory=dict)
    micro: int = 0                       # rows that go through the model at a time; 0: a whole batch
    wandb: str | None = None             # project on Weights & Biases that is told as well
    began: float = field(default_factory=time.perf_counter)

    @property
    def device(self) -> torch.device: return pick_device(self.probed["device"])

    @property
    def dtype(self) -> torch.dtype: return getattr(torch, self.probed["dtype"])

    @property
    def seed(self) -> int: return self.recipe["seed"]

    def new_model(self) -> GPT:
        "The model of this recipe with its first weights."
        m = self.recipe["model"]
        config = config_for(m["depth"], self.tokenizer.vocab_size, m["seq_len"], head_dim=m["head_dim"])
        model = GPT(config, self.seed).to(self.device)
        model.compute_dtype = self.dtype
        return model

    def trained(self, stage: str) -> GPT:
        "The model as a finished stage left it."
        model = self.new_model()
        load_weights(self.run.path / stage, model=model, fingerprint=self.tokenizer.fingerprint())
        return model

    def sampler(self, model: GPT) -> Callable:
        "The cached engine of lesson 08; a reply ends at its end token or at a new document."
        return make_engine(model, [self.tokenizer.assistant_end, self.tokenizer.bos])


# %%
#| export
def optimizer_maker(course: Course) -> Callable:  # (model, lr_scale=..., batch_tokens=..., steps=...) -> optimizer
    "Muon and AdamW at the recipe's rates; over several ranks each keeps a part of the optimizer's state."
    base, rates = course.recipe["base"], ("matrix_lr", "embedding_lr", "head_lr")
    def make(model: GPT, **options):
        tokens = base["rows"] * model.config.seq_len * base.get("accumulate", 1)
        usual = {"batch_tokens": tokens, "ns_steps": ns_rounds(model.config.n_embd, tokens)}
        optimizer = make_optimizer(model, ns_dtype=course.dtype, **{r: base[r] for r in rates}, **(usual | options))
        return distributed.ShardedOptimizer(optimizer) if ranks()[2] > 1 else optimizer
    return make


# %% [markdown]
# ## What is measured, and when
#
# A skill is one number with its interval. Text skills can be measured from the first stage on; skills that need a conversation only
# when the model has seen one. Letters are the exception: they are measured *before* midtraining too, because the jump from
# chance is the clearest picture of what midtraining does.

# %%
#| export
from nanochat import chat_eval, core, identity, spelling, train

TEST_SEED = 1_000_003      # added to the run's seed: no stage draws its training items from here
NOT_HERE = ("bpb_ratio", "story", "core", "core_multiple_choice", "core_schema",
            "core_language_modeling", "profile")      # mean nothing for a model that never read the world


def _row(skill: str, found: dict) -> dict:
    "A measured skill as metrics.json holds it."
    keys = ("value", "items", "low", "high")
    return {"skill": skill, **{k: found.get(k) for k in keys}}


def measure_bpb(course: Course, model: GPT) -> list[dict]:
    "Bits per byte on text the model has not seen, and its ratio to the world's entropy."
    T = course.recipe["model"]["seq_len"]
    rows = data.pack_documents(data.encode_documents(course.tokenizer, course.source.val), T)
    n = max(1, min(32, 8192 // T))                          # long rows have large logits
    batches = ((rows.x[i : i + n].long(), rows.y[i : i + n].long()) for i in range(0, len(rows), n))
    found = train.evaluate_bpb(model, batches, course.tokenizer.token_bytes())
    skills = [_row("bpb", {"value": found["bpb"], "items": found["bytes"]})]
    if course.source.is_world:
        skills.append(_row("bpb_ratio", {"value": found["bpb"] / course.source.entropy_bpb, "items": found["bytes"]}))
    return skills


# %%
#| export
def write_stories(
    course: Course,
    model: GPT,
    temperature: float = 0.0,
) -> list[tuple[dict, str]]:   # (what the opening gave, the whole story)
    "Let the model go on with fresh openings, to the end of each story."
    tokenizer, seed = course.tokenizer, TEST_SEED + course.seed
    openings = microworld.story_openings(course.recipe["eval"]["items"], seed)
    prompts = [[tokenizer.bos, *tokenizer.encode(o["opening"])] for o in openings]
    length, sampler, samples = course.recipe["model"]["seq_len"], course.sampler(model), []
    together = max(1, 2**16 // length)                   # the cache of all rows at once has to fit
    for i in range(0, len(prompts), together):
        samples += sampler(prompts[i : i + together], max_new_tokens=length - max(map(len, prompts)),
                           temperature=temperature, seed=seed + i)
    return [(o, o["opening"] + chat_eval.completion_text(tokenizer, s)) for o, s in zip(openings, samples)]


def measure_stories(course: Course, model: GPT, temperature: float = 0.0) -> dict:
    "Share of stories that keep hero, object, colour and friend to their end."
    judged = [microworld.judge_story(text, o["hero"], o["object"], o["colour"])
              for o, text in write_stories(course, model, temperature)]
    return chat_eval.shares(sum(j["ok"] for j in judged), len(judged))


# %%
#| export
def measure_core(course: Course, model: GPT) -> list[dict]:
    "The world's CORE: the mean centred score, and accuracy by type beside its guessers."
    n = course.recipe["eval"]["items"]
    found = core.evaluate_core(model, course.tokenizer, microworld.core_tasks(n, TEST_SEED + course.seed))
    results = list(found["tasks"].values())
    skills = [_row("core", {"value": found["core"], "items": sum(r["items"] for r in results)})]
    for kind in ("multiple_choice", "schema", "language_modeling"):
        of_kind = [r for r in results if r["type"] == kind]
        items = sum(r["items"] for r in of_kind)
        right = round(sum(r["accuracy"] * r["items"] for r in of_kind))
        guess = {name: max(r[name] or 0.0 for r in of_kind) for name in ("majority", "shortest")}
        skills.append(_row(f"core_{kind}", chat_eval.shares(right, items)) | guess)
    return skills


# %%
#| export
def test_tasks(course: Course) -> dict:   # skill -> task
    "The held-out questions of every chat skill."
    n, seed = course.recipe["eval"]["items"], TEST_SEED + course.seed
    world = lambda kind: tasks.WorldTask(kind, n, seed, "test")
    return {"letter_choice": world("choice"), "profile": world("profile"), "reading": world("reading"),
            "word_easy": world("word1"), "word_hard": world(course.recipe["rl"]["task"]),
            "spelling": spelling.SpellingTask(microworld.spelling_words(), course.tokenizer, n, seed, "test"),
            "identity": identity.IdentityTask(n, seed, "test")}


def measure_chat(course: Course, model: GPT, names: tuple | None = None) -> list[dict]:
    "Chat skills on held-out questions: letters from the logits, everything else by writing, greedily."
    from nanochat.tools import make_tool
    options = dict(max_new_tokens=96, tool=make_tool(course.tokenizer))
    skills = []
    for name, task in test_tasks(course).items():
        if names is not None and name not in names: continue
        if task.kind == "letter": found = chat_eval.letter_accuracy(model, course.tokenizer, task, sampler=course.sampler(model))
        else: found = chat_eval.generation_accuracy(course.sampler(model), course.tokenizer, task, **options)
        skills.append(_row(name, found) | {"failures": found.get("failures", [])})
    return skills


# %%
#| export
def measure(course: Course, stage: str, model: GPT) -> list[dict]:
    "All skills that mean something after a stage; what does not apply to your own text is noted as such."
    model.eval()
    skills = measure_bpb(course, model)
    if course.source.is_world:
        if stage == "base": skills += [_row("story", measure_stories(course, model)), *measure_core(course, model)]
        if stage == "rl": skills.append(_row("story", measure_stories(course, model)))
    skills += measure_chat(course, model, ("letter_choice",) if stage == "base" else None)
    if course.source.is_world: return skills
    note = {"value": None, "note": f"not applicable: trained on {course.source.name}"}
    kept = [s for s in skills if s["skill"] not in NOT_HERE]
    return kept + [_row(s, {}) | note for s in NOT_HERE if stage == "base" or s == "profile"]


# %% [markdown]
# ## The stages
#
# Each stage is the same four lines: say what it is (its recipe, seed, data and parent make its hash), get the weights of its parent,
# call the stage function of its lesson, remember it. A finished stage returns at once, a killed one goes on, a changed one stops
# and says what changed. You wrote all of that in lessons 02e and 03; here it is only wired.

# %%
#| export
WIRING = {   # stage: its parent, and the sections of the recipe that decide what comes out
    "tokenizer": (None, "tokenizer"), "base": ("tokenizer", "base", "model"), "mid": ("base", "mid"),
    "sft": ("mid", "sft"), "rl": ("sft", "rl")}
STAGES = tuple(WIRING)


def open_stage(course: Course, name: str) -> Stage:
    "The stage of this run, after checking that what its folder holds is what we mean."
    parent, *sections = WIRING[name]
    recipe = {s: course.recipe[s] for s in sections}
    recipe["compute"] = course.probed["dtype"]
    stage = course.run.stage(name, recipe, course.stages.get(parent), course.source.identity, course.seed)
    stage.verify()
    course.stages[name] = stage
    return stage


def chat_texts(course: Course, n: int) -> list[str]:
    "What is said in n conversations of each of the world's kinds, so that the words of the chat become tokens, too."
    talks = [talk for kind in microworld.TALKS for talk in microworld.conversations(kind, n, course.seed)]
    return [m["content"] for talk in talks for m in talk["messages"] if isinstance(m["content"], str)]


def tokenizer_stage(course: Course) -> None:
    "Train the tokenizer, or load the one that is there."
    stage, section = open_stage(course, "tokenizer"), course.recipe["tokenizer"]
    if stage.status() != "finished" and ranks()[0] == 0:
        stage.start()
        began = time.perf_counter()
        texts = _at_most(course.source.train, section["megabytes"] * 1e6) + chat_texts(course, section["chats"])
        tokenizer = Tokenizer.train(texts, section["vocab_size"])
        tokenizer.save(stage.path)
        if tokenizer.vocab_size < section["vocab_size"]:
            print0(f"the text has too few pairs for {section['vocab_size']:,} tokens: there are {tokenizer.vocab_size:,}")
        sample = texts[:200]
        size = sum(len(t.encode()) for t in sample) / sum(map(len, tokenizer.encode_batch(sample)))
        stage.finish({"seconds": time.perf_counter() - began, "vocab_size": tokenizer.vocab_size,
                      "bytes_per_token": size})
    distributed.gather_objects(None)                     # the other ranks wait until the file is there
    course.tokenizer = Tokenizer.load(stage.path)
    print0(f"tokenizer: {course.tokenizer.vocab_size} tokens, {stage.metrics()['bytes_per_token']:.2f} bytes each")


# %% [markdown]
# How many rows fit into memory at a time is found out at the start (lesson 03), and said only when a batch has to be split; the result is the same.
# Every record goes to `log.jsonl` in any case, and with `--wandb PROJECT` to Weights & Biases too.
#
# While the base model learns, `watchers` looks at it every `eval_every` steps: bits per byte on a little held-out text, the world's CORE on 20 items a task, and
# one sentence to read. They take about two seconds, and you see a model go from syllables to people who find things.

# %%
#| export
def learner(course: Course) -> tuple[GPT, Callable]:
    "One model object and its compiled forward pass for all stages, so that compiling is paid once."
    model, rows = course.new_model(), data.share(course.recipe["base"]["rows"], ranks()[2])
    course.micro = train.rows_that_fit(model, rows)
    if course.micro < rows: print0(f"{course.micro} of {rows} rows at a time: more do not fit into memory here")
    return model, train.compile_forward(model) if course.probed["compile"] else model


def common_options(course: Course, stage: Stage) -> dict:
    "What every training stage is given besides its data."
    rows = course.recipe[stage.name].get("rows", 0) // ranks()[2]      # a stage without rows chooses its own pieces
    options = {"evaluators": {"skills": lambda model: {"skills": measure(course, stage.name, model)}},
               "micro": course.micro if course.micro < rows else 0}
    if course.wandb and ranks()[0] == 0:
        name = f"{course.run.name} {stage.name}"
        options["also"] = train.wandb_log(course.wandb, name, course.recipe, stage.hash)
    if ranks()[2] > 1:
        options |= {"reduce": distributed.average_tensors, "gather": distributed.gather_objects,
                    "agree": distributed.any_rank}
    return options


def watchers(course: Course) -> dict:   # name -> f(model) -> dict
    "What is looked at while the base learns: bits per byte, the world's CORE on a few items, a sentence to read."
    few = replace(course, source=replace(course.source, val=_at_most(course.source.val, 20_000)),
                  recipe=course.recipe | {"eval": {"items": 20}})
    start = [course.tokenizer.bos, *course.tokenizer.encode("One day")]

    def sample(model: GPT) -> dict:
        said = course.sampler(model)([start], max_new_tokens=32, temperature=0.7, seed=course.seed)[0]
        text = "One day" + course.tokenizer.decode(said.tokens)
        print0(f"  {text}")
        return {"text": text}

    watch = {"val": lambda model: {"skills": measure_bpb(few, model)}, "sample": sample}
    return watch | ({"core": lambda model: {"skills": measure_core(few, model)}} if course.source.is_world else {})


def base_stage(course: Course, model: GPT, forward: Callable) -> None:
    "Pretraining on the source's text."
    stage, section = open_stage(course, "base"), course.recipe["base"]
    if stage.status() == "finished": return
    rank, _, world = ranks()
    tokens = data.encode_documents(course.tokenizer, course.source.train)
    rows = data.pack_documents(tokens, course.recipe["model"]["seq_len"])
    print0(f"text: {rows.x.numel():,} tokens, read {section['rows'] * section['steps'] / len(rows):.1f} times; "
           f"{rows.cropped / sum(map(len, tokens)):.0%} more were cropped from documents longer than what was left of a row")
    loader = data.Loader(rows, data.share(section["rows"], world), seed=course.seed, rank=rank, world=world)
    model.init_weights(course.seed)
    make = partial(optimizer_maker(course), steps=section["steps"])
    train.pretrain(stage, section, make_model=lambda: model, make_optimizer=make,
                   loader=loader, forward=forward, fingerprint=course.tokenizer.fingerprint(),
                   watch=watchers(course), **common_options(course, stage))


# %%
#| export
def named_task(course: Course, name: str, rows: int, seed: int):
    "A training task by the name a recipe gives it."
    if name == "spelling":
        return spelling.SpellingTask(microworld.spelling_words(), course.tokenizer, rows, seed, "train")
    if name == "identity": return identity.IdentityTask(rows, seed, "train")
    if name in tasks.GRADERS: return tasks.WorldTask(name, rows, seed, "train")
    task = tasks.hub_task(name, tasks.TRAIN_SPLITS.get(name, "train"))
    task.rows = [task[i] for i in range(min(rows, len(task)))]
    return task


def mixture(course: Course, section: dict, seed: int) -> tasks.Mixture:
    "The conversations of a stage: the recipe's list of [task, times, rows]."
    parts = [(named_task(course, name, rows, seed + i), times)
             for i, (name, times, rows) in enumerate(section["mixture"])]
    return tasks.Mixture(parts, seed)


# %% [markdown]
# Midtraining and SFT read the weights of the stage before them into the same model object, so the compiled forward pass stays
# valid. Reinforcement learning needs nothing compiled: its rows have many lengths.

# %%
#| export
def plain_texts(course: Course, section: dict) -> list[str]:
    "The documents that a chat stage keeps among its conversations."
    return course.source.train[-section["text"]:] if section["text"] else []


def begin_with(course: Course, parent: str, model: GPT) -> None:
    "Give the model the weights that an earlier stage left."
    distributed.gather_objects(None)          # rank 0 may still be writing them; the others would find an older file
    load_weights(course.run.path / parent, model=model, fingerprint=course.tokenizer.fingerprint())


def chat_stage(course: Course, name: str, model: GPT, forward: Callable) -> None:
    "Midtraining or SFT: the same loop, other rows."
    from nanochat.midtrain import midtrain
    from nanochat.sft import sft
    stage, section = open_stage(course, name), course.recipe[name]
    if stage.status() == "finished": return
    begin_with(course, WIRING[name][0], model)
    rank, _, world = ranks()
    options = dict(model=model, tokenizer=course.tokenizer, forward=forward, rank=rank, world=world,
                   make_optimizer=optimizer_maker(course), **common_options(course, stage),
                   conversations=mixture(course, section, course.seed + 100 * len(course.stages)))
    stage_function = {"mid": midtrain, "sft": sft}[name]
    stage_function(stage, section, texts=plain_texts(course, section), **options)


def rl_stage(course: Course, model: GPT) -> None:
    "Reinforcement learning on word problems of both levels, with the calculator."
    from nanochat.grpo import grpo
    from nanochat.tools import make_tool
    stage, section = open_stage(course, "rl"), course.recipe["rl"]
    if stage.status() == "finished": return
    begin_with(course, "sft", model)
    options = {k: v for k, v in common_options(course, stage).items() if k in ("evaluators", "reduce", "agree")}
    rank, _, world = ranks()
    grpo(stage, section, model=model, tokenizer=course.tokenizer, sampler=course.sampler(model), rank=rank, world=world,
         task=mixture(course, section, course.seed + 900),
         tool=make_tool(course.tokenizer), make_optimizer=optimizer_maker(course), **options)


# %%
#| export
def run_stages(course: Course, until: str = "rl") -> None:
    "Run the stages up to one of them; what is finished is passed over."
    tokenizer_stage(course)
    if until == "tokenizer": return
    model, forward = learner(course)
    wanted = STAGES[1 : STAGES.index(until) + 1]
    base_stage(course, model, forward)
    for name in ("mid", "sft"):
        if name in wanted: chat_stage(course, name, model, forward)
    if "rl" in wanted: rl_stage(course, model)


# %% [markdown]
# ## How long will it take?
#
# Three full training steps without compiling, of which the fastest counts, tell how fast this machine is, within a few seconds. The rest is arithmetic:
# steps times tokens, and the shares that a quiet reference run spent elsewhere. The number is printed before anything starts.

# %%
#| export
COMPILED = 0.75         # a compiled step's share of an eager one: 0.62 measured with AMX, 0.89 without
FIXED_SECONDS = 45.0    # compiling, text, tokenizer
STEP_SHARES = {"eval": 130, "rl": 2.2}    # all evaluation, and one rl step, in units of one training step


def step_seconds(course: Course) -> float:
    "Seconds of one training step on this machine, measured without compiling."
    m, rows = course.recipe["model"], data.share(course.recipe["base"]["rows"], ranks()[2])
    config = config_for(m["depth"], course.recipe["tokenizer"]["vocab_size"], m["seq_len"], head_dim=m["head_dim"])
    with torch.device("meta"): size = 16 * GPT(config).num_params()["total"]       # weight, gradient, two moments: 4 bytes each
    free = train.free_bytes(course.device)
    if size > free:
        raise UserError(f"a model of depth {m['depth']} takes {size / 1e9:.0f} GB to train and {free / 1e9:.0f} GB are free; use a smaller --depth")
    model = GPT(config).to(course.device)
    model.compute_dtype = course.dtype
    optimizer, seconds = optimizer_maker(course)(model), []
    idx, micro = torch.randint(0, config.vocab_size, (rows, m["seq_len"]), device=course.device), train.rows_that_fit(model, rows)
    wait = partial(torch.cuda.synchronize, course.device) if course.device.type == "cuda" else lambda: None
    for _ in range(3):
        wait()
        began = time.perf_counter()
        for part in idx.split(micro): model(part, part).backward()
        optimizer.step()
        wait()
        seconds.append(time.perf_counter() - began)
    slowest = max(distributed.gather_objects(min(seconds)))      # one number on all ranks, or they decide differently
    return slowest * (COMPILED if course.probed["compile"] else 1.0)


def estimate(course: Course) -> float:
    "Seconds that the whole recipe will take on this machine, within about a third."
    r = course.recipe
    steps = sum(r[s]["steps"] * r[s]["rows"] / r["base"]["rows"] for s in ("base", "mid", "sft"))
    steps += STEP_SHARES["rl"] * r["rl"]["steps"] * r["rl"]["prompts"] * r["rl"]["samples"] / 128
    steps += STEP_SHARES["eval"] * r["eval"]["items"] / 200
    return FIXED_SECONDS + steps * step_seconds(course)


# %%
#| export
def fit_minutes(course: Course, minutes: float) -> str:
    "Shorten the recipe until it fits: fewer steps first, then a smaller model. Returns what was done."
    if not minutes > 0: raise UserError(f"--minutes {minutes:g}: it must be above zero")
    recipe, said = course.recipe, []
    while (needed := estimate(course)) > 60 * minutes:
        share = (60 * minutes - FIXED_SECONDS) / (needed - FIXED_SECONDS)
        if share < 0.4 and recipe["model"]["depth"] > 2:
            recipe["model"]["depth"] -= 1
            said.append(f"depth {recipe['model']['depth']}")
            continue
        if share <= 0.05: raise UserError(f"--minutes {minutes:g} is too short for this machine; the least is about "
                                          f"{(FIXED_SECONDS + 0.1 * (needed - FIXED_SECONDS)) / 60:.0f}")
        for s in ("base", "mid", "sft", "rl"): recipe[s]["steps"] = max(1, int(recipe[s]["steps"] * share))
        said.append(f"{share:.0%} of the steps")
        break
    return "to fit the time asked for: " + (", ".join(said) or "nothing had to change")


# %% [markdown]
# ## The run
#
# `open_course` puts the pieces together and stores what was probed. `run_course` holds the lock, runs the stages and writes the
# report. Everything a learner can do wrong was raised as a `UserError` somewhere below; here it becomes one line and exit status 2.

# %%
#| export
from nanochat.report import write_report


def _commit() -> str:
    "The commit this package stands at, or unknown."
    here = Path(str(files("nanochat")))
    try: found = subprocess.run(["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    except OSError: return "unknown"                   # there is no git
    return found.stdout.strip() or "unknown"


def stored_facts(run: Run) -> dict:
    "What run.json says about a run; empty when it has none yet."
    path = run.path / "run.json"
    if not path.exists(): return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(facts, dict): raise ValueError("it holds no table")
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); use --name NEW, or delete it and name the --dtype that the run had") from error
    return facts


def open_course(recipe: dict, run: Run, device: str = "auto", dtype: str = "auto") -> Course:
    "Check the recipe, probe the machine (or read what was probed when the run began), open the text."
    began = time.perf_counter()
    check_recipe(recipe)
    keep_memory()
    kept = stored_facts(run).get("probed")
    if kept and device != "auto" and device.partition(":")[0] != kept["device"].partition(":")[0]:
        raise UserError(f"run {run.name} was begun on {kept['device']}; use --name NEW to compute on {device}")
    if kept and dtype not in ("auto", kept["dtype"]):
        raise UserError(f"run {run.name} was begun in {kept['dtype']}; use --name NEW to compute in {dtype}")
    probed = kept or probe(device, dtype)
    if ranks()[2] == 1: torch.set_num_threads(probed["threads"])
    seed_all(recipe["seed"])
    return Course(recipe, run, probed, open_source(recipe), began=began)


def write_facts(course: Course, note: str = "") -> None:
    "run.json: what the report says about the run as a whole."
    facts = {"recipe": course.recipe["name"], "seed": course.seed, "commit": _commit(), "data": course.source.name,
             "machine": machine() | {k: course.probed[k] for k in ("dtype", "threads")}, "probed": course.probed,
             "entropy_bpb": course.source.entropy_bpb, "settings": course.recipe}
    kept = stored_facts(course.run)
    if is_finished(course.run): facts |= {k: kept[k] for k in ("commit", "machine") if k in kept}    # nothing is trained
    facts |= {"note": note or kept.get("note", ""), "wall_seconds": kept.get("wall_seconds", 0.0)}
    if ranks()[0] == 0: atomic_write(course.run.path / "run.json", json.dumps(facts, indent=1))


# %%
#| export
def redo(run: Run, stage: str) -> None:
    "Delete a stage and all that was built on it, the last one first."
    for name in reversed(STAGES[STAGES.index(stage):]): run.stage(name, {}).reset()


def check_kept(course: Course, until: str, since: str | None) -> None:
    "`UserError` when a stage that stays was made otherwise: asked before anything is written or deleted."
    if since and STAGES.index(since) > STAGES.index(until):
        raise UserError(f"--from {since} comes after {until}, where this run ends")
    trial = replace(course, stages={})
    for name in STAGES[: STAGES.index(since) if since else None]: open_stage(trial, name)


def is_finished(run: Run) -> bool:
    "Has every stage of a run its metrics?"
    return all((run.path / s / "metrics.json").exists() for s in STAGES)


def run_course(course: Course, until: str = "rl", since: str | None = None, minutes: float | None = None) -> dict:
    "Run a recipe under the run's lock; returns the report."
    course.probed = distributed.gather_objects(course.probed)[0]                 # dtypes are probed by timing: rank 0's
    with course.run.lock():
        note = fit_minutes(course, minutes) if minutes is not None else ""
        check_kept(course, until, since)                                        # both may refuse: first of all
        if since or not is_finished(course.run): say_estimate(course, until, note)      # builds the model: may refuse, too
        if since:
            parent = WIRING[since][0]
            if parent not in (None, "tokenizer"): load_weights(course.run.path / parent)      # can it be read?
            redo(course.run, since)
            distributed.any_rank(True)                                          # no rank goes on before it is gone
        write_facts(course, note)
        finished = is_finished(course.run)
        try: run_stages(course, until)
        finally:
            if not finished: keep_time(course)
        return write_report(course.run.path) if ranks()[0] == 0 else {}


def keep_time(course: Course) -> None:
    "Add the seconds since the course was opened to those that earlier, interrupted runs took."
    path, facts = course.run.path / "run.json", stored_facts(course.run)
    if ranks()[0] != 0 or not facts: return
    now = time.perf_counter()
    facts["wall_seconds"] = facts.get("wall_seconds", 0.0) + now - course.began
    course.began = now
    atomic_write(path, json.dumps(facts, indent=1))


def say_estimate(course: Course, until: str, note: str) -> None:
    "Print how long the run will take here, before it starts."
    minutes = max(1, round(estimate(course) / 60))
    print0(f"{course.recipe['name']} on {machine()['cpu']}, {course.probed['threads']} threads, "
           f"{course.probed['dtype']}: about {minutes} minute{'s'[:minutes > 1]} {note}".rstrip(), flush=True)
    if minutes > 15 and not note:
        print0("that is long; `--minutes 10` fits the run to ten minutes (fewer steps, then a smaller model)")


# %% [markdown]
# ## The command line
#
# One program, a table of commands. The table holds names, not functions: a command's module is imported when it is called,
# so `--help` is quick and a missing optional library hurts only the command that needs it.

# %%
#| export
COMMANDS = {   # command: (module:function, what it does)
    "run": ("nanochat.__main__:run_command", "run a whole recipe: all stages, report, chat"),
    "tokenizer": ("nanochat.__main__:stage_command", "run a recipe up to the tokenizer"),
    "pretrain": ("nanochat.__main__:stage_command", "run a recipe up to pretraining"),
    "midtrain": ("nanochat.__main__:stage_command", "run a recipe up to midtraining"),
    "sft": ("nanochat.__main__:stage_command", "run a recipe up to supervised finetuning"),
    "grpo": ("nanochat.__main__:stage_command", "run a recipe up to reinforcement learning"),
    "eval": ("nanochat.__main__:eval_command", "measure a finished stage again"),
    "chat": ("nanochat.__main__:chat_command", "talk to a trained model"),
    "report": ("nanochat.__main__:report_command", "write and show the report of a run; compare runs"),
}
STAGE_OF = {"tokenizer": "tokenizer", "pretrain": "base", "midtrain": "mid", "sft": "sft", "grpo": "rl"}


class OneLineParser(argparse.ArgumentParser):
    "An argument parser whose complaints are one line."
    def error(self, message: str): raise UserError(f"{message}; see {self.prog} --help")


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    "Options of everything that trains."
    parser.add_argument("--name", help="name of the run (default: the recipe's)")
    parser.add_argument("--seed", type=int, help="seed of data, weights and sampling")
    parser.add_argument("--data", metavar="DIR", help="train the base model on your own texts")
    parser.add_argument("--depth", type=int, help="the one dial: layers; width follows")
    parser.add_argument("--minutes", type=float, help="shorten the run to about this long")
    parser.add_argument("--from", dest="since", choices=STAGES, help="redo this stage and those after it")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="SECTION.KEY=VALUE",
                        help="change one number of the recipe")
    parser.add_argument("--wandb", metavar="PROJECT", help="send the log to Weights & Biases as well (not of grpo)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16")


# %%
#| export
def make_parser() -> argparse.ArgumentParser:
    "The options of every command."
    parser = OneLineParser(prog="python -m nanochat", description="Build and use a small ChatGPT.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, text) in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text)
        if name == "run":
            sub.add_argument("recipe", help="one of: " + ", ".join(recipe_names()))
            sub.add_argument("--until", choices=STAGES, default="rl", help="stop after this stage")
            sub.add_argument("--chat", action="store_true", help="talk to the model at the end")
        if name in STAGE_OF: sub.add_argument("--recipe", default="laptop", help="which recipe")
        if name == "run" or name in STAGE_OF: _add_run_options(sub)
        if name in ("eval", "chat"):
            sub.add_argument("--name", help="name of the run (default: the newest of those that got furthest)")
            sub.add_argument("--stage", choices=STAGES[1:], help="which stage's model (default: the last finished)")
        if name == "chat":
            sub.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
            sub.add_argument("--ask", metavar="TEXT", help="answer one message and leave")
        if name == "report": sub.add_argument("names", nargs="*", help="runs; two or more are compared")
    return parser


def recipe_from(args: argparse.Namespace) -> dict:
    "The recipe that the options ask for."
    recipe = load_recipe(args.recipe, tuple(args.changes))
    if args.seed is not None: recipe["seed"] = args.seed
    if args.depth is not None: recipe["model"]["depth"] = args.depth
    if args.data is not None: recipe["data"]["source"] = str(Path(args.data).expanduser())
    return recipe


# %%
#| export
def shorten_alike(recipe: dict, kept: dict, depth: int | None) -> None:
    "Take over what `--minutes` decided when the run began: steps, and the depth unless one is asked for."
    for stage in ("base", "mid", "sft", "rl"): recipe[stage]["steps"] = kept[stage]["steps"]
    if depth is None: recipe["model"]["depth"] = kept["model"]["depth"]


def train_command(args: argparse.Namespace, until: str) -> Course:
    "Run a recipe as the options say."
    recipe = recipe_from(args)
    run = Run(recipe["name"] if args.name is None else args.name)
    kept = stored_facts(run)
    if args.minutes and kept.get("note"):
        shorten_alike(recipe, kept["settings"], args.depth)
        args.minutes = None
    course = open_course(recipe, run, args.device, args.dtype)
    course.wandb = args.wandb
    with distributed.session(course.device):
        record = run_course(course, until, args.since, args.minutes)
    if ranks()[0] == 0: print(f"\nreport: {run.path / 'report.md'}  ({record['seconds']['total']:.0f} s of work)")
    return course


def run_command(args: argparse.Namespace) -> None:
    "`python -m nanochat run RECIPE`"
    course = train_command(args, args.until)
    if not args.chat or ranks()[0] != 0: return
    print((course.run.path / "report.md").read_text(encoding="utf-8"))
    if args.until != "tokenizer": talk(course, args.until, 0.0)


def stage_command(args: argparse.Namespace) -> None:
    "`python -m nanochat pretrain` and its sisters."
    train_command(args, STAGE_OF[args.command])


# %%
#| export
def finished_course(name: str | None, stage: str | None) -> tuple[Course, str]:
    "A trained run and the stage to use, by name, or the newest of the runs that got furthest."
    wanted = [stage] if stage else ["rl", "sft", "mid", "base"]
    found = Run(name) if name is not None else next((r for r in map(newest_finished, wanted) if r), None)
    if found is None: raise UserError(f"no finished run in {home()}; train one with: python -m nanochat run laptop")
    done = [s for s in wanted if (found.path / s / "metrics.json").exists()]
    if not done: raise UserError(f"run {found.name} in {home()} has no finished stage {' or '.join(wanted)}; train it first")
    facts = stored_facts(found)
    if not facts.keys() >= {"settings", "probed"}: raise UserError(f"{found.path / 'run.json'} is missing or incomplete; use another run")
    recipe, probed = facts["settings"], facts["probed"]
    try: pick_device(probed["device"])
    except UserError: probed = probe()                      # trained elsewhere; to use it any device will do
    empty = Source(facts["data"], [], [], facts["entropy_bpb"], "")
    course = Course(recipe, found, probed, empty, Tokenizer.load(found.path / "tokenizer"))
    return course, done[0]


def eval_command(args: argparse.Namespace) -> None:
    "`python -m nanochat eval`: the skills of a finished stage, measured again."
    course, stage = finished_course(args.name, args.stage)
    course.source = open_source(course.recipe)
    for row in measure(course, stage, course.trained(stage)):
        value = row.get("note") or f"{row['value']:.3f}"
        span = f"  ({row['low']:.2f} to {row['high']:.2f})" if row.get("low") is not None else ""
        print(f"{row['skill']:25s} {value}{span}")


def report_command(args: argparse.Namespace) -> None:
    "`python -m nanochat report`: one run, or several side by side."
    from nanochat.report import compare_runs
    folders = [Run(name).path for name in args.names] or [finished_course(None, None)[0].run.path]
    if len(folders) > 1: return print(compare_runs(folders))
    write_report(folders[0])
    print((folders[0] / "report.md").read_text(encoding="utf-8"))


# %%
#| export
def main(argv: list[str] | None = None) -> int:
    "The program: a `UserError` is one line on stderr and exit status 2."
    for out in (sys.stdout, sys.stderr):       # a terminal that cannot show a character gets a question mark
        if hasattr(out, "reconfigure"): out.reconfigure(errors="replace")
    try:
        args = make_parser().parse_args(argv)
        module, _, function = COMMANDS[args.command][0].partition(":")
        getattr(import_module(module), function)(args)
        sys.stdout.flush()
    except UserError as error:
        print(f"nanochat: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:                    # as in `| head -1`: whoever read us has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


# %% [markdown]
# ## Talking to it
#
# On a terminal you get a prompt. In a pipe, where nobody types, a sample dialogue is printed instead. Both open with five things that
# this model can do.

# %%
#| export
def talk(course: Course, stage: str, temperature: float, question: str | None = None) -> None:
    "A chat on a terminal, or a sample dialogue where there is none."
    from nanochat.chat import Chat, opening, sample_dialogue, suggestions, terminal_chat
    from nanochat.tools import make_tool
    chat = Chat(course.trained(stage), course.tokenizer, make_tool(course.tokenizer), temperature=temperature)
    examples = suggestions(course.seed)
    if question is not None:
        if not question.strip(): raise UserError("--ask holds no message")
        print(f"you: {question}\nmodel: ", end="", flush=True)
        for piece in chat.say(question): print(piece, end="", flush=True)      # a message that is too long is a `UserError`
        return print()
    if sys.stdin.isatty(): return terminal_chat(chat, opening(examples))
    print(opening(examples) + "\n")
    sample_dialogue(chat, examples)


def chat_command(args: argparse.Namespace) -> None:
    "`python -m nanochat chat`"
    course, stage = finished_course(args.name, args.stage)
    if not 0 <= args.temperature <= 2: raise UserError("--temperature must be between 0 and 2")
    talk(course, stage, args.temperature, args.ask)


# %%
#| export
if __name__ == "__main__" and "get_ipython" not in globals(): raise SystemExit(main())

# %% [markdown]
# Mistakes end in one line:

# %%
for words in (["run", "nothing"], ["sing"], ["run", "laptop", "--set", "base.rows=0"], ["chat", "--name", "nobody"]):
    print("exit status", main(words))

# %% [markdown]
# ## The twin on this machine
#
# The `smoke` recipe is the whole course in under a minute: every stage for a few steps. Its answers are nonsense, and that is not
# the point. The point is that all the wires are connected. In a terminal you would type `python -m nanochat run smoke`; here you
# call the same function, with a folder of its own so that nothing of yours is touched.

# %%
import tempfile

folder = tempfile.mkdtemp()
os.environ["NANOCHAT_QUIET"] = "1"
tiny = load_recipe("smoke", ("base.steps=12", "mid.steps=4", "sft.steps=4", "rl.steps=1", "eval.items=8",
                             "data.megabytes=0.4", "tokenizer.megabytes=0.3"))
course = open_course(tiny, Run("twin", folder), device="cpu", dtype="float32")
record = run_course(course)
assert {row["stage"] for row in record["skills"]} == {"base", "mid", "sft", "rl"}

# %% [markdown]
# The report is a file, made from other files; nothing was kept in memory for it.

# %%
from IPython.display import Markdown

Markdown((course.run.path / "report.md").read_text())

# %% [markdown]
# Run it again: every stage is finished and equal, so nothing happens. Change one number, and the run refuses to mix the two.

# %%
began = time.perf_counter()
run_course(open_course(tiny, Run("twin", folder)))
print(f"nothing to do: {time.perf_counter() - began:.1f} s")
tiny["base"]["warmdown"] = 0.5
try: run_course(open_course(tiny, Run("twin", folder)))
except UserError as error: print("refused:", error)

# %% [markdown]
# **Trap.** Why does the hash hold the *parent's* hash and not only the recipe of the stage itself? Because a finetuned model whose base model
# was trained again is not the model you think it is. With the parent in it, changing one number of pretraining makes every later stage
# different too, and the program says so instead of answering with old weights.
#
# ## At scale
#
# The same code runs under `torchrun`: each process takes its own rows, gradients are averaged before clipping, and each owns a part of
# the optimizer's state (lesson 03b). (While it runs, `torchrun` listens on all network interfaces, without a password: on a rented
# node, behind a firewall.) What would the published sizes cost? FLOPs per token follow from the shapes (lesson 02a), tokens
# from parameters (20 for each), and the rest is a division.

# %%
H100_FLOPS, MFU, DOLLARS = 989e12, 0.45, 24.0      # dense bf16 peak of one GPU; share reached; price of a node-hour (assumed)
print("depth  parameters    tokens   FLOPs    hours on 8 GPUs   dollars")
for depth in (12, 20, 26, 32):
    with torch.device("meta"): big = GPT(config_for(depth, 65_536, 2_048))
    tokens = 20 * big.num_params()["total"]
    flops = big.flops_per_token() * tokens
    hours = flops / (8 * H100_FLOPS * MFU) / 3600
    print(f"d{depth:<5} {big.num_params()['total']:>11,}  {tokens / 1e9:6.1f}e9  {flops:.2e}  {hours:10.1f}  {hours * DOLLARS:15.0f}")

# %% [markdown]
# This is pretraining alone. Published nanochat reports three hours for it at depth 20, so the share of peak assumed above is in the right
# place; its whole run took 3 hours and 51 minutes without reinforcement learning, about $100. Depth 32 costs nearly twelve times as
# much, because parameters and tokens grow together.
#
# ## Talk to it
#
# The last cell takes the newest finished run of yours, if there is one (`make tour` makes one), and opens the chat widget. Without one
# it takes the twin from above, which has learned next to nothing.

# %%
from nanochat.chat import Chat, suggestions
from nanochat.tools import make_tool
from nanochat.workshop import ChatWidget

try: mine, stage = finished_course(None, None)
except UserError: mine, stage = course, "rl"
chat = Chat(mine.trained(stage), mine.tokenizer, make_tool(mine.tokenizer), temperature=0.0, max_new_tokens=60)
print(f"run {mine.run.name}, after {stage}: {suggestions()[0]} ->", "".join(chat.say(suggestions()[0])))
ChatWidget(chat.reply, examples=suggestions())

# %% [markdown]
# ## Recap
#
# * A recipe is data; a stage is a function of a folder; the roof wires them and knows nothing else.
# * A stage's hash holds recipe, seed, data and parent, so finished work is skipped and changed work is refused.
# * The machine is probed once and the result is stored: a run goes on as it began.
# * Mistakes are one line and exit status 2; Ctrl-C saves and exits with 130.
# * FLOPs = (6 x matrix weights + 12 L C T) x tokens: with a price per hour, that is the bill.
