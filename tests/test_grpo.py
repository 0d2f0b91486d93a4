"GRPO: the gradient against enumeration, masks, normaliser, exact resume, ranks."
import itertools
import json
import shutil

import pytest
import torch

from nanochat import muon
from nanochat.checkpoint import Run
from nanochat.gpt import GPT, GPTConfig
from nanochat.grpo import (PolicyStep, Rollout, group_advantages, grpo, make_answer, pad_rollouts,
                           policy_gradients, policy_steps, questions_at, roll_out, summary)
from nanochat.sample import Sample, make_sampler
from nanochat.tasks import Task
from nanochat.tokenizer import Tokenizer
from nanochat.workshop import UserError


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("NANOCHAT_QUIET", "1")
    torch.set_num_threads(1)


class TablePolicy(torch.nn.Module):
    "A policy over sequences of two of three tokens, with a table of logits for each place: small enough to enumerate."
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.table = torch.nn.Parameter(torch.randn(3, 4, generator=generator, dtype=torch.float64))

    def log_probs(self, idx): return self.table.log_softmax(-1)[idx]

    def forward(self, x, y, reduction="none"):
        logp = self.table[:, :3].log_softmax(-1)[x.clamp(max=2)]            # the next token depends on the last one
        picked = logp.gather(-1, y.clamp(min=0)[..., None]).squeeze(-1)
        return torch.where(y == -1, 0.0, -picked)


REWARD = {(0, 0): 1.0, (0, 1): 0.0, (0, 2): 0.0, (1, 0): 0.0, (1, 1): 1.0, (1, 2): 0.0, (2, 0): 0.0, (2, 1): 0.0, (2, 2): 1.0}


def chance(policy, tokens):
    "Log probability of two tokens after the prompt [1]."
    logp = policy.table[:, :3].log_softmax(-1)
    return logp[1, tokens[0]] + logp[tokens[0], tokens[1]]


def estimate(policy, group):
    "Our gradient for one group of answers to the prompt [1]."
    rewards = torch.tensor([[REWARD[t] for t in group]], dtype=torch.float64)
    advantages = group_advantages(rewards)[0].tolist()
    rollouts = [Rollout([1], list(t), [True, True], REWARD[t], a) for t, a in zip(group, advantages)]
    policy_gradients(policy, rollouts, pad=0)
    return policy.table.grad.clone()


def test_expected_gradient_is_that_of_the_expected_reward():
    """Enumerating every group of two answers with its probability: the estimator's mean is the true gradient of the
    expected reward, times 1/2 for two tokens an answer, times 1 - 1/S because an answer is part of its own baseline."""
    policy, S = TablePolicy(), 2
    expected = sum(chance(policy, t).exp() * r for t, r in REWARD.items())
    truth, = torch.autograd.grad(expected, policy.table)
    mean = torch.zeros_like(truth)
    with torch.no_grad(): weights = {t: chance(policy, t).exp().item() for t in REWARD}
    for group in itertools.product(REWARD, repeat=S):
        p = torch.tensor([weights[t] for t in group]).prod().item()
        mean += p * estimate(policy, group)
    torch.testing.assert_close(mean, -truth * (1 - 1 / S) / 2, atol=1e-6, rtol=1e-5)
    assert truth.abs().max() > 0.05


def test_enumerated_gradient_matches_finite_differences():
    policy, eps = TablePolicy(), 1e-5
    expected = lambda: sum(chance(policy, t).exp() * r for t, r in REWARD.items())
    truth, = torch.autograd.grad(expected(), policy.table)
    with torch.no_grad():
        for place in ((0, 0), (1, 2), (2, 1)):
            policy.table[place] += eps
            up = expected()
            policy.table[place] -= 2 * eps
            down = expected()
            policy.table[place] += eps
            assert abs((up - down) / (2 * eps) - truth[place]) < 1e-8


def test_advantages():
    a = group_advantages(torch.tensor([[1.0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 1]]))
    torch.testing.assert_close(a, torch.tensor([[.5, -.5, -.5, .5], [0, 0, 0, 0], [-.25, -.25, -.25, .75]]))


def test_padding_masks_prompt_tool_and_filling_but_keeps_the_stop_token():
    stop = 9
    r = Rollout([1, 2, 3], [4, 5, 6, 7, stop], [True, False, False, True, True], 1.0, 0.5)
    short = Rollout([1], [8, stop], [True, True], 0.0, -0.5)
    x, y, a = pad_rollouts([r, short], pad=0, multiple=8)
    assert x.tolist() == [[1, 2, 3, 4, 5, 6, 7, 0], [1, 8, 0, 0, 0, 0, 0, 0]]
    assert y.tolist() == [[-1, -1, 4, -1, -1, 7, stop, -1], [8, stop, -1, -1, -1, -1, -1, -1]]
    assert a.tolist() == [[0.5], [-0.5]]
    assert pad_rollouts([r], pad=0)[0].shape == (1, 32)


def tiny_model(seed=0, vocab=32):
    model = GPT(GPTConfig(vocab_size=vocab, seq_len=64, n_layer=1, n_head=1, n_kv_head=1, n_embd=16), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for p in model.parameters(): p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model


def random_rollouts(n=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda k: torch.randint(1, 32, (k,), generator=g).tolist()
    found = []
    for i in range(n):
        length = 2 + 3 * i
        found.append(Rollout(draw(3 + i), draw(length), [j % 4 != 2 for j in range(length)], 0.0, [0.5, -0.5, 0.0][i % 3]))
    return found


def plain_gradient(model, rollouts):
    "The same gradient, written naively: one answer at a time, no padding, softmax by hand."
    total = sum(sum(r.sampled) for r in rollouts)
    loss = 0.0
    for r in rollouts:
        ids = torch.tensor(r.prompt + r.tokens)
        logp = torch.log(model(ids[None])[0].softmax(-1))
        for j, sampled in enumerate(r.sampled):
            at = len(r.prompt) + j
            if sampled: loss = loss - r.advantage * logp[at - 1, ids[at]] / total
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters()]


def test_gradient_equals_the_naive_one_whatever_the_micro_batch():
    model, rollouts = tiny_model(), random_rollouts()
    truth = plain_gradient(model, rollouts)
    assert max(g.abs().max() for g in truth) > 1e-4
    for rows in (1, 2, 32):      # a normaliser per pass, as published nanochat has, would differ here
        policy_gradients(model, rollouts, pad=0, rows=rows)
        for p, g in zip(model.parameters(), truth): torch.testing.assert_close(p.grad, g, atol=1e-6, rtol=1e-4)


def test_stop_token_gets_a_gradient():
    model = tiny_model()
    rollouts = [Rollout([1, 2], [3], [True], 1.0, 0.5), Rollout([1, 2], [9], [True], 0.0, -0.5)]
    policy_gradients(model, rollouts, pad=0)
    row = model.lm_head.weight.grad
    assert row[9].abs().sum() > 0 and (row[9] @ row[3]) < 0      # pushed in opposite directions


def test_two_ranks_equal_one():
    "Two processes that average have the gradients of one that saw all answers, though their token counts differ."
    rollouts, model = random_rollouts(8), tiny_model()
    policy_gradients(model, rollouts, pad=0)
    truth = [p.grad.clone() for p in model.parameters()]
    halves = [rollouts[:3], rollouts[3:]]
    average = sum(sum(sum(r.sampled) for r in h) for h in halves) / 2
    sums = [torch.zeros_like(g) for g in truth]
    for half in halves:
        calls = []
        def reduce(tensors):
            if not calls: tensors[0].fill_(average)         # the count comes first
            calls.append(len(tensors))
        policy_gradients(model, half, pad=0, reduce=reduce)
        assert calls == [1, len(truth) + 1]
        for s, p in zip(sums, model.parameters()): s += p.grad / 2
    for s, g in zip(sums, truth): torch.testing.assert_close(s, g, atol=1e-6, rtol=1e-4)


def test_no_signal_moves_nothing():
    model = tiny_model()
    before = [p.clone() for p in model.parameters()]
    optimizer = muon.make_optimizer(model)
    same = [Rollout([1, 2], [3, 4], [True, True], 1.0, 0.0)] * 4
    record, = policy_steps(model, optimizer, lambda t: same, steps=1, samples=2, schedule=lambda t: 1.0, pad=0)
    assert record.signal == 0 and record.reward == 1 and record.grad_norm == 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_signal_moves_the_policy_towards_the_reward():
    model = tiny_model()
    optimizer = muon.make_optimizer(model, lr_scale=0.1)
    pair = [Rollout([1, 2], [3, 4], [True, True], 1.0, 0.5), Rollout([1, 2], [5, 6], [True, True], 0.0, -0.5)]
    def chance_of(tokens):
        with torch.no_grad(): logp = model(torch.tensor([[1, 2, *tokens]])).log_softmax(-1)[0]
        return (logp[1, tokens[0]] + logp[2, tokens[1]]).item()
    good, bad = chance_of([3, 4]), chance_of([5, 6])
    list(policy_steps(model, optimizer, lambda t: pair, steps=3, samples=2, schedule=lambda t: 1.0, pad=0))
    assert chance_of([3, 4]) > good and chance_of([5, 6]) < bad


def test_nonfinite_gradient_is_refused_and_changes_nothing():
    model = tiny_model()
    before = [p.clone() for p in model.parameters()]
    broken = [Rollout([1, 2], [3], [True], 1.0, float("nan"))]
    steps = policy_steps(model, muon.make_optimizer(model), lambda t: broken, steps=1, samples=1, schedule=lambda t: 1.0, pad=0)
    with pytest.raises(UserError, match="step 1: the gradient norm"): next(steps)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_questions_cover_every_epoch_and_depend_on_the_step_alone():
    asked = [q for step in range(7) for q in questions_at(step, 10, 3)]
    assert sorted(asked[:10]) == sorted(asked[10:20]) == list(range(10)) and asked[:10] != asked[10:20]
    assert questions_at(4, 10, 3) == asked[12:15]
    assert questions_at(0, 10, 3, seed=1) != questions_at(0, 10, 3)
    assert sorted(questions_at(0, 2, 5)) in ([0, 0, 0, 1, 1], [0, 0, 1, 1, 1])      # fewer questions than prompts


TEXTS = [f"{a}+{b}={a + b}" for a in range(1, 10) for b in range(1, 10)]
TOKENIZER = Tokenizer.train(TEXTS, 270)


def sums_task():
    rows = [{"messages": [{"role": "user", "content": f"{a}+{b}"}, {"role": "assistant", "content": str(a + b)}],
             "answer": str(a + b)} for a in range(1, 4) for b in range(1, 4)]
    return Task("sums", rows, lambda c, text: text.startswith(c["answer"][0]))


def test_roll_out_groups_rewards_and_text_without_the_stop_token():
    task, seen = sums_task(), []
    def sampler(prompts, *, max_new_tokens, temperature, top_k, seed, tool):
        assert (temperature, top_k) == (1.0, None)
        seen.append(prompts)
        texts = ["2", "9", "2", "7"] * 2
        return [Sample([*TOKENIZER.encode(t), TOKENIZER.assistant_end], [True, True]) for t in texts[:len(prompts)]]
    graded = []
    task.grade = lambda c, text: graded.append(text) or text == "2"
    rollouts = roll_out(sampler, TOKENIZER, task, [task[0], task[3]], samples=4, max_new_tokens=5)
    assert graded == ["2", "9", "2", "7"] * 2
    assert seen[0][0] == seen[0][3] == TOKENIZER.render_prompt(task[0]) and seen[0][4] == TOKENIZER.render_prompt(task[3])
    assert [r.reward for r in rollouts[:4]] == [1, 0, 1, 0] and [r.advantage for r in rollouts[:4]] == [.5, -.5, .5, -.5]
    assert rollouts[0].tokens[-1] == TOKENIZER.assistant_end
    assert summary(rollouts, 4) == {"reward": 0.5, "signal": 1.0, "length": 2.0}


def test_ranks_share_the_questions_of_a_step():
    task, asked = sums_task(), {}
    def sampler_of(who):
        def sampler(prompts, *, seed, **_):
            asked.setdefault(who, []).append((seed, [tuple(p) for p in prompts]))
            return [Sample([5], [True])] * len(prompts)
        return sampler
    recipe = {"prompts": 4, "samples": 2, "max_new_tokens": 4}
    common = dict(tokenizer=TOKENIZER, task=task, tool=None)
    for world in (1, 2):
        for rank in range(world):
            make_answer(recipe, sampler=sampler_of((world, rank)), rank=rank, world=world, **common)(3)
    alone, both = asked[1, 0][0], [asked[2, 0][0], asked[2, 1][0]]
    assert sorted(alone[1]) == sorted(both[0][1] + both[1][1])
    assert both[0][0] != both[1][0]                                     # other random numbers on each rank
    with pytest.raises(UserError, match="4 rows or prompts cannot be shared by 3"):
        make_answer(recipe, sampler=None, rank=0, world=3, **common)


def coin_task():
    "A reward that an untrained model earns about half of the time."
    task = sums_task()
    task.grade = lambda c, text: sum(text.encode()) % 2 == 0
    return task


RECIPE = {"prompts": 3, "samples": 4, "max_new_tokens": 3, "steps": 6, "lr_scale": 0.3, "save_every": 2, "seed": 1}


def run_stage(home, name, steps_done=None, evaluators=None):
    "Run the stage; with `steps_done`, as a process would that is stopped after so many steps."
    model = tiny_model(vocab=TOKENIZER.vocab_size)
    real = make_sampler(model, (TOKENIZER.assistant_end,))
    left = [steps_done]
    def sampler(*args, **kwargs):
        if left[0] == 0: raise KeyboardInterrupt
        if left[0] is not None: left[0] -= 1
        return real(*args, **kwargs)
    stage = Run(name, home).stage("rl", RECIPE, None, "sums")
    metrics = grpo(stage, RECIPE, model=model, tokenizer=TOKENIZER, task=coin_task(), sampler=sampler,
                   make_optimizer=muon.make_optimizer, evaluators=evaluators)
    return model, metrics, stage


def test_stage_resumes_exactly(tmp_path):
    whole, metrics, stage = run_stage(tmp_path, "whole")
    with pytest.raises(KeyboardInterrupt): run_stage(tmp_path, "cut", steps_done=5)
    cut, cut_metrics, cut_stage = run_stage(tmp_path, "cut")
    for (name, a), b in zip(whole.named_parameters(), cut.parameters()): assert torch.equal(a, b), name
    keys = [f for f in PolicyStep.__dataclass_fields__ if f != "seconds"]
    records = [[[r[k] for k in keys] for r in s.records()] for s in (stage, cut_stage)]
    assert records[0] == records[1] and len(records[0]) == 6
    assert any(r["signal"] > 0 for r in stage.records())                # else the test would prove nothing
    assert metrics["steps"] == 6 and metrics["reward_last"] == cut_metrics["reward_last"]


def test_killed_before_the_first_checkpoint_it_all_begins_again(tmp_path):
    with pytest.raises(KeyboardInterrupt): run_stage(tmp_path, "cut", steps_done=2)      # one update is logged, none saved
    stage = Run("cut", tmp_path).stage("rl", RECIPE, None, "sums")
    for folder in stage.path.glob("step_*"): shutil.rmtree(folder)                       # as a kill that nobody heard leaves it
    assert stage.records()
    _, metrics, stage = run_stage(tmp_path, "cut")
    assert metrics["steps"] == 6 and [r["step"] for r in stage.records()] == [1, 2, 3, 4, 5, 6]


def test_finished_stage_is_skipped_and_a_changed_recipe_refused(tmp_path):
    _, metrics, stage = run_stage(tmp_path, "done", evaluators={"e": lambda m: {"skills": [{"skill": "word_hard", "value": 0.5}]}})
    assert metrics["skills"] == [{"skill": "word_hard", "value": 0.5}] and stage.status() == "finished"
    assert json.loads((stage.path / "metrics.json").read_text()) == metrics
    _, again, _ = run_stage(tmp_path, "done", steps_done=0)             # its sampler would raise
    assert again == metrics
    other = Run("done", tmp_path).stage("rl", RECIPE | {"samples": 8}, None, "sums")
    with pytest.raises(UserError, match="samples"):
        grpo(other, RECIPE, model=tiny_model(vocab=TOKENIZER.vocab_size), tokenizer=TOKENIZER, task=sums_task(), sampler=None,
             make_optimizer=muon.make_optimizer)
