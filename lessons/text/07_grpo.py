# %% [markdown]
# # 07 GRPO

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
from nanochat.optim import clip_by_global_norm, schedule
from nanochat.train import evaluate
from nanochat.workshop import Progress, UserError, print0


# %%
#| export
class Rollout(NamedTuple):
    "One sampled answer: the question's tokens, the new tokens, which of them the model chose, what it earned."
    prompt: list[int]
    tokens: list[int]
    sampled: list[bool]    # False where the tool forced the token
    reward: float
    advantage: float       # reward minus the mean of its group


# %%
#| export
def group_advantages(
    rewards: Tensor,  # (P, S) rewards of S answers to each of P questions
) -> Tensor:          # (P, S), each row sums to 0
    "How much better an answer was than the others to the same question (no division by the spread: Dr. GRPO)."
    return rewards - rewards.mean(dim=1, keepdim=True)


# %%
#| export
def roll_out(
    sampler: Callable,           # sampler(prompts, *, max_new_tokens, temperature, top_k, seed, tool)
    tokenizer,
    task,                        # `evaluate(conversation, completion)`
    conversations: Sequence[dict],  # the questions, P of them
    *,
    samples: int,                # answers to each question, S
    max_new_tokens: int,
    seed: int = 0,
    tool: Callable | None = None,
) -> list[Rollout]:              # P x S, the answers to one question side by side
    "Let the current policy answer each question several times, at temperature 1, and grade the answers."
    prompts = [tokenizer.render_prompt(c) for c in conversations for _ in range(samples)]
    answers = sampler(prompts, max_new_tokens=max_new_tokens, temperature=1.0, top_k=None, seed=seed, tool=tool)
    questions = [c for c in conversations for _ in range(samples)]
    rewards = [float(task.evaluate(q, completion_text(tokenizer, a))) for q, a in zip(questions, answers)]
    advantages = group_advantages(torch.tensor(rewards).view(-1, samples)).flatten().tolist()
    return [Rollout(p, a.tokens, a.sampled, r, adv)
            for p, a, r, adv in zip(prompts, answers, rewards, advantages)]


# %%
#| export
def pad_rollouts(
    rollouts: Sequence[Rollout],
    pad: int,                        # token behind the end of a row
    multiple: int = 32,              # rows are padded to a multiple of this, so that few shapes occur
) -> tuple[Tensor, Tensor, Tensor]:  # x (B, T), y (B, T) with -1 where not sampled, advantages (B, 1)
    "Rollouts as one rectangle: a target is a token that the model itself chose, the final stop token too."
    longest = max(len(r.prompt) + len(r.tokens) for r in rollouts) - 1
    T = -(-longest // multiple) * multiple
    x = torch.full((len(rollouts), T), pad)
    y = torch.full((len(rollouts), T), -1)
    for row, r in enumerate(rollouts):
        ids, first = torch.tensor(r.prompt + r.tokens), len(r.prompt) - 1
        x[row, : len(ids) - 1] = ids[:-1]
        y[row, first : len(ids) - 1] = torch.where(torch.tensor(r.sampled, dtype=torch.bool), ids[first + 1 :], -1)
    return x, y, torch.tensor([[r.advantage] for r in rollouts])


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
    """Gradients of -sum(A log p) / N, with N the sampled tokens of the whole step (DAPO, Yu et al. 2025).

    Answers whose advantage is 0 count in N, but nothing is computed for them."""
    params = [p for p in model.parameters() if p.requires_grad]
    for p in params: p.grad = torch.zeros_like(p)
    total = torch.tensor(float(sum(sum(r.sampled) for r in rollouts)), device=params[0].device)
    if reduce: reduce([total])
    total, loss = total.clamp(min=1), torch.zeros_like(total)
    useful = sorted((r for r in rollouts if r.advantage), key=lambda r: len(r.prompt) + len(r.tokens))
    for at in range(0, len(useful), rows):
        x, y, advantages = (z.to(total.device) for z in pad_rollouts(useful[at : at + rows], pad))
        nll = model(x, y, reduction="none").view_as(y)         # (B, T), -log p of each sampled token
        part = (advantages * nll).sum() / total
        part.backward()
        loss += part.detach()
    if reduce: reduce([p.grad for p in params] + [loss])
    return loss


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
            raise UserError(f"step {t + 1}: the gradient norm is {norm.item()}, so its update was not made; "
                            "start again to go on from the last checkpoint, or lower lr_scale")
        yield PolicyStep(t + 1, **summary(rollouts, samples, reduce), loss=loss.item(), grad_norm=norm.item(),
                         lr=lr, seconds=time.perf_counter() - began)


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
#| export
def make_answer(
    recipe: dict,        # prompts, samples, max_new_tokens
    *,
    tokenizer, task, sampler: Callable, tool: Callable | None,
    rank: int = 0, world: int = 1,
) -> Callable[[int], list[Rollout]]:
    "The function that asks this rank's questions of a step; what it asks depends on the step alone."
    prompts, seed = recipe["prompts"], recipe.get("seed", 0)
    if len(task) == 0: raise UserError(f"the task {task.name} has no questions")
    if prompts % world: raise UserError(f"{prompts} prompts cannot be shared by {world} processes; use a multiple")

    def answer(step: int) -> list[Rollout]:
        asked = questions_at(step, len(task), prompts, seed)[rank::world]
        return roll_out(sampler, tokenizer, task, [task[i] for i in asked], samples=recipe["samples"],
                        max_new_tokens=recipe["max_new_tokens"], tool=tool,
                        seed=(seed * 1_000_003 + step) * world + rank)
    return answer


# %%
#| export
def _resume(stage, model, optimizer, fingerprint: str) -> tuple[int, float]:
    "Go on from the newest checkpoint, if there is one: (updates done, seconds spent)."
    if last_step(stage.path) is None: return 0, 0.0
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


def _watched(steps: Iterator[PolicyStep], label: str, total: int, start: int) -> Iterator[PolicyStep]:
    "Show the reward while the records pass."
    with Progress(total - start, label) as bar:
        for record in steps:
            yield record
            bar.update(reward=record.reward, signal=record.signal, length=record.length)


def _results(stage, spent: dict, evals: dict) -> dict:
    "The metrics of a finished stage, from its log and its last evaluation."
    spent["eval_seconds"] += evals.pop("seconds")
    rewards = [r["reward"] for r in stage.records() if "reward" in r]
    tenth = max(1, len(rewards) // 10)
    return {"steps": len(rewards), **spent, "evals": evals,
            "reward_first": sum(rewards[:tenth]) / tenth, "reward_last": sum(rewards[-tenth:]) / tenth,
            "skills": [row for r in evals.values() for row in r.get("skills", [])]}


# %%
#| export
def grpo(
    stage,                        # of `checkpoint`: where it is stored
    recipe: dict,                 # prompts, samples, max_new_tokens, steps, lr_scale, save_every; rows, eval_every
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
    """Reinforcement learning from answers that are right or wrong (GRPO, Shao et al. 2024; Dr. GRPO, Liu et al. 2025).

    On-policy, mean of the group as baseline, tokens of the whole step as normaliser, no KL term, rates linear to 0.
    Resumed when killed; when finished, only its metrics are read. `UserError` when its recipe changed."""
    stage.start()
    if stage.status() == "finished": return stage.metrics()
    optimizer, fingerprint = make_optimizer(model, lr_scale=recipe["lr_scale"]), tokenizer.fingerprint()
    start, seconds = _resume(stage, model, optimizer, fingerprint)
    spent, total = {"seconds": seconds, "eval_seconds": 0.0}, recipe["steps"]
    answer = make_answer(recipe, tokenizer=tokenizer, task=task, sampler=sampler, tool=tool, rank=rank, world=world)

    def save(record: PolicyStep) -> None:
        save_checkpoint(stage.path, record.step, model=model, optimizer=optimizer, fingerprint=fingerprint,
                        extra={"config": model.config.to_dict(), "seconds": spent["seconds"]})

    with Interrupt(agree) as interrupt:
        steps = policy_steps(model, optimizer, answer, steps=total, start=start, samples=recipe["samples"],
                             schedule=partial(schedule, steps=total, warmdown=1.0), pad=tokenizer.bos,
                             rows=recipe.get("rows", 32), reduce=reduce)
        steps = checkpointed(_logged(steps, stage, spent), save=save, every=recipe["save_every"], last=total,
                             interrupt=interrupt)
        for record in _watched(steps, stage.name, total, start):
            if recipe.get("eval_every") and record.step % recipe["eval_every"] == 0 and record.step < total:
                evals = evaluate(model, evaluators or {})
                spent["eval_seconds"] += evals["seconds"]
                stage.log({"step": record.step, "evals": evals})
    metrics = _results(stage, spent, evaluate(model, evaluators or {}))
    if rank == 0: stage.finish(metrics)
    return metrics
