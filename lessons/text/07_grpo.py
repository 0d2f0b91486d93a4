# %% [markdown]
# # 07 GRPO: learning from right and wrong
#
# **Promise.** Until now somebody wrote the answers. In this lesson the model writes its own, a program says right or wrong, and the model gets
# better. You derive the method from one line of calculus and end with the algorithm that trains today's reasoning models, without its luxuries.
#
# After this lesson you can
#
# * derive the policy gradient and say why subtracting the mean reward is allowed;
# * say which tokens of an answer get a gradient, and why the stop token is one of them;
# * normalise over tokens in a way that does not depend on how the batch is cut;
# * watch the share of questions that carry any signal, and know when this method cannot work;
# * run a reinforcement-learning stage that resumes exactly.
#
# You need lessons 02c (the sampler), 04a (tasks), 04b (pass@k) and 06. Reading: 25 minutes. Doing: 40 minutes. Computing on two cores: half a minute.

# %%
#| default_exp grpo

# %%
#| export
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from nanochat.chat_eval import completion_text
from nanochat.checkpoint import (Interrupt, checkpointed, last_step, load_checkpoint,
                                 save_checkpoint, set_rng_state)
from nanochat.data import share
from nanochat.optim import clip_by_global_norm, schedule
from nanochat.train import evaluate
from nanochat.workshop import Progress, UserError, print0

# %% [markdown]
# ## A model with a bad teacher
#
# We want a model that adds with a tool. Asked "3 and 5", it should write the call `3+5`; the tool puts 8 behind it. But our demonstrations come from a
# careless person: in half of them the call is `3*5`. Imitation cannot know better. What will the finetuned model do?
#
# First the tool. It gets all tokens of a row after each new one and may answer with tokens to force. Lesson 09 builds a real one; six lines do for now.

# %%
import re
import tempfile

from nanochat.checkpoint import Run
from nanochat.gpt import GPT, config_for
from nanochat.muon import make_optimizer
from nanochat.sample import make_sampler
from nanochat.sft import sft
from nanochat.tasks import Task
from nanochat.tokenizer import Tokenizer
from nanochat.workshop import by_tier, figure, seed_all

seed_all(0)
tokenizer = Tokenizer.train(["2 and 3", "2+3", "5*4"], 265)            # bytes and special tokens, no merges

def tool(tokens: list[int]) -> list[int] | None:
    "Sum or product of two numbers, after the token that ends a call."
    if tokens[-1] != tokenizer.python_end or tokenizer.python_start not in tokens: return None
    start = len(tokens) - tokens[::-1].index(tokenizer.python_start)
    found = re.fullmatch(r"(\d+)([+*])(\d+)", tokenizer.decode(tokens[start:-1]))
    if not found: return None
    a, b = int(found[1]), int(found[3])
    return [tokenizer.output_start, *tokenizer.encode(str(a + b if found[2] == "+" else a * b)), tokenizer.output_end]

print(tokenizer.decode(tool([tokenizer.python_start, *tokenizer.encode("3*5"), tokenizer.python_end])))
assert tool(tokenizer.encode("3*5")) is None


# %%
def demonstration(a: int, b: int, sign: str) -> dict:
    "A question and a call; right when the sign is +."
    result = str(a + b if sign == "+" else a * b)
    parts = [{"type": "python", "text": f"{a}{sign}{b}"}, {"type": "python_output", "text": result}]
    return {"messages": [{"role": "user", "content": f"{a} and {b}"}, {"role": "assistant", "content": parts}],
            "answer": str(a + b)}

pairs = [(a, b) for a in range(2, 6) for b in range(2, 6) if (a, b) != (2, 2)]
teacher = [demonstration(a, b, sign) for a, b in pairs for sign in "+*"] * 8     # each beside ever other neighbours in a row
CALL = r"<\|python_start\|>\d+[+*]\d+<\|python_end\|><\|output_start\|>{}<\|output_end\|>"
task = Task("sums", [demonstration(a, b, "+") for a, b in pairs],
            lambda question, text: re.fullmatch(CALL.format(question["answer"]), text) is not None)
assert not task.evaluate(task[7], f"<|output_start|>{task[7]['answer']}<|output_end|>")       # an output without a call is forged
print(len(task), "questions, such as", task[7]["messages"][0]["content"], "->", task[7]["answer"])

# %%
run = Run("lesson07", tempfile.mkdtemp())
model = GPT(config_for(1, tokenizer.vocab_size, 64, head_dim=64), seed=0)
recipe = {"rows": 8, "steps": 100, "warmdown": 0.5, "lr_scale": 1.0, "save_every": 0}
sft_stage = run.stage("sft", recipe, None, "careless teacher")
sft(sft_stage, recipe, model=model, tokenizer=tokenizer, conversations=teacher, make_optimizer=make_optimizer)

from nanochat.chat_eval import pass_accuracy

sampler = make_sampler(model, (tokenizer.assistant_end, tokenizer.bos))
before = pass_accuracy(sampler, tokenizer, task, samples=8, max_new_tokens=8, tool=tool)
print({k: round(v, 2) for k, v in before.items()})
assert 0.15 < before[1] < 0.85


# %% [markdown]
# Imitation gives about half, as it must. But look at pass@8: among eight tries there is nearly always a right one. The knowledge is there; the *choice* is wrong.
# That gap between pass@1 and pass@8 is what reinforcement learning can close. If pass@8 were 0, nothing below would help.
#
# ## The policy gradient in one line
#
# Let $p_\theta(y)$ be the probability of an answer $y$ and $r(y)$ its reward, 1 or 0. We want to climb the expected reward. Its gradient is
#
# $$\nabla \sum_y p_\theta(y)\, r(y) = \sum_y p_\theta(y)\, \frac{\nabla p_\theta(y)}{p_\theta(y)}\, r(y) = \mathbb E\bigl[r(y)\,\nabla \log p_\theta(y)\bigr].$$
#
# The reward is never differentiated: it may be a program, a person, a test suite. And $\log p(y)$ is a sum over the tokens of the answer, which is the loss you know with its sign
# turned. So the update is *finetuning on your own answers, each weighted by its reward*.
#
# **The baseline.** Any constant $b$ may be subtracted from the reward, since $\mathbb E[b\,\nabla \log p] = b\,\nabla \sum_y p(y) = b\,\nabla 1 = 0$. It does not change the mean, only the noise. GRPO's idea (Shao et al. 2024)
# is to answer each question several times and to subtract the mean reward of that group. Then an answer is pushed up exactly if it beat its siblings.
#
# The original divides by the group's standard deviation too. Dr. GRPO (Liu et al. 2025) showed that this overweights questions that are nearly solved or nearly hopeless, so we do not.

# %%
#| export
def group_advantages(
    rewards: Tensor,  # (P, S) rewards of S answers to each of P questions
) -> Tensor:          # (P, S), each row sums to 0
    "How much better an answer was than its group's mean; not divided by the spread (Dr. GRPO)."
    return rewards - rewards.mean(dim=1, keepdim=True)


# %%
rewards = torch.tensor([[1., 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
print(group_advantages(rewards))
assert (group_advantages(rewards).sum(1) == 0).all()

# %% [markdown]
# The last two rows are zero: a question that all answers get right, or all get wrong, teaches nothing. The share of the others is the most useful
# number to watch in a run. In the prototype of this course a model after 15 seconds of SFT had 99% of its groups all wrong, and four minutes of GRPO moved its reward from 0.012 to 0.021.
#
# **Check it by brute force.** Does this estimator point along the true gradient? On a policy with three answers everything can be enumerated: all groups of two with their probabilities.

# %%
from itertools import product

z = torch.tensor([0.2, -0.4, 0.1], requires_grad=True)
reward = torch.tensor([1.0, 0.0, 0.0])
truth, = torch.autograd.grad((z.softmax(0) * reward).sum(), z)

mean, S = torch.zeros(3), 2
for group in product(range(3), repeat=S):
    logp = z.log_softmax(0)[list(group)]
    advantages = group_advantages(reward[list(group)][None])[0]
    gradient, = torch.autograd.grad((advantages * logp).sum() / S, z)
    mean += z.softmax(0)[list(group)].prod().detach() * gradient
print("true gradient    ", truth.tolist())
print("mean of estimates", mean.tolist())
torch.testing.assert_close(mean, truth * (1 - 1 / S))


# %% [markdown]
# The direction is exact, the length is $1 - 1/S$ of the true one, because each answer is a part of its own baseline. With 8 samples that is 0.875: a matter of the
# learning rate and not of truth.
#
# ## Which tokens?
#
# An answer contains tokens of three kinds: those the model chose, those the tool forced, and the padding behind it. Only the first have a $\log p$ that the model is responsible for. The last token the model chose
# is usually `<|assistant_end|>`. It counts too. Published nanochat drops it before the loss, so that its RL never teaches a model when to stop.

# %%
#| export
class Rollout(NamedTuple):
    "One answer: the question's tokens, the new ones, which the model chose, what they earned."
    prompt: list[int]
    tokens: list[int]
    sampled: list[bool]    # False where the tool forced the token
    reward: float
    advantage: float       # reward minus the mean of its group


# %%
#| export
def pad_rollouts(
    rollouts: Sequence[Rollout],
    pad: int,                        # token behind the end of a row
    multiple: int = 32,              # of which T is one, so that few shapes occur
) -> tuple[Tensor, Tensor, Tensor]:  # x (B, T), y (B, T), advantages (B, 1)
    "Rollouts as one rectangle: targets are what the model chose, its stop token too; -1 elsewhere."
    longest = max(len(r.prompt) + len(r.tokens) for r in rollouts) - 1
    T = -(-longest // multiple) * multiple
    x = torch.full((len(rollouts), T), pad)
    y = torch.full((len(rollouts), T), -1)
    for row, r in enumerate(rollouts):
        ids, first = torch.tensor(r.prompt + r.tokens), len(r.prompt) - 1
        x[row, : len(ids) - 1] = ids[:-1]
        chosen = torch.tensor(r.sampled, dtype=torch.bool)
        y[row, first : len(ids) - 1] = torch.where(chosen, ids[first + 1 :], -1)
    return x, y, torch.tensor([[r.advantage] for r in rollouts])


# %%
row = Rollout(prompt=[1, 2, 3], tokens=[40, 41, 42, 43, 9], sampled=[True, True, False, False, True], reward=1.0, advantage=0.5)
x, y, advantages = pad_rollouts([row], pad=0, multiple=8)
print("reads  ", x.tolist()[0])
print("targets", y.tolist()[0])
assert y.tolist()[0] == [-1, -1, 40, 41, -1, -1, 9, -1]


# %% [markdown]
# ## Sample, grade
#
# Answers are sampled at temperature 1 and without top-k. This is not a matter of taste: the derivation needs $y \sim p_\theta$, and a sharpened or cut distribution is another one. The sampler
# comes in as an argument. Lesson 08 will hand over a faster one without a change here.

# %%
#| export
def roll_out(
    sampler: Callable,           # as `sample.make_sampler` gives it
    tokenizer,
    task,                        # `evaluate(conversation, completion)`
    conversations: Sequence[dict],  # the questions, P of them
    *,
    samples: int,                # answers to each question, S
    max_new_tokens: int,
    seed: int = 0,
    tool: Callable | None = None,
) -> list[Rollout]:              # P x S, the answers to one question side by side
    "Let the policy answer each question several times, at temperature 1, and grade the answers."
    prompts = [tokenizer.render_prompt(c) for c in conversations for _ in range(samples)]
    answers = sampler(prompts, max_new_tokens=max_new_tokens, temperature=1.0, top_k=None,
                      seed=seed, tool=tool)
    questions = [c for c in conversations for _ in range(samples)]
    rewards = [float(task.evaluate(question, completion_text(tokenizer, a)))
               for question, a in zip(questions, answers)]
    advantages = group_advantages(torch.tensor(rewards).view(-1, samples)).flatten().tolist()
    return [Rollout(p, a.tokens, a.sampled, r, adv)
            for p, a, r, adv in zip(prompts, answers, rewards, advantages)]


# %%
rollouts = roll_out(sampler, tokenizer, task, [task[7]], samples=6, max_new_tokens=8, tool=tool)
for r in rollouts: print(f"reward {r.reward:.0f}  advantage {r.advantage:+.2f}  {tokenizer.decode(r.tokens)}")
assert abs(sum(r.advantage for r in rollouts)) < 1e-6


# %% [markdown]
# ## The gradient
#
# $$L = -\frac1N \sum_i \sum_t A_i\, \log p_\theta(y_{i,t}), \qquad N = \text{chosen tokens of the whole step.}$$
#
# **Trap: the normaliser.** Dividing each answer by its own length rewards long wrong answers: their blame is thinned out. Dividing each micro-batch by its own tokens lets the cut of the batch decide how much a token weighs.
# One $N$ for the whole step, over all ranks, avoids both (DAPO, Yu et al. 2025). Answers with advantage 0 still count in $N$ but need no forward pass.

# %%
#| export
def policy_gradients(
    model,                        # model(x, y, reduction="none") gives (B, T) nats, 0 where y is -1
    rollouts: Sequence[Rollout],  # all answers of this step
    *,
    pad: int,
    rows: int = 32,               # answers in one forward pass
    reduce: Callable | None = None,  # averages a list of tensors over the ranks, in place
) -> Tensor:                      # 0-d, the loss
    """Gradients of -sum(A log p) / N, N the chosen tokens of the whole step (DAPO, Yu et al. 2025).

    Answers whose advantage is 0 count in N, but nothing is computed for them."""
    params = [p for p in model.parameters() if p.requires_grad]
    for p in params: p.grad = torch.zeros_like(p)
    total = torch.tensor(float(sum(sum(r.sampled) for r in rollouts)), device=params[0].device)
    if reduce: reduce([total])
    total, loss = total.clamp(min=1), torch.zeros_like(total)
    useful = sorted((r for r in rollouts if r.advantage),
                    key=lambda r: len(r.prompt) + len(r.tokens))
    for at in range(0, len(useful), rows):
        x, y, advantages = (z.to(total.device) for z in pad_rollouts(useful[at : at + rows], pad))
        nll = model(x, y, reduction="none").view_as(y)         # (B, T), -log p where chosen
        part = (advantages * nll).sum() / total
        part.backward()
        loss += part.detach()
    if reduce: reduce([p.grad for p in params] + [loss])
    return loss


# %%
questions = [task[i] for i in range(6)]
rollouts = roll_out(sampler, tokenizer, task, questions, samples=4, max_new_tokens=8, tool=tool)
gradients = []
for rows in (1, 5, 32):
    policy_gradients(model, rollouts, pad=tokenizer.bos, rows=rows)
    gradients.append(model.lm_head.weight.grad.clone())
for g in gradients[1:]: torch.testing.assert_close(g, gradients[0], atol=1e-6, rtol=1e-3)
print("the same gradient for 1, 5 or 32 answers at a time; its length is", round(gradients[0].norm().item(), 4))


# %% [markdown]
# ## The loop
#
# Like `train`, this loop is a generator: one record for each update, nothing about files or bars inside. It differs where the data comes from: each step asks the *current* policy.

# %%
#| export
@dataclass
class PolicyStep:
    "What is known after one update of the policy."
    step: int         # updates done, from 1
    reward: float     # mean reward of this step's answers
    signal: float     # share of questions whose answers did not all earn the same
    length: float     # mean tokens the model chose, per answer
    loss: float       # its gradient means something, its value little
    grad_norm: float  # before clipping
    lr: float         # multiplier of the schedule
    seconds: float    # sampling and update


def summary(
    rollouts: Sequence[Rollout],     # the answers to one question side by side
    samples: int,                    # answers to each question
    reduce: Callable | None = None,  # averages a list of tensors over the ranks, in place
) -> dict:
    "Mean reward, share of questions with signal, and mean length of a step's answers."
    groups = [rollouts[i : i + samples] for i in range(0, len(rollouts), samples)]
    means = torch.tensor([sum(r.reward for r in rollouts) / len(rollouts),
                          sum(any(r.advantage for r in group) for group in groups) / len(groups),
                          sum(sum(r.sampled) for r in rollouts) / len(rollouts)])
    if reduce: reduce([means])
    return dict(zip(("reward", "signal", "length"), means.tolist()))


def policy_steps(
    model,                       # the policy; changed in place
    optimizer,                   # `step(allowed)`, groups with "initial_lr"
    answer: Callable[[int], list[Rollout]],  # updates done -> answers of the policy as it is now
    *,
    steps: int,                  # updates of the whole run
    start: int = 0,              # updates done before
    samples: int,                # answers to each question
    schedule: Callable[[int], float],
    pad: int,
    rows: int = 32,              # answers in one forward pass
    clip: float = 1.0,           # largest norm of the whole gradient
    reduce: Callable | None = None,
) -> Iterator[PolicyStep]:
    """Sample, grade, update; yield one record after each update, when everything is consistent.

    A step without any signal changes nothing. `UserError` when the gradient is not finite."""
    params = [p for p in model.parameters() if p.requires_grad]
    for t in range(start, steps):
        began, lr = time.perf_counter(), schedule(t)
        for group in optimizer.param_groups: group["lr"] = group["initial_lr"] * lr
        rollouts = answer(t)
        loss = policy_gradients(model, rollouts, pad=pad, rows=rows, reduce=reduce)
        norm = clip_by_global_norm(params, clip)
        optimizer.step(norm.isfinite() & (norm > 0))
        if not math.isfinite(norm.item()):
            raise UserError(f"step {t + 1}: the gradient norm is {norm.item()}, so its update was "
                            "not made; start again to go on from the last checkpoint, "
                            "or lower lr_scale")
        yield PolicyStep(t + 1, **summary(rollouts, samples, reduce), loss=loss.item(),
                         grad_norm=norm.item(), lr=lr, seconds=time.perf_counter() - began)


# %%
record = summary(rollouts, samples=4)
print({k: round(v, 2) for k, v in record.items()})
mixed = [len({r.reward for r in rollouts[i : i + 4]}) > 1 for i in range(0, len(rollouts), 4)]
assert abs(record["signal"] - sum(mixed) / len(mixed)) < 1e-6


# %% [markdown]
# What a step asks depends on its number alone. So there is no loader state to store, and a resumed run asks what it would have asked.

# %%
#| export
def questions_at(
    step: int,       # updates done
    n: int,          # questions there are
    prompts: int,    # questions per step
    seed: int = 0,
) -> list[int]:      # indices
    "Which questions a step asks: every question once an epoch, in an order that the seed fixes."
    picked = []
    for place in range(step * prompts, (step + 1) * prompts):
        epoch, i = divmod(place, n)
        if i == 0 or not picked: order = random.Random(f"{seed} {epoch}").sample(range(n), n)
        picked.append(order[i])
    return picked


# %%
asked = [questions_at(step, n=5, prompts=2, seed=0) for step in range(5)]
print(asked)
assert sorted(sum(asked, [])[:5]) == list(range(5))           # every question once before any comes again


# %%
#| export
def make_answer(
    recipe: dict,        # prompts, samples, max_new_tokens
    *,
    tokenizer, task, sampler: Callable, tool: Callable | None,
    rank: int = 0, world: int = 1,
) -> Callable[[int], list[Rollout]]:
    "The function that asks this rank's questions of a step; they depend on the step alone."
    prompts, seed = recipe["prompts"], recipe.get("seed", 0)
    if len(task) == 0: raise UserError(f"the task {task.name} has no questions")
    share(prompts, world)

    def answer(step: int) -> list[Rollout]:
        asked = questions_at(step, len(task), prompts, seed)[rank::world]
        return roll_out(sampler, tokenizer, task, [task[i] for i in asked],
                        samples=recipe["samples"], tool=tool,
                        max_new_tokens=recipe["max_new_tokens"],
                        seed=(seed * 1_000_003 + step) * world + rank)
    return answer


# %%
recipe = {"prompts": 6, "samples": 8, "max_new_tokens": 8, "steps": by_tier(16, 40), "lr_scale": 0.3, "save_every": 8}
answer = make_answer(recipe, tokenizer=tokenizer, task=task, sampler=sampler, tool=tool)
print(len(answer(0)), "answers; the same ones again:", answer(0) == answer(0))
assert answer(0) == answer(0) and answer(0) != answer(1)


# %% [markdown]
# The stage around it saves, logs, shows and resumes, in the way of lesson 03.

# %%
#| export
def _resume(stage, model, optimizer, fingerprint: str) -> tuple[int, float]:
    "Go on from the newest checkpoint, if there is one: (updates done, seconds spent)."
    if last_step(stage.path) is None:
        stage.rewind(0)                    # killed before the first checkpoint: it all begins again
        return 0, 0.0
    found = load_checkpoint(stage.path, model=model, optimizer=optimizer, fingerprint=fingerprint)
    set_rng_state(found["rng"])
    stage.rewind(found["step"])
    print0(f"going on after step {found['step']}")
    return found["step"], found["extra"]["seconds"]


def _logged(steps: Iterator[PolicyStep], stage, spent: dict) -> Iterator[PolicyStep]:
    "Log each record and count its seconds; inside the checkpoints, so that none is lost."
    for record in steps:
        stage.log(asdict(record))
        spent["seconds"] += record.seconds
        yield record


def _watched(steps: Iterator[PolicyStep], label: str, left: int) -> Iterator[PolicyStep]:
    "Show the reward while the records pass."
    with Progress(left, label) as bar:
        for record in steps:
            yield record
            bar.update(reward=record.reward, signal=record.signal, length=record.length)


def _results(stage, steps: int, spent: dict, evals: dict) -> dict:
    "The metrics of a finished stage, from its log and its last evaluation."
    spent["eval_seconds"] += evals.pop("seconds")
    rewards = [r["reward"] for r in stage.records() if "reward" in r]
    tenth = max(1, len(rewards) // 10)
    return {"steps": steps, **spent, "evals": evals,
            "reward_first": sum(rewards[:tenth]) / tenth,
            "reward_last": sum(rewards[-tenth:]) / tenth,
            "skills": [row for r in evals.values() for row in r.get("skills", [])]}


# %%
#| export
def grpo(
    stage,                        # of `checkpoint`: where it is stored
    recipe: dict,                 # see below
    *,
    model,                        # a finetuned model; changed in place
    tokenizer,
    task,                         # questions: `len`, indexing, `evaluate(conversation, completion)`
    sampler: Callable,            # answers with `model` as it is at that moment
    tool: Callable | None = None, # what the sampler may call
    make_optimizer: Callable,     # (model, lr_scale=...) -> a fresh optimizer
    evaluators: dict[str, Callable] | None = None,  # name -> f(model) -> dict
    rank: int = 0, world: int = 1,
    reduce: Callable | None = None,      # averages a list of tensors over the ranks, in place
    agree: Callable[[bool], bool] = bool,  # True everywhere when it is on any rank
) -> dict:                        # metrics, also written to the stage's folder
    """Learning from right and wrong answers (GRPO, Shao et al. 2024; Dr. GRPO, Liu et al. 2025).

    On-policy, mean of the group as baseline, tokens of the whole step as normaliser, no KL term.
    The recipe holds prompts, samples, max_new_tokens, steps, lr_scale (falls linearly to 0) and
    save_every; perhaps rows, eval_every and seed. Resumed when killed; when finished, only its
    metrics are read. `UserError` when its recipe changed."""
    stage.start()
    if stage.status() == "finished": return stage.metrics()
    optimizer = make_optimizer(model, lr_scale=recipe["lr_scale"])
    fingerprint, cadence = tokenizer.fingerprint(), recipe.get("eval_every", 0)
    start, seconds = _resume(stage, model, optimizer, fingerprint)
    spent, total = {"seconds": seconds, "eval_seconds": 0.0}, recipe["steps"]
    answer = make_answer(recipe, tokenizer=tokenizer, task=task, sampler=sampler, tool=tool,
                         rank=rank, world=world)

    def save(record: PolicyStep) -> None:
        extra = {"config": model.config.to_dict(), "seconds": spent["seconds"]}
        save_checkpoint(stage.path, record.step, model=model, optimizer=optimizer,
                        fingerprint=fingerprint, extra=extra)

    with Interrupt(agree) as interrupt:
        steps = policy_steps(model, optimizer, answer, steps=total, start=start,
                             samples=recipe["samples"], rows=recipe.get("rows", 32), reduce=reduce,
                             pad=tokenizer.bos,
                             schedule=partial(schedule, steps=total, warmdown=1.0))
        steps = checkpointed(_logged(steps, stage, spent), save=save, every=recipe["save_every"],
                             last=total, interrupt=interrupt)
        for record in _watched(steps, stage.name, total - start):
            if cadence and record.step % cadence == 0 and record.step < total:
                evals = evaluate(model, evaluators or {})
                spent["eval_seconds"] += evals["seconds"]
                stage.log({"step": record.step, "evals": evals})
    metrics = _results(stage, total, spent, evaluate(model, evaluators or {}))
    if rank == 0: stage.finish(metrics)
    return metrics


# %%
stage = run.stage("rl", recipe, sft_stage, "sums")
metrics = grpo(stage, recipe, model=model, tokenizer=tokenizer, task=task, sampler=sampler, tool=tool,
               make_optimizer=make_optimizer)
after = pass_accuracy(sampler, tokenizer, task, samples=8, max_new_tokens=8, tool=tool)
print(f"reward {metrics['reward_first']:.2f} -> {metrics['reward_last']:.2f}; "
      f"pass@1 {before[1]:.2f} -> {after[1]:.2f}, pass@8 {before[8]:.2f} -> {after[8]:.2f}")
assert after[1] > before[1] + by_tier(0.1, 0.2)

# %%
import matplotlib.pyplot as plt

records = stage.records()
fig, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
ax.plot([r["step"] for r in records], [r["reward"] for r in records], "o-", label="mean reward")
ax.plot([r["step"] for r in records], [r["signal"] for r in records], "s--", label="questions with signal")
ax.set(xlabel="step", ylabel="share", ylim=(0, 1.05))
ax.legend(frameon=False)
figure(fig, caption="Reward, and the share of questions whose answers differ in reward.",
       alt="The mean reward rises from about one half towards one. The share of questions with signal begins near one and "
           "falls as questions are solved.")

# %% [markdown]
# Nobody showed the model which sign is right. It tried both, and a program with one line told it. Note the second curve: as questions are solved, the signal dries up. A run that
# goes on after that only adds noise. Note also pass@8: it hardly moved, because it was high already. Reinforcement learning of this kind mostly makes likely what was already possible.
#
# **Trap: the learning rate.** A policy that moves too far samples from where it has never been, and its next gradient comes from there. In the prototype a rate of 0.1 times pretraining's was stable; 0.3 times collapsed the hard task within two
# minutes (reward 0.06 to 0.015, the tool forgotten). Our toy bears 0.3 because there is so little to break. Rates fall linearly to 0, and the gradient is clipped at 1.
#
# ## At scale
#
# Published nanochat trains on GSM8K: 16 questions a step, 16 samples each, at most 256 new tokens, learning rates 0.05 times those of pretraining, 467 steps, about an hour and a half on 8xH100 for d20. Most of that time is sampling, which is
# why lesson 08 comes next. There is no KL penalty, no ratio and no clipping in its loss either: with one update for each batch of answers the ratio is 1. This course differs in three places: the stop token learns, the normaliser spans the step, and a question's
# samples do not share their first token.
#
# ## Recap
#
# * The policy gradient is finetuning on your own answers, weighted by how much better they were than their siblings.
# * Sample at temperature 1 from the current policy; anything else is another expectation.
# * Prompt, tool results and padding get no gradient; the stop token does.
# * One normaliser for the whole step.
# * No spread in a group, no signal; no signal, no learning: look at pass@k first.
#
# **Quiz.** Why can GRPO not teach a format the model never produces? (All answers of a group earn 0, every advantage is 0.)
#
# **Papers.** Williams (1992), REINFORCE. Shao et al. (2024), *DeepSeekMath* (GRPO). Yu et al. (2025), *DAPO*. Liu et al. (2025), *Understanding R1-Zero-like training* (Dr. GRPO).
