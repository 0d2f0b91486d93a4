# %%
#| default_exp core

# %% [markdown]
# # 03a · Evaluation: what does a base model know?
#
# **Promise.** You will build the CORE score, the one number by which base models of this family are compared, and you will know
# how much of a difference in it is noise.
#
# After this lesson you can
#
# * turn three kinds of question into plain text that a model without any chat training can answer;
# * score a choice by likelihood and a completion by exact greedy match;
# * say why accuracies are *centred* before they are averaged;
# * put an interval around a score and refuse to celebrate inside it;
# * score hundreds of questions in seconds by batching them by length.
#
# **Before:** 02a (the GPT), 03 (bits per byte). **Time:** 25 minutes to read, a few seconds to compute.

# %%
#| export
import csv
import gzip
import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from nanochat.workshop import UserError

# %% [markdown]
# ## A model that gets every question right, and scores zero
#
# Here is a "model" that always picks the first option. The questions below were written carelessly: the right answer
# tends to stand first. Look at its score.

# %%
careless = [{"query": "The sky is", "choices": ["blue", "loud"], "gold": 0}] * 7 \
         + [{"query": "Snow is", "choices": ["hot", "cold"], "gold": 1}] * 3
right = sum(row["gold"] == 0 for row in careless)
print(f"always the first option: {right} of {len(careless)} right")
assert right == 7


# %% [markdown]
# Seventy percent, and it has read nothing. Two lessons follow, and the code below obeys both. A score means little without the
# score of a *guesser* beside it. And a guesser is not only a coin: "always the first" and "always the shortest" are guessers too.
#
# ## Three kinds of question
#
# A base model continues text. It has no idea what a question is. So each question becomes text whose continuation we can score.
#
# | type | what varies | what we compare |
# |---|---|---|
# | multiple choice | the ending | mean loss of each ending after the same beginning |
# | schema | the beginning | mean loss of the same ending after each beginning |
# | language modelling | nothing | is the greedy continuation exactly the expected one? |
#
# A schema question is a Winograd pair: *The trophy does not fit because the **trophy** / the **suitcase** is too large.* The ending
# "is too large" is the same for both, so a fluent but ignorant model has no favourite.
#
# A **shot** is a solved example in front of the question; it shows the model the format. Rendering is one small function for each type.
# They take a row, some solved rows (`shots`) and the `delimiter` that stands between question and answer.

# %%
#| export
def render_choice(
    row: dict,            # {"query", "choices", "gold"}
    shots: Sequence[dict] = (),  # solved rows that stand in front
    delimiter: str = " ", # between query and answer
) -> list[str]:           # one prompt for each choice
    "Prompts of a multiple-choice row: same beginning, different endings (arXiv 2406.11794)."
    head = "".join(f"{s['query']}{delimiter}{s['choices'][s['gold']]}\n\n" for s in shots)
    return [f"{head}{row['query']}{delimiter}{choice}" for choice in row["choices"]]


# %%
sky = {"query": "The sky is", "choices": ["blue", "loud"], "gold": 0}
snow = {"query": "Snow is", "choices": ["hot", "cold"], "gold": 1}
for prompt in render_choice(sky, shots=[snow]): print(repr(prompt))
assert render_choice(sky) == ["The sky is blue", "The sky is loud"]


# %%
#| export
def render_schema(
    row: dict,            # {"context_options", "continuation", "gold"}
    shots: Sequence[dict] = (),
    delimiter: str = " ",
) -> list[str]:           # one prompt for each context
    """Prompts of a schema row: different beginnings, same ending."""
    head = "".join(
        f"{s['context_options'][s['gold']]}{delimiter}{s['continuation']}\n\n" for s in shots
    )
    return [
        f"{head}{context}{delimiter}{row['continuation']}" for context in row["context_options"]
    ]


# %% [markdown]
# A schema row turns it round: the beginnings differ.

# %%
trophy = {
    "context_options": [
        "It does not fit because the trophy",
        "It does not fit because the suitcase",
    ],
    "continuation": "is too large.",
    "gold": 0,
}
print(*render_schema(trophy), sep="\n")
assert all(p.endswith("is too large.") for p in render_schema(trophy))


# %%
#| export
def render_completion(
    row: dict,            # {"context", "continuation"}
    shots: Sequence[dict] = (),
    delimiter: str = " ",
) -> list[str]:           # [prompt without the continuation, prompt with it]
    """Prompts of a language-modelling row.

    The first loses its trailing space, so that its tokens are the beginning of the second's.
    """
    head = "".join(f"{s['context'].strip()}{delimiter}{s['continuation']}\n\n" for s in shots)
    without = f"{head}{row['context'].strip()}{delimiter}"
    return [without.strip(), without + row["continuation"]]


# %%
august = {"context": "July comes before ", "continuation": "August"}
print(render_completion(august))
assert render_completion(august) == ["July comes before", "July comes before August"]


# %% [markdown]
# **Trap.** Why is the space stripped? A tokenizer glues the space to the *next* word: " August" is one piece. A prompt that ends in a bare
# space has already spent that space as a token of its own, and after it no well-trained model writes "August". Nothing crashes; the
# score is simply far too low. The rendering above strips it, and the next function checks that the tokens really line up.
#
# ## Which tokens count
#
# Score only what differs. For multiple choice the options share a beginning: the scored span starts where the tokens first differ. For a
# schema they share an ending: the span is that common ending. Comparing token lists, not strings, keeps us right when a
# tokenizer merges across the seam.

# %%
#| export
class Option(NamedTuple):
    "A token sequence whose last part, from `start`, is scored."
    tokens: list[int]
    start: int


def common_prefix(
    rows: Sequence[Sequence[int]],  # two or more token lists
) -> int:                           # how many leading tokens all of them share
    "Length of the longest common prefix."
    shortest = min(map(len, rows))
    for i in range(shortest):
        if any(row[i] != rows[0][i] for row in rows): return i
    return shortest


# %%
assert common_prefix([[1, 2, 3], [1, 2, 9, 9]]) == 2
assert common_prefix([[1, 2], [1, 2, 3]]) == 2
assert (
    common_prefix([row[::-1] for row in ([5, 7, 8], [6, 7, 8])]) == 2
)  # reversed: the common ending


# %%
#| export
def choice_options(rows: list[list[int]]) -> list[Option]:
    "Scored spans of multiple choice: from the first token that differs (at least one token each)."
    start = max(1, min(common_prefix(rows), min(map(len, rows)) - 1))
    return [Option(row, start) for row in rows]


def schema_options(rows: list[list[int]]) -> list[Option]:
    "Scored spans of a schema: the common ending."
    shared = common_prefix([row[::-1] for row in rows])
    return [Option(row, max(1, len(row) - shared)) for row in rows]


def completion_option(rows: list[list[int]]) -> list[Option]:
    "Scored span of a completion: what the longer rendering adds; ValueError if it adds nothing."
    without, full = rows
    if len(full) <= len(without) or full[: len(without)] != without:
        raise ValueError("the prompt's tokens are not a strict prefix of prompt and continuation")
    return [Option(full, len(without))]


# %% [markdown]
# Two small cases by hand, one of them nasty: a choice that is the beginning of another choice still has a token to score.

# %%
print(choice_options([[0, 1, 2, 3], [0, 1, 9]]))
print(schema_options([[0, 1, 5, 6], [0, 2, 2, 5, 6]]))
print(completion_option([[0, 1], [0, 1, 7, 8]]))
assert schema_options([[0, 1, 5, 6], [0, 2, 2, 5, 6]])[1].start == 3
assert (
    choice_options([[0, 1], [0, 1, 2]])[0].start == 1
)  # one choice begins the other: still one token to score

# %% [markdown]
# The three types now differ in two functions only: how to render and which span counts. A small table says so, and everything after it is shared.

# %%
#| export
TYPES = {
    "multiple_choice": (render_choice, choice_options),
    "schema": (render_schema, schema_options),
    "language_modeling": (render_completion, completion_option),
}


def pick_shots(
    rows: Sequence[dict],  # all rows of the task
    i: int,                # index of the row that is asked
    shots: int,
) -> list[dict]:           # solved rows, never row i itself
    "Few-shot examples of item i: drawn without replacement by a generator seeded with 1234 + i."
    if shots == 0: return []
    others = [j for j in range(len(rows)) if j != i]
    return [rows[j] for j in Random(1234 + i).sample(others, min(shots, len(others)))]


# %%
rows = [{"query": str(n)} for n in range(12)]
assert pick_shots(rows, 3, 10) == pick_shots(rows, 3, 10) and rows[3] not in pick_shots(rows, 3, 11)
assert (
    len(pick_shots(rows[:4], 0, 10)) == 3
)  # a small sample of a task has fewer shots to give; it must not crash
print([r["query"] for r in pick_shots(rows, 3, 5)])


# %%
#| export
def prepare(
    tokenizer,             # our Tokenizer: .encode(text) and .bos
    task: dict,            # {"type", "rows", "shots", "delimiter", ...}
    i: int,                # which row
    max_tokens: int | None = None,  # longer prompts lose their beginning
) -> list[Option]:         # one for each choice; one for a completion
    "Render row i of a task, tokenize with bos in front, and mark the scored spans."
    render, options = TYPES[task["type"]]
    shots = pick_shots(task["rows"], i, task.get("shots", 0))
    prompts = render(task["rows"][i], shots, task.get("delimiter", " "))
    made = options([[tokenizer.bos, *tokenizer.encode(p)] for p in prompts])
    if max_tokens is None: return made
    cut = [max(0, len(o.tokens) - max_tokens) for o in made]
    return [Option(o.tokens[c:], max(1, o.start - c)) for o, c in zip(made, cut)]


# %% [markdown]
# A toy tokenizer with one token for each character lets you count on your fingers. The span of "blue" starts after bos and "The sky is ".

# %%
class Letters:
    "A toy tokenizer for this page: one token a character, 0 begins."
    bos, vocab_size = 0, 128

    def encode(self, text: str) -> list[int]: return [ord(c) for c in text]


toy = {
    "label": "toy",
    "type": "multiple_choice",
    "rows": [sky, snow],
    "shots": 0,
    "delimiter": " ",
    "baseline": 50.0,
}
blue, loud = prepare(Letters(), toy, 0)
print([chr(t) for t in blue.tokens[blue.start:]], [chr(t) for t in loud.tokens[loud.start:]])
assert blue.start == len("The sky is ") + 1         # + 1 for bos
assert prepare(Letters(), toy, 0, max_tokens=6)[0] == Option([ord(c) for c in "s blue"], 2)


# %% [markdown]
# ## Scoring, one batch at a time
#
# Token $t$ is predicted by the logits at $t-1$. For a span from $s$ to $n$ the loss is the mean of
# $-\log p(x_t \mid x_{<t})$ for $t = s, \dots, n-1$. A completion asks for more: at every one of these places the expected token
# must be the *most likely* one. Both come from one forward pass, so one function returns both.
#
# Rows of a batch have different lengths. Padding stands on the right, where a causal model cannot look, so it changes nothing.

# %%
#| export
class Score(NamedTuple):
    "Mean loss of a span in nats, and whether the greedy choice is right at each of its tokens."
    loss: float
    greedy: bool


def logits_at(
    model: Callable[[Tensor], Tensor],  # a GPT, or any function idx (B, T) -> logits (B, T, V)
    idx: Tensor,                        # (B, T)
    places: Tensor,                     # (B, T) bool
) -> Tensor:                            # (places, V) fp32, row by row
    "Logits at the marked places; a GPT applies its head to those and to nothing else."
    if hasattr(model, "features"): return model.logits(model.features(idx)[places]).float()
    return model(idx)[places].float()


def score_batch(
    model: Callable[[Tensor], Tensor],  # idx (B, T) -> logits (B, T, V)
    options: Sequence[Option],
    device: torch.device | str = "cpu",
) -> list[Score]:
    "Score the spans of some options in one forward pass."
    T = max(len(o.tokens) for o in options)
    idx = torch.zeros(len(options), T, dtype=torch.long)  # right padding; what pads does not matter
    span = torch.zeros(len(options), T, dtype=torch.bool)       # where the next token is scored
    for row, (tokens, start) in enumerate(options):
        idx[row, : len(tokens)] = torch.tensor(tokens)
        span[row, start - 1 : len(tokens) - 1] = True
    idx, span = idx.to(device), span.to(device)
    logits, targets = logits_at(model, idx, span), idx.roll(-1, dims=1)[span]
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none").cpu().double()
    if not nll.isfinite().all():        # the smallest of NaNs is the first: it would be right now and then
        raise UserError("the model's logits are not finite numbers, and it cannot be scored")
    wrong = (logits.argmax(-1) != targets).cpu().double()
    where = span.nonzero()[:, 0].cpu()                          # the row of each token that counts
    sums = torch.zeros(3, len(options), dtype=torch.double)     # exact, so that equal means tie
    sums.index_add_(1, where, torch.stack([nll, wrong, torch.ones_like(nll)]))
    return [Score(loss / n, miss == 0) for loss, miss, n in sums.T.tolist()]


# %% [markdown]
# Check it by hand. This model is certain of nothing: all logits are zero, so each token costs $\ln V$.

# %%
def know_nothing(idx: Tensor) -> Tensor: return torch.zeros(*idx.shape, 128)


for score in score_batch(know_nothing, [Option([0, 65, 66, 67], 1), Option([0, 65], 1)]):
    print(score)
    assert abs(score.loss - math.log(128)) < 1e-5 and not score.greedy


# %% [markdown]
# Now the speed. One question at a time wastes a forward pass on sixty tokens. Batching neighbours wastes padding, because a long
# row stretches all others. Computing logits where nobody reads them wastes the head, which with 65,536 tokens is a large part of a small model;
# `logits_at` above leaves that out. And so sort *all* sequences of a task by length and cut the sorted list into batches of about equal area.

# %%
#| export
def length_batches(
    lengths: Sequence[int],  # tokens of each sequence
    budget: int,             # at most this many tokens in a padded batch (one row at least)
) -> Iterator[list[int]]:    # indices, longest first
    "Cut sequences, sorted by length, into batches of at most `budget` padded tokens."
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch: yield batch


# %%
lengths = [Random(0).choice([3, 5, 40]) if i % 9 else 60 for i in range(200)]
area = sum(len(b) * lengths[b[0]] for b in length_batches(lengths, 600))
print(
    f"padded area: {area:,} by length, {len(lengths) * max(lengths):,} in one block, "
    f"{sum(lengths):,} needed"
)
assert sorted(sum(length_batches(lengths, 600), [])) == list(range(200)) and area < 1.4 * sum(
    lengths
)


# %%
#| export
def token_budget(
    model: Callable[[Tensor], Tensor],
    vocab_size: int,
) -> int:
    "Tokens a padded batch may have; fewer when a model can only return all its logits."
    cpu = torch.device(getattr(model, "device", "cpu")).type == "cpu"
    most = 8192 if cpu else 65536
    if hasattr(model, "features"): return most
    return max(1024, min(most, (2**24 if cpu else 2**29) // vocab_size))


@torch.no_grad()
def score_options(
    model: Callable[[Tensor], Tensor],
    options: Sequence[Option],
    budget: int,                        # padded tokens a batch
    device: torch.device | str = "cpu",
) -> list[Score]:                       # in the order of `options`
    "Score many options, batched by length; each result equals that of scoring it alone."
    scores: list[Score | None] = [None] * len(options)
    for batch in length_batches([len(o.tokens) for o in options], budget):
        found = score_batch(model, [options[i] for i in batch], device)
        for i, score in zip(batch, found): scores[i] = score
    return scores


# %% [markdown]
# "Equals that of scoring it alone" is a claim, so test it, with a small random GPT and sequences of many lengths.

# %%
from nanochat.gpt import GPT, config_for

gpt = GPT(config_for(1, vocab_size=128, seq_len=64, head_dim=32))
gpt.init_weights(seed=0)
generator = torch.Generator().manual_seed(0)
for p in gpt.parameters(): torch.nn.init.normal_(p, std=0.1, generator=generator)  # all parts alive
random = Random(1)
many = [
    Option([random.randrange(128) for _ in range(n)], random.randrange(1, n)) for n in range(2, 60)
]
together = score_options(gpt, many, budget=512)
alone = [score_options(gpt, [o], budget=1)[0] for o in many]
gap = max(abs(a.loss - b.loss) for a, b in zip(together, alone))
print(f"{len(many)} sequences, largest difference {gap:.1e} nats")
assert 0 < gap < 1e-4 and [a.greedy for a in together] == [a.greedy for a in alone]


# %% [markdown]
# ## From scores to one number
#
# An accuracy of 50% is worthless with two options and fine with five. **Centring** puts chance at 0 and perfection at 1:
#
# $$c = \frac{a - b}{1 - b}$$
#
# with accuracy $a$ and chance $b$. It may be negative. CORE is the mean of the centred scores of all tasks, each task with equal weight.

# %%
#| export
def centre(
    accuracy: float,  # in 0..1
    baseline: float,  # score of chance, in percent
) -> float:           # 0 at chance, 1 when all is right; may be negative
    "Centred score of DCLM (arXiv 2406.11794)."
    return (accuracy - 0.01 * baseline) / (1 - 0.01 * baseline)


# %% [markdown]
# Three published rows of GPT-2 (124M) reproduce to the last digit. The third shows that a real model can do worse than a stubborn guesser:
# in BoolQ 62% of the answers are "yes", and 62 is the baseline that counts.

# %%
for label, accuracy, baseline, published in (("hellaswag", 0.307907, 25, 0.077209),
                                             ("copa", 0.600000, 50, 0.200000),
                                             ("boolq", 0.552294, 62, -0.178175)):
    print(
        f"{label:10s} accuracy {accuracy:.3f}  chance {baseline}%  "
        f"centred {centre(accuracy, baseline):+.4f}"
    )
    assert abs(centre(accuracy, baseline) - published) < 2e-6


# %% [markdown]
# ## Noise
#
# Ask $n$ questions of a model whose true accuracy is $p$. The share of right answers scatters around $p$ with standard deviation
# $\sqrt{p(1-p)/n}$. With 100 questions and $p = 0.5$ that is five points: two runs of the *same* model may differ by ten.
# Wilson's interval turns the count into a range that behaves well even at 0 of n and n of n, where the textbook formula has width zero.

# %%
#| export
def wilson(
    k: int,           # right answers
    n: int,           # questions
    z: float = 1.96,  # 1.96 for 95 %
) -> tuple[float, float]:
    "Interval for a share of k in n (Wilson 1927); (0, 1) when nothing was asked."
    if n == 0: return 0.0, 1.0
    p, spread = k / n, z * z / n
    middle = (p + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(p * (1 - p) / n + spread / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


# %%
for k, n in ((0, 20), (50, 100), (500, 1000)):
    print(f"{k:4d} of {n:4d}: {wilson(k, n)[0]:.3f} to {wilson(k, n)[1]:.3f}")
assert wilson(0, 20)[0] == 0 and wilson(0, 20)[1] > 0.15

# %% [markdown]
# **Predict, then run.** The same model, whose true accuracy is 0.30, is measured 100 times on n questions. How often does the
# interval contain 0.30? And how wide is it at 10, 100 and 1,000 questions?

# %%
import matplotlib.pyplot as plt

from nanochat.workshop import figure

sizes, coin = [10, 30, 100, 300, 1000, 3000], Random(0)
counts = {n: [sum(coin.random() < 0.3 for _ in range(n)) for _ in range(100)] for n in sizes}
for n in (10, 100, 1000):
    low, high = wilson(round(0.3 * n), n)
    print(f"{n:5d} questions: the interval is {high - low:.2f} wide")
fig, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
ax.plot(
    [n for n in sizes for _ in counts[n]],
    [k / n for n in sizes for k in counts[n]],
    ".",
    alpha=0.25,
    label="measured",
)
ax.fill_between(
    sizes, *zip(*[wilson(round(0.3 * n), n) for n in sizes]), alpha=0.2, label="95% interval"
)
ax.axhline(0.3, color="black", lw=1, label="truth")
ax.set(xscale="log", xlabel="questions", ylabel="accuracy", ylim=(0, 0.8))
ax.legend(frameon=False)
figure(
    fig,
    caption="One model, measured 100 times at each number of questions.",
    alt="Dots scatter from 0 to 0.7 with ten questions and narrow to a line at 0.3 with three "
    "thousand; the shaded 95 percent interval follows their spread.",
)
inside = sum(low <= 0.3 <= high for n in sizes for low, high in (wilson(k, n) for k in counts[n]))
print(f"the interval holds the truth in {inside / (100 * len(sizes)):.1%} of the measurements")
assert inside > 0.9 * 100 * len(sizes)


# %% [markdown]
# Published CORE numbers of identical runs differ by about 0.016. A gain of 0.005 is not a gain yet.
#
# ## Two cheap guessers
#
# *Majority* always names the most frequent gold position (or the most frequent continuation). *Shortest* always picks the option with
# the fewest characters. If either is far above chance, the task leaks its answers and you should repair the task.

# %%
#| export
def majority(task: dict) -> float:
    "Accuracy of always giving the task's most frequent gold position (or continuation)."
    key = "continuation" if task["type"] == "language_modeling" else "gold"
    counts = Counter(row[key] for row in task["rows"])
    return counts.most_common(1)[0][1] / len(task["rows"])


def shortest(task: dict) -> float | None:
    "Accuracy of always picking the option of fewest characters; None for completions."
    if task["type"] == "language_modeling": return None
    key = "choices" if task["type"] == "multiple_choice" else "context_options"
    picks = [min(range(len(row[key])), key=lambda j: len(row[key][j])) for row in task["rows"]]
    return sum(pick == row["gold"] for pick, row in zip(picks, task["rows"])) / len(picks)


# %%
leaky = {**toy, "rows": careless}
print(f"majority {majority(leaky):.2f}, shortest {shortest(leaky):.2f}")
assert (
    majority(leaky) == 0.7 and shortest(leaky) == 0.7
)  # "hot" is shorter than "cold", and equal lengths give the first


# %% [markdown]
# ## One task, then all
#
# Choices: the lowest mean loss wins, the first wins a tie. Completions: all greedy tokens right. Rows are shuffled with seed 1337
# before the cap, because files are often sorted. With several GPUs each rank takes every `world`-th row, and `reduce` averages their counts, so that the mean times `world` is the sum.

# %%
#| export
def capped(task: dict, limit: int | None) -> dict:
    "The task with its rows in the order of seed 1337, at most `limit`; UserError if it has none."
    rows = list(task["rows"])
    if not rows: raise UserError(f"task {task['label']} has no rows; check its data file")
    if limit is not None and limit < 1: raise UserError(f"limit {limit}: at least one question must be asked")
    Random(1337).shuffle(rows)
    return {**task, "rows": rows[:limit]}


def judge_scores(task_type: str, scores: Sequence[Score], gold: int | None) -> bool:
    "Is the item right? Choices: lowest loss, first wins a tie. Completion: greedy at every token."
    if task_type == "language_modeling": return scores[0].greedy
    return min(range(len(scores)), key=lambda j: scores[j].loss) == gold


# %%
assert judge_scores("multiple_choice", [Score(2.0, False), Score(1.0, False)], gold=1)
assert judge_scores(
    "schema", [Score(1.0, False), Score(1.0, False)], gold=0
)  # a tie goes to the first
assert not judge_scores("language_modeling", [Score(0.1, False)], None)
print([row["query"] for row in capped({**toy, "rows": rows}, 4)["rows"]])


# %%
#| export
def task_items(
    model: Callable[[Tensor], Tensor],
    tokenizer,
    task: dict,                         # already capped
    indices: Sequence[int],             # which rows to ask
    max_tokens: int | None = None,      # what the model can read; its own limit when None
) -> list[bool]:                        # right or wrong, for each index
    "Ask some rows of a task, all their options in common batches."
    device = getattr(model, "device", "cpu")
    if max_tokens is None: max_tokens = getattr(getattr(model, "config", None), "max_len", None)
    items = [prepare(tokenizer, task, i, max_tokens) for i in indices]
    flat = [option for item in items for option in item]
    budget = token_budget(model, tokenizer.vocab_size)
    scores = iter(score_options(model, flat, budget, device))
    found = [[next(scores) for _ in item] for item in items]
    return [
        judge_scores(task["type"], s, task["rows"][i].get("gold")) for i, s in zip(indices, found)
    ]


# %% [markdown]
# Now the whole path with a toy model that loves the letters of one word.

# %%
def prefers(wanted: str) -> Callable[[Tensor], Tensor]:
    "A model that finds the letters of one word likely and everything else unlikely."
    logits = torch.zeros(128)
    logits[[ord(c) for c in wanted]] = 5.0
    return lambda idx: logits.expand(*idx.shape, 128)


print("likes 'blue':", task_items(prefers("blue"), Letters(), toy, [0, 1]))
print("likes 'cold':", task_items(prefers("cold"), Letters(), toy, [0, 1]))
assert task_items(prefers("blue"), Letters(), toy, [0]) == [True]
assert task_items(prefers("cold"), Letters(), toy, [1]) == [True]


# %%
#| export
def evaluate_task(
    model: Callable[[Tensor], Tensor],
    tokenizer,
    task: dict,                                   # a task dict, as `load_bundle` returns
    limit: int | None = None,
    *,
    max_tokens: int | None = None,
    rank: int = 0,
    world: int = 1,
    reduce: Callable | None = None,  # averages a list of tensors over the ranks, in place
) -> dict:  # accuracy, centred, items, low, high, type, shots, majority, shortest
    "Accuracy of one CORE task with its interval and the scores of two guessers."
    if world > 1 and reduce is None:
        raise UserError(f"rank {rank} of {world} has a part of the items: give reduce=, to add them up")
    task = capped(task, limit)
    n = len(task["rows"])
    right = torch.tensor(
        float(sum(task_items(model, tokenizer, task, range(rank, n, world), max_tokens)))
    )
    if reduce is not None: reduce([right])             # the mean over the ranks
    k = round(right.item() * world)
    low, high = wilson(k, n)
    return {
        "accuracy": k / n,
        "centred": centre(k / n, task["baseline"]),
        "items": n,
        "low": low,
        "high": high,
        "type": task["type"],
        "shots": min(task.get("shots", 0), n - 1),
        "majority": majority(task),
        "shortest": shortest(task),
    }


# %% [markdown]
# This one likes b and u, so it finds "blue" and is left with a tie for snow, which the first option wins. One right of two, with two options, is
# exactly chance: the centred score is 0. And with two rows the interval says almost nothing.

# %%
result = evaluate_task(prefers("bu"), Letters(), toy)
print(result)
assert result["accuracy"] == 0.5 and result["centred"] == 0.0 and result["shortest"] == 0.5


# %%
#| export
def evaluate_core(
    model: Callable[[Tensor], Tensor],  # idx (B, T) -> logits (B, T, V)
    tokenizer,
    tasks: Sequence[dict],              # microworld.core_tasks() or load_bundle(folder)
    limit: int | None = None,           # at most this many rows of each task
    **options,                          # max_tokens, rank, world, reduce: see evaluate_task
) -> dict:                              # {"core": mean centred score, "tasks": {label: numbers}}
    "CORE: the mean of the centred scores of all tasks (DCLM, arXiv 2406.11794)."
    if not tasks:
        raise UserError("no CORE tasks given; use microworld.core_tasks() or load_bundle(folder)")
    results = {t["label"]: evaluate_task(model, tokenizer, t, limit, **options) for t in tasks}
    return {"core": sum(r["centred"] for r in results.values()) / len(results), "tasks": results}


# %% [markdown]
# The little world has its own CORE tasks, of all three types. Score a model that was never trained. What do you expect?

# %%
from nanochat.microworld import core_tasks
from nanochat.tokenizer import Tokenizer

world_tasks = core_tasks(n=60, seed=0)

words = Tokenizer.train([str(row) for task in world_tasks for row in task["rows"]], 400)
untrained = GPT(config_for(1, vocab_size=words.vocab_size, seq_len=128, head_dim=64))
untrained.init_weights(seed=0)
report = evaluate_core(untrained, words, world_tasks)
print(f"{'task':24s} {'accuracy':>8s} {'chance':>7s} {'major.':>7s} {'short.':>7s}")
for task in world_tasks:
    r = report["tasks"][task["label"]]
    short = "      -" if r["shortest"] is None else f"{r['shortest']:7.2f}"
    print(
        f"{task['label']:24s} {r['accuracy']:8.2f} {task['baseline'] / 100:7.2f} "
        f"{r['majority']:7.2f} {short}"
    )
print(f"CORE of an untrained model: {report['core']:+.3f}")
assert abs(report["core"]) < 0.15


# %% [markdown]
# An untrained model has equal logits everywhere, so every choice ties and the first wins: its accuracy *is* the share of gold answers in
# first place. That it lands near chance is a test of the tasks as much as of the model.
#
# ## The real bundle
#
# The DCLM bundle is a folder: `core.yaml` lists the tasks, `eval_meta_data.csv` holds the baselines and `eval_data/` the rows. This loader
# turns it into the same task dicts, so everything above works on both.

# %%
#| export
def read_jsonl(
    path: Path,  # NAME.jsonl; NAME.jsonl.gz is read when only that exists
) -> list[dict]:
    "Rows of a JSON-lines file, plain or gzipped; UserError when there is none or a line is broken."
    packed = path.with_name(path.name + ".gz")
    if not path.exists() and not packed.exists():
        raise UserError(f"{path} is missing (also as .gz)")
    opened = (
        path.open(encoding="utf-8") if path.exists() else gzip.open(packed, "rt", encoding="utf-8")
    )
    with opened as lines:
        try: return [json.loads(line) for line in lines if line.strip()]
        except (ValueError, OSError, EOFError, zlib.error) as e:       # JSON, UTF-8 or gzip
            raise UserError(f"{path} cannot be read as JSON lines ({e}); fetch it again") from None


# %%
import tempfile

folder = Path(tempfile.mkdtemp())
with gzip.open(folder / "a.jsonl.gz", "wt", encoding="utf-8") as f: f.write(json.dumps(sky) + "\n")
assert read_jsonl(folder / "a.jsonl") == [sky]
try: read_jsonl(folder / "b.jsonl")
except UserError as e: print("UserError: ...", str(e)[-23:])


# %%
#| export
def load_bundle(
    folder: str | Path,             # holds core.yaml, eval_meta_data.csv and eval_data/
    labels: Sequence[str] | None = None,  # only these tasks; all when None
) -> list[dict]:
    "The tasks of the DCLM evaluation bundle as task dicts; UserError names what is missing."
    import yaml
    folder = Path(folder)
    for name in ("core.yaml", "eval_meta_data.csv"):
        if not (folder / name).exists():
            raise UserError(f"{folder} has no {name}; it is not an evaluation bundle")
    try:
        listed = [{"label": t["label"], "type": t["icl_task_type"], "shots": int(t["num_fewshot"][0]),
                   "delimiter": t.get("continuation_delimiter", " "), "uri": t["dataset_uri"]}
                  for t in yaml.safe_load((folder / "core.yaml").read_text(encoding="utf-8"))["icl_tasks"]]
        with (folder / "eval_meta_data.csv").open(encoding="utf-8", newline="") as f:
            baselines = {row["Eval Task"]: float(row["Random baseline"] or 0) for row in csv.DictReader(f)}
    except (yaml.YAMLError, LookupError, TypeError, ValueError) as e:
        raise UserError(f"{folder} is no evaluation bundle that can be read ({type(e).__name__}: {e})") from e
    odd = [t["label"] for t in listed if t["type"] not in TYPES or not 0 <= baselines.get(t["label"], 0) < 100]
    if odd: raise UserError(f"the task {odd[0]} of {folder} has an unknown type, or a baseline that is no percentage below 100")
    unknown = set(labels or ()) - {t["label"] for t in listed}
    if unknown: raise UserError(f"core.yaml has no task {sorted(unknown)[0]}")
    listed = [t for t in listed if labels is None or t["label"] in labels]
    unknown = {t["label"] for t in listed} - baselines.keys()
    if unknown: raise UserError(f"eval_meta_data.csv has no baseline for {sorted(unknown)[0]}")
    return [t | {"baseline": baselines[t["label"]], "rows": read_jsonl(folder / "eval_data" / t.pop("uri"))} for t in listed]


# %% [markdown]
# A bundle of one task and one row, to see the form:

# %%
(folder / "eval_data").mkdir()
(folder / "core.yaml").write_text(
    "icl_tasks:\n- {label: skies, dataset_uri: skies.jsonl, num_fewshot: [0], "
    "icl_task_type: multiple_choice}\n",
    encoding="utf-8",
)
(folder / "eval_meta_data.csv").write_text(
    "Eval Task,Random baseline\nskies,50\n", encoding="utf-8"
)
(folder / "eval_data" / "skies.jsonl").write_text(json.dumps(sky) + "\n", encoding="utf-8")
bundle = load_bundle(folder)
print(bundle[0])
assert bundle[0] == {
    "label": "skies",
    "type": "multiple_choice",
    "shots": 0,
    "delimiter": " ",
    "baseline": 50.0,
    "rows": [sky],
}

# %% [markdown]
# ## At scale
#
# The full bundle has 22 tasks and about 91,000 questions, many with ten shots, so a prompt has a few hundred to two thousand tokens. Published
# nanochat runs it one question at a time, spread over the eight GPUs, and caps it at 500 rows a task during training. Sorting by length
# changes no result and keeps the matrices full.
#
# Mind what you compare with. GPT-2 XL's published 0.2565 was measured on at most 1,000 rows a task, and a cap also changes which
# examples can be shots. Run the same cap on both sides, or do not compare.
#
# ## Recap
#
# * Three types of question, two small functions each: render, and mark the span that counts.
# * Mean loss over the span picks a choice; a completion must be greedy-right at every token.
# * Padding on the right is invisible to a causal model, so batches by length give the results of one at a time.
# * Centred score: 0 is chance, 1 is perfect. CORE is their mean.
# * No score without its interval and its guessers beside it.
