"""Newton-Schulz against the SVD, Muon against a slow reference, the joined optimizer's state."""
import copy
import json

import pytest
import torch

from nanochat.checkpoint import load_checkpoint, save_checkpoint
from nanochat.gpt import GPT, config_for
from nanochat.muon import Muon, make_adamw, make_optimizer, newton_schulz, newton_schulz_gram
from nanochat.optim import AdamW, width_scale


def tiny(seed=0): return GPT(config_for(2, 64, 16, head_dim=64), seed)


def backward(model, seed):
    g = torch.Generator().manual_seed(seed)
    model.zero_grad()
    model(torch.randint(64, (2, 16), generator=g), torch.randint(64, (2, 16), generator=g)).backward()


def by_svd(G, steps=5):
    "The same map on singular values, in float64, one matrix at a time."
    U, S, Vt = torch.linalg.svd(G.double() / (G.double().norm() + 1e-7), full_matrices=False)
    for _ in range(steps): S = 3.4445 * S - 4.7750 * S**3 + 2.0315 * S**5
    return U @ torch.diag(S) @ Vt


@pytest.mark.parametrize("shape", [(8, 8), (5, 17), (17, 5), (1, 9), (9, 1)])
def test_newton_schulz_equals_the_svd(shape):
    G = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)) * torch.tensor([1e-4, 1.0, 1e4])[:, None, None]
    for steps in (0, 1, 5):
        for g, got in zip(G, newton_schulz(G, steps)):
            assert torch.allclose(got.double(), by_svd(g, steps), atol=2e-3 if g.norm() < 1 else 1e-4)
    assert torch.equal(newton_schulz(G[0]), newton_schulz(G[:1])[0])


@pytest.mark.parametrize("shape", [(3, 8, 32), (3, 32, 8), (8, 8), (4, 64)])
@pytest.mark.parametrize("rank", [2, 8])
def test_the_gram_form_equals_the_rounds_on_the_whole_matrix(shape, rank):
    "In fp32, also where most singular values are near nothing; the measure is the same rounds in fp64."
    g = torch.Generator().manual_seed(rank)
    low = torch.randn(*shape[:-1], rank, generator=g) @ torch.randn(*shape[:-2], rank, shape[-1], generator=g)
    G = low + 1e-4 * torch.randn(shape, generator=g)
    exact = newton_schulz(G.double()).float()
    torch.testing.assert_close(newton_schulz_gram(G), exact, atol=1e-3, rtol=0)
    torch.testing.assert_close(newton_schulz_gram(G.double()).float(), exact, atol=1e-6, rtol=0)


def test_newton_schulz_of_nothing_is_nothing_and_leaves_its_input_alone():
    assert torch.equal(newton_schulz(torch.zeros(4, 6)), torch.zeros(4, 6))
    G = torch.randn(4, 6)
    kept = G.clone()
    newton_schulz(G)
    newton_schulz(G.mT)                                # not contiguous
    assert torch.equal(G, kept)


def test_bf16_is_about_as_good():
    G = torch.randn(2, 64, 48, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(newton_schulz(G.bfloat16()).float())
    assert newton_schulz(G.bfloat16()).dtype == torch.bfloat16 and 0.5 < values.min() and values.max() < 1.35


def test_muon_equals_a_slow_reference_over_shapes():
    shapes = [(6, 6), (6, 6), (12, 6), (6, 12), (3, 5)]
    g = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(*s, generator=g)) for s in shapes]
    slow, buffers = [p.detach().double().clone() for p in params], [torch.zeros(*s).double() for s in shapes]
    optimizer = Muon(params, lr=0.05, weight_decay=0.1)
    for t in range(1, 6):
        mu = 0.85 + 0.10 * min(t / 300, 1)
        for i, (p, (rows, cols)) in enumerate(zip(params, shapes)):
            p.grad = torch.randn(rows, cols, generator=g)
            grad = p.grad.double()
            buffers[i] = mu * buffers[i] + (1 - mu) * grad
            move = by_svd((1 - mu) * grad + mu * buffers[i])
            slow[i] = slow[i] * (1 - 0.05 * 0.1) - 0.05 * max(1, rows / cols) ** 0.5 * move
        optimizer.step()
    for p, q in zip(params, slow): assert torch.allclose(p.double(), q, atol=5e-5)


def test_momentum_stops_rising_at_its_end():
    p = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = Muon([p], lr=0.0)
    p.grad = torch.ones(2, 2)
    optimizer.step()
    optimizer.state[p]["step"].fill_(1000)
    optimizer.state[p]["momentum"].zero_()
    optimizer.step()
    assert torch.allclose(optimizer.state[p]["momentum"], torch.full((2, 2), 0.05))


@pytest.mark.parametrize("make", [make_optimizer, make_adamw])
def test_a_forbidden_step_changes_nothing(make):
    model = tiny()
    optimizer = make(model, weight_decay=0.1)
    for i in range(3): backward(model, i); optimizer.step(torch.tensor(True))
    before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    for p in model.parameters(): p.grad.fill_(float("nan"))
    optimizer.step(torch.tensor(False))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for i, s in optimizer.state_dict()["state"].items():
        assert all(torch.equal(v, state["state"][i][k]) for k, v in s.items())


def test_allowed_true_is_the_same_as_not_asking():
    models = tiny(), tiny()
    for model, allowed in zip(models, (None, torch.tensor(True))):
        optimizer = make_optimizer(model)
        for i in range(3): backward(model, i); optimizer.step(allowed)
    for p, q in zip(*(m.parameters() for m in models)): assert torch.equal(p, q)


@pytest.mark.parametrize("make", [make_optimizer, make_adamw])
def test_state_survives_a_checkpoint_and_goes_on_bit_for_bit(make, tmp_path):
    model = tiny()
    optimizer = make(model)
    for i in range(3): backward(model, i); optimizer.step()
    save_checkpoint(tmp_path, 3, model=model, optimizer=optimizer)
    other = tiny(1)
    again = make(other, lr_scale=0.5)
    load_checkpoint(tmp_path, model=other, optimizer=again)
    assert json.dumps(again.state_dict()["param_groups"]) == json.dumps(optimizer.state_dict()["param_groups"])
    for i in range(3, 6):
        for m, o in ((model, optimizer), (other, again)): backward(m, i); o.step()
    for p, q in zip(model.parameters(), other.parameters()): assert torch.equal(p, q)
    a, b = optimizer.state_dict()["state"], again.state_dict()["state"]
    assert a.keys() == b.keys() and all(torch.equal(v, b[i][k]) for i, s in a.items() for k, v in s.items())


def test_groups_and_rates():
    model = tiny()
    head, embedding, matrices = make_optimizer(model, lr_scale=0.5, batch_tokens=2**21).param_groups
    scale = 0.5 * 2 * width_scale(128)
    assert head["lr"] == pytest.approx(0.004 * scale) and embedding["lr"] == pytest.approx(0.2 * scale)
    assert matrices["lr"] == pytest.approx(0.02) == matrices["initial_lr"]
    assert head["params"] == [model.lm_head.weight] and embedding["params"] == [model.wte.weight]
    assert (head["betas"], head["eps"]) == ((0.8, 0.95), 1e-10)
    small = make_optimizer(model, batch_tokens=4096).param_groups
    assert small[2]["lr"] == 0.02                      # constant below 524,288 tokens


def test_the_adamw_part_equals_adamw_alone():
    a, b = tiny(), tiny()
    joined = make_optimizer(a)
    rates = {id(b.lm_head.weight): joined.param_groups[0]["lr"], id(b.wte.weight): joined.param_groups[1]["lr"]}
    alone = AdamW([{"params": [p], "lr": rates[id(p)]} for p in (b.lm_head.weight, b.wte.weight)], betas=(0.8, 0.95), eps=1e-10)
    for i in range(3):
        for m, o in ((a, joined), (b, alone)): backward(m, i); o.step()
        with torch.no_grad():                          # only embedding and head are compared
            for p, q in zip(a.blocks.parameters(), b.blocks.parameters()): q.copy_(p)
    torch.testing.assert_close(a.wte.weight, b.wte.weight)          # the fused form rounds differently
    torch.testing.assert_close(a.lm_head.weight, b.lm_head.weight)
