# %%
#| default_exp chat_eval

# %% [markdown]
# # 04b · Evaluating a chat model: by letter and by generation
#
# **Promise.** You will measure what a chat model can do, in two ways that often disagree, and you will know why each of them is fair.
#
# After this lesson you can
#
# * read a multiple-choice answer off the logits, with or without words before it;
# * grade generated answers, tools included, with an interval and a list of failures to read;
# * estimate pass@k without its usual bias;
# * join tasks into one number, ChatCORE.
#
# **Before:** 02c (sampling), 03a (intervals), 04a (tasks). **Time:** 15 minutes to read, 15 to do, seconds to compute.

# %%
#| export
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile

import torch
from torch import Tensor

from nanochat.core import centre, length_batches, logits_at, token_budget, wilson
from nanochat.workshop import UserError

# %% [markdown]
# ## Right answer, no mark
#
# A model is asked a question with the options A to D. It leans towards B, which is right. But the likeliest *first word* of its
# answer is "I", as in "I think it is B".

# %%
import torch

likely = {"I": 3.0, "The": 2.5, "B": 1.0, "A": 0.2, "D": 0.1, "C": -1.0}
by_generation = max(likely, key=likely.get)
by_letter = max("ABCD", key=likely.get)
print(f"generation begins with {by_generation!r}; among the letters it prefers {by_letter!r}")
assert by_generation == "I" and by_letter == "B"


# %% [markdown]
# A grader that reads generated text gives no mark. One that compares only the letters does. The second measures *knowledge*; the first
# measures knowledge *and* manners. A model that just left pretraining has none of the manners, so multiple choice is scored by letter, and what must be
# written (a sum, a program, a story) is scored by generation.
#
# ## By letter
#
# Render the question up to the start of the assistant's turn. Run the model once. At the last token, look at the logits of the letters that this
# question offers, and at nothing else. The letters may differ in one token only; if they were two each, first halves would be compared, so we refuse.
# A mark before the letter (the `=` of our options) may be a token of its own or belong to the letter's; the function finds out.

# %%
#| export
def letter_ids(
    tokenizer,              # our Tokenizer
    letters: Sequence[str], # the labels an item offers, such as A B C D
    mark: str = "",         # stands before each of them, such as =
) -> tuple[list[int], list[int]]:   # tokens that all share, and the one that tells each letter
    "The tokens of marked letters; UserError when they differ in more than the last one."
    ids = [tokenizer.encode(mark + letter) for letter in letters]
    shared = tokenizer.encode(mark) if len(ids[0]) > 1 else []
    for letter, found in zip(letters, ids):
        if found[:-1] != shared:
            raise UserError(f"answer letter {letter!r} is {len(found) - len(shared)} tokens, not one; "
                            "grade this task by generation or relabel its options")
    return shared, [found[-1] for found in ids]


# %%
from nanochat.tokenizer import Tokenizer

tokenizer = Tokenizer.train(["Answer with the letter only. - red=A - blue=B"] * 5, 300)
print(letter_ids(tokenizer, ["A", "B", "C", "D"]), letter_ids(tokenizer, ["C", "D"], mark="="))
try: letter_ids(tokenizer, ["A", "№7"])
except UserError as e: print("UserError:", e)


# %%
#| export
@torch.no_grad()
def last_logits(
    model: Callable[[Tensor], Tensor],  # idx (B, T) -> logits (B, T, V)
    prompts: Sequence[Sequence[int]],
    budget: int,                        # padded tokens a batch
) -> Iterator[tuple[int, Tensor]]:      # (index of the prompt, logits (V,)), longest first
    "Logits at the last token of each prompt; batched by length, padded on the right."
    device = getattr(model, "device", "cpu")
    for batch in length_batches([len(p) for p in prompts], budget):
        idx = torch.zeros(len(batch), len(prompts[batch[0]]), dtype=torch.long)
        for row, i in enumerate(batch): idx[row, : len(prompts[i])] = torch.tensor(prompts[i])
        last = torch.tensor([len(prompts[i]) - 1 for i in batch])
        places = torch.arange(idx.shape[1]) == last[:, None]        # (B, T), one in each row
        yield from zip(batch, logits_at(model, idx.to(device), places.to(device)))


# %% [markdown]
# **Trap.** With padding on the right, the last *column* belongs to the padding of the shorter rows. Take each row's own last token.
# The model below repeats what it reads, which makes the slip visible.

# %%
def echo(idx): return torch.nn.functional.one_hot(idx, 10).float()


prompts = [[1, 2, 3], [4]]
found = {i: logits.argmax().item() for i, logits in last_logits(echo, prompts, budget=100)}
wrong = echo(torch.tensor([[1, 2, 3], [4, 0, 0]]))[:, -1].argmax(-1).tolist()
print("each row's last token:", found, "  last column:", wrong)
assert found == {0: 3, 1: 4} and wrong == [3, 0]


# %% [markdown]
# ## First the words, then the letter
#
# A big model picks the letter at once. In that one step it must know the answer, find the option that says the same, and read the letter behind it.
# The laptop model of four layers never learned that: it stayed near 25% in every run, even with nothing else to learn (`benchmarks/RESULTS.md`).
# Let it *say* the answer first, `A young sheep is called a lamb=C`, and each step is one it can do. The sentence is what it knows. After `lamb` comes what came
# after `lamb` before. With that, and with questions that ask for such sentences, 83% of its letters were right. To write down the steps is the usual way with hard questions
# (Nye et al. 2021; Wei et al. 2022), here at its smallest.
#
# Grading stays as it was: only the letter counts. The model writes up to the mark, whatever that is, and then the letters are compared. A model
# that never comes to the mark is asked where it stopped, so a model without manners still scores what guessing scores.

# %%
#| export
def words_before(
    sampler: Callable,              # as sample.make_sampler returns
    tokenizer,
    prompts: Sequence[Sequence[int]],
    mark: str,                      # where the letter begins
    max_new_tokens: int = 32,
) -> list[list[int]]:               # what the model writes before the mark, greedily
    "The model's own words up to the mark, to the end of its turn, or as many as it may write."
    samples = sampler(prompts, max_new_tokens=max_new_tokens, temperature=0.0, top_k=None, seed=0)
    stops = (tokenizer.assistant_end, tokenizer.bos)
    ends = lambda token: token in stops or mark in tokenizer.decode([token])
    return [list(takewhile(lambda token: not ends(token), sample.tokens)) for sample in samples]


# %%
from nanochat.sample import Sample

def writes(text):
    "A sampler that always writes this text."
    return lambda prompts, **_: [Sample(tokenizer.encode(text), [True] * 99) for _ in prompts]

print([tokenizer.decode(words) for words in words_before(writes(" a hen=C and more"), tokenizer, [[1], [2]], "=")])
assert words_before(writes(" hen=C"), tokenizer, [[1]], "=") == [tokenizer.encode(" hen")]
assert words_before(writes("I see"), tokenizer, [[1]], "=") == [tokenizer.encode("I see")]


# %%
#| export
def shares(right: int, items: int) -> dict:
    "A share with its 95 % interval: value, items, low, high."
    low, high = wilson(right, items)
    return {"value": right / items if items else 0.0, "items": items, "low": low, "high": high}


def first(task, limit: int | None) -> list[dict]:
    "The first `limit` conversations of a task (all when None); UserError when there are none."
    rows = [task[i] for i in range(len(task) if limit is None else min(limit, len(task)))]
    if not rows: raise UserError(f"task {task.name} has no conversations to evaluate")
    return rows


def letter_accuracy(
    model: Callable[[Tensor], Tensor],
    tokenizer,
    task,                       # kind "letter": conversations with `letters` and `answer`
    limit: int | None = None,   # only the first so many
    sampler: Callable | None = None,    # for items with a `mark`: lets the model write up to it
) -> dict:  # value, items, low, high, baseline (guessing), majority (always the same letter)
    "Accuracy by letter: the largest logit among an item's letters, after its prompt and its words."
    rows = first(task, limit)
    mark = rows[0].get("mark", "")
    if mark and sampler is None:
        raise UserError(f"task {task.name} wants words before the letter: give sampler=")
    prompts = [tokenizer.render_prompt(row) for row in rows]
    if mark: prompts = [p + w for p, w in zip(prompts, words_before(sampler, tokenizer, prompts, mark))]
    ids = [letter_ids(tokenizer, row["letters"], mark) for row in rows]
    prompts = [p + shared for p, (shared, _) in zip(prompts, ids)]
    right = 0
    for i, logits in last_logits(model, prompts, token_budget(model, tokenizer.vocab_size)):
        pick = logits[ids[i][1]].argmax().item()
        right += rows[i]["letters"][pick] == rows[i]["answer"]
    most = Counter(row["answer"] for row in rows).most_common(1)[0][1]
    chance = sum(1 / len(row["letters"]) for row in rows) / len(rows)
    return {**shares(right, len(rows)), "baseline": chance, "majority": most / len(rows)}


# %%
from nanochat.tasks import Task, choice_conversation, same_letter

quiz = Task(
    "quiz",
    [
        choice_conversation(f"Which is colour {n}?", ["red", "blue", "pink"], "ABC", "ABC"[n % 3])
        for n in range(30)
    ],
    same_letter,
    kind="letter",
)


def likes_b(idx):
    "A model that always wants to write B."
    return torch.nn.functional.one_hot(torch.full_like(idx, ord("B")), tokenizer.vocab_size).float()


result = letter_accuracy(likes_b, tokenizer, quiz)
print({k: round(v, 3) for k, v in result.items()})
assert (
    result["value"] == 1 / 3
    and abs(result["baseline"] - 1 / 3) < 1e-9
    and result["low"] < 1 / 3 < result["high"]
)


# %% [markdown]
# ## By generation
#
# Here the model writes, with its tools, until it says it is done. The sampler is an argument: the naive one now, the cached engine of lesson 08 later.
# Graders see decoded text. The stop token at the end is not part of it; a tool call and its output are.

# %%
#| export
def completion_text(tokenizer, sample) -> str:
    "The decoded new tokens of a sample, without the stop token at its end."
    stops = (tokenizer.assistant_end, tokenizer.bos)
    ends = bool(sample.tokens) and sample.tokens[-1] in stops
    return tokenizer.decode(sample.tokens[:-1] if ends else sample.tokens)


def completions(
    sampler: Callable,          # as sample.make_sampler returns
    tokenizer,
    rows: Sequence[dict],       # conversations; their final assistant message is left out
    batch_size: int = 256,      # prompts in one call of the sampler
    seed: int = 0,
    **options,                  # max_new_tokens, temperature, top_k, tool
) -> list[str]:                 # decoded, in the order of `rows`
    "Let the sampler answer each conversation; prompts of like length share a batch."
    prompts = [tokenizer.render_prompt(row) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(prompts[i]))
    texts = [""] * len(rows)
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        samples = sampler([prompts[i] for i in batch], seed=seed + at, **options)
        for i, sample in zip(batch, samples): texts[i] = completion_text(tokenizer, sample)
    return texts


# %%
sums = Task(
    "sums",
    [
        {
            "messages": [
                {"role": "user", "content": f"{n} and 1?"},
                {"role": "assistant", "content": ""},
            ],
            "answer": str(n + 1),
        }
        for n in range(20)
    ],
)


def canned(prompts, *, max_new_tokens, temperature, top_k, seed, tool):
    "A sampler that always says 7 and stops."
    return [
        Sample([*tokenizer.encode("It is 7."), tokenizer.assistant_end], [True] * 9)
        for _ in prompts
    ]


settings = dict(max_new_tokens=16, temperature=0.0, top_k=None, tool=None)
print(completions(canned, tokenizer, [sums[6], sums[1]], **settings))
assert completions(canned, tokenizer, [sums[6]], **settings) == ["It is 7."]


# %%
#| export
def generation_accuracy(
    sampler: Callable,
    tokenizer,
    task,                           # conversations and `evaluate(conversation, completion)`
    *,
    limit: int | None = None,       # only the first so many
    max_new_tokens: int = 128,
    temperature: float = 0.0,       # 0: greedy
    top_k: int | None = None,
    seed: int = 0,
    tool: Callable | None = None,   # tool(row_tokens) -> tokens to force, or None
    batch_size: int = 256,
    show: int = 5,                  # how many failures to keep
) -> dict:                          # value, items, low, high, failures, baseline
    "Share of right answers when the model writes them; keeps some failures to look at."
    rows = first(task, limit)
    texts = completions(sampler, tokenizer, rows, batch_size, seed, max_new_tokens=max_new_tokens,
                        temperature=temperature, top_k=top_k, tool=tool)
    right = [task.evaluate(row, text) for row, text in zip(rows, texts)]
    wrong = [
        {
            "question": row["messages"][-2]["content"],
            "completion": text,
            "answer": row.get("answer"),
        }
        for row, text, ok in zip(rows, texts, right)
        if not ok
    ]
    return {**shares(sum(right), len(rows)), "baseline": getattr(task, "baseline", 0.0),
            "failures": wrong[:show]}


# %% [markdown]
# The canned sampler is right exactly once in twenty. Look at what the failures hold.

# %%
result = generation_accuracy(canned, tokenizer, sums, show=2)
print(result)
assert result["value"] == 1 / 20 and result["failures"][0] == {
    "question": "0 and 1?",
    "completion": "It is 7.",
    "answer": "1",
}


# %% [markdown]
# Read the failures. Every time. A score of zero is more often a broken prompt, a missing stop token or a strict grader than a model that knows nothing.
#
# ## pass@k
#
# Sample n answers to a question; c of them are right. How likely is it that at least one of k draws is right? The tempting
# $1 - (1 - c/n)^k$ is biased low, because it draws with replacement. Draw without: all k miss with probability $\binom{n-c}{k} / \binom{n}{k}$.

# %%
#| export
def pass_at_k(
    n: int,     # samples of one question
    c: int,     # how many of them are right
    k: int,     # draws, at most n
) -> float:
    "Unbiased chance that at least one of k samples is right (Chen et al. 2021, arXiv 2107.03374)."
    if not 0 < k <= n: raise ValueError(f"pass@{k} needs at least {k} samples, there are {n}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


# %%
from itertools import combinations

outcomes = [True, False, False, True, False]
drawn = [any(pick) for pick in combinations(outcomes, 3)]
print(
    f"formula {pass_at_k(5, 2, 3):.3f}   "
    f"all {len(drawn)} draws counted {sum(drawn) / len(drawn):.3f}"
)
print(f"with replacement, wrongly: {1 - (1 - 2 / 5) ** 3:.3f}")
assert abs(pass_at_k(5, 2, 3) - sum(drawn) / len(drawn)) < 1e-12


# %%
#| export
def pass_accuracy(
    sampler: Callable,
    tokenizer,
    task,
    *,
    samples: int = 8,               # answers to each question
    limit: int | None = None,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    tool: Callable | None = None,
) -> dict[int, float]:              # {k: pass@k} for k = 1 .. samples
    "pass@k of a task: each question answered `samples` times, each with its own random numbers."
    rows = first(task, limit)
    many = [row for row in rows for _ in range(samples)]
    texts = completions(sampler, tokenizer, many, seed=seed, max_new_tokens=max_new_tokens,
                        temperature=temperature, top_k=top_k, tool=tool)
    right = [task.evaluate(row, text) for row, text in zip(many, texts)]
    counts = [sum(right[i : i + samples]) for i in range(0, len(right), samples)]
    return {k: sum(pass_at_k(samples, c, k) for c in counts) / len(counts)
            for k in range(1, samples + 1)}


# %% [markdown]
# A die as a model: six questions whose answers are 1 to 6, six throws for each. Both ends of the table can be worked out by hand.

# %%
def dice(prompts, *, max_new_tokens, temperature, top_k, seed, tool):
    "A sampler that throws a die for each prompt."
    throws = torch.randint(
        1, 7, (len(prompts),), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    return [
        Sample([*tokenizer.encode(f"It is {n}."), tokenizer.assistant_end], [True] * 9)
        for n in throws
    ]


easy = Task("die", sums.rows[:6])                   # the answers 1 to 6
found = pass_accuracy(dice, tokenizer, Task("die", easy.rows * 100), samples=6)
print(
    {k: round(v, 3) for k, v in found.items()},
    " expected pass@1",
    round(1 / 6, 3),
    " pass@6",
    round(1 - (5 / 6) ** 6, 3),
)
assert abs(found[1] - 1 / 6) < 0.03 and abs(found[6] - (1 - (5 / 6) ** 6)) < 0.06

# %% [markdown]
# How far off is the tempting formula?

# %%
import matplotlib.pyplot as plt

from nanochat.workshop import figure

fig, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
ks = range(1, 17)
for c in (1, 4, 8):
    ax.plot(ks, [pass_at_k(16, c, k) for k in ks], "o-", ms=3, label=f"{c} of 16 right")
    ax.plot(ks, [1 - (1 - c / 16) ** k for k in ks], ":", color="grey")
ax.set(xlabel="k", ylabel="pass@k", ylim=(0, 1.05))
ax.legend(frameon=False)
figure(
    fig,
    caption="pass@k by the unbiased formula (dots) and the tempting one (dotted), for 16 samples.",
    alt="Three rising curves; the one for 1 right of 16 is a straight line from 0.06 to 1, and "
    "beside each runs a dotted grey one, equal at k = 1 and lower after it: for 1 right of 16 the gap grows to 0.36 at k = 16, "
    "for the others it is small and closes again.",
)


# %% [markdown]
# ## One number
#
# ChatCORE centres each task at its own guessing rate and takes the mean, as CORE does. A generated answer has no guessing rate: 0.

# %%
#| export
def chatcore(
    results: dict[str, dict],   # {task: {"value", "baseline", ...}}, both in 0..1
) -> float:
    "Mean of the centred accuracies of all tasks."
    if not results: raise UserError("ChatCORE needs the result of at least one task")
    centred = [centre(r["value"], 100 * r["baseline"]) for r in results.values()]
    return sum(centred) / len(centred)


# %%
measured = {"quiz": {"value": 0.5, "baseline": 0.25}, "sums": {"value": 0.2, "baseline": 0.0}}
print(f"ChatCORE {chatcore(measured):.4f}")
assert abs(chatcore(measured) - (1 / 3 + 0.2) / 2) < 1e-12

# %% [markdown]
# Two ChatCORE numbers are comparable only if they are means over the *same* tasks. Published nanochat's changed its list twice; its numbers from
# October 2025 and from July 2026 hold five tasks, those between hold six.
#
# ## At scale
#
# MMLU has 14,042 test questions. By letter that is one forward pass of about 150 tokens each: under a minute on a GPU. GSM8K by generation with 512 new
# tokens needs hundreds of forward passes for each of 1,319 questions, and is why lesson 08 builds a cache.
#
# ## Recap
#
# * By letter: one forward pass, the logits of the item's own letters at its own last token.
# * By generation: sample, strip the stop token, grade the decoded text, keep the failures and read them.
# * pass@k counts draws without replacement.
# * ChatCORE is the mean of centred scores over a fixed list of tasks.
