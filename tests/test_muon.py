"""Newton-Schulz against the SVD, Muon against a slow reference, the joined optimizer's state."""
import copy
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nanochat.checkpoint import load_checkpoint, save_checkpoint
from nanochat.gpt import GPT, config_for
from nanochat import muon
from nanochat.muon import Muon, make_adamw, make_optimizer, newton_schulz
from nanochat.optim import AdamW, adamw_update_fused, width_scale
from nanochat.workshop import UserError


def tiny(seed=0): return GPT(config_for(2, 64, 16, head_dim=64), seed)


def backward(model, seed):
    g = torch.Generator().manual_seed(seed)
    model.zero_grad()
    model(torch.randint(64, (2, 16), generator=g), torch.randint(64, (2, 16), generator=g)).backward()


def by_svd(G, steps=3):
    "The same map on singular values, in float64, one matrix at a time."
    U, S, Vt = torch.linalg.svd(G.double(), full_matrices=False)
    S = S / (S**4).sum() ** 0.25
    for _ in range(steps): S = 3.4445 * S - 4.7750 * S**3 + 2.0315 * S**5
    return U @ torch.diag(S) @ Vt


@pytest.mark.parametrize("shape", [(8, 8), (5, 17), (17, 5), (1, 9), (9, 1)])
def test_newton_schulz_equals_the_svd(shape):
    G = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)) * torch.tensor([1e-4, 1.0, 1e4])[:, None, None]
    for steps in (1, 2, 3, 4, 5, 7):
        for g, got in zip(G, newton_schulz(G, steps)):
            assert torch.allclose(got.double(), by_svd(g, steps), atol=1e-4)
    assert torch.equal(newton_schulz(G[0]), newton_schulz(G[:1])[0])


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


@pytest.mark.parametrize("shape", [(64, 64), (64, 256), (256, 64)])
def test_soft_directions_survive_many_rounds_in_bf16(shape):
    "A = X X' that is followed for more than three rounds runs away here: off by 0.4, 18 to 50, and 1e9 or more."
    g = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(n, 64, generator=g))[0] for n in shape)
    G = (U * torch.logspace(0, -2, 64)) @ V.T
    for steps in (4, 5, 6, 8):
        right = by_svd(G, steps)
        assert (newton_schulz(G.bfloat16(), steps) - right).norm() < 0.15 * right.norm()


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
    optimizer = Muon([p], lr=1e-9)
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
    class Fused(AdamW):
        "The same class with the form that the joined optimizer uses, so that the two can be equal in every bit."
        def step(self):
            for group in self.param_groups: adamw_update_fused(group, self.state)
    alone = Fused([{"params": [p], "lr": rates[id(p)]} for p in (b.lm_head.weight, b.wte.weight)], betas=(0.8, 0.95), eps=1e-10)
    for i in range(3):
        for m, o in ((a, joined), (b, alone)): backward(m, i); o.step()
        with torch.no_grad():                          # only embedding and head are compared
            for p, q in zip(a.blocks.parameters(), b.blocks.parameters()): q.copy_(p)
    assert torch.equal(a.wte.weight, b.wte.weight) and torch.equal(a.lm_head.weight, b.lm_head.weight)


def test_a_step_does_not_depend_on_what_is_stacked_with_it():
    "One norm for a whole stack (a tempting `X.norm()`) would make it so."
    g = torch.Generator().manual_seed(0)
    grads = [torch.randn(6, 6, generator=g) * 10.0**k for k in (0, 3, -3)]
    def moved(chosen):
        params = [torch.nn.Parameter(torch.zeros(6, 6)) for _ in chosen]
        for p, i in zip(params, chosen): p.grad = grads[i].clone()
        Muon(params, lr=0.1).step()
        return params[0]
    torch.testing.assert_close(moved([0]), moved([0, 1, 2]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape, products", [((40, 10), 2 * 10 * 10 * 40 + 9 * 10**3), ((10, 40), 2 * 10 * 10 * 40 + 9 * 10**3), ((10, 10), 9 * 10**3)])
def test_products_are_made_on_the_smaller_side_and_a_longer_one_is_met_twice(shape, products):
    with FlopCounterMode(display=False) as counter: newton_schulz(torch.randn(2, *shape))
    assert counter.get_total_flops() == 2 * 2 * products                            # two matrices, three rounds


def test_gradients_of_any_size_are_raised_as_far_and_nothing_overflows():
    G = torch.randn(1, 20, 12, generator=torch.Generator().manual_seed(0))
    for dtype, atol in ((torch.float32, 1e-4), (torch.bfloat16, 0.05)):
        for scale in (1e-8, 1e8):
            torch.testing.assert_close(newton_schulz((G * scale).to(dtype)).float(), newton_schulz(G), atol=atol, rtol=0)


def test_equal_shapes_go_through_one_call(monkeypatch):
    stacks, real = [], muon.newton_schulz
    monkeypatch.setattr(muon, "newton_schulz", lambda X, steps: stacks.append(tuple(X.shape)) or real(X, steps))
    params = [torch.nn.Parameter(torch.randn(*s)) for s in ((8, 8), (8, 32), (32, 8), (8, 8))]
    for p in params: p.grad = torch.randn_like(p)
    Muon(params).step()
    assert sorted(stacks) == [(1, 8, 32), (1, 32, 8), (2, 8, 8)]


def test_tall_matrices_take_longer_steps():
    "sqrt(rows / cols) for tall ones only: 2 for the first map of an MLP."
    sizes = {}
    for rows, cols in ((64, 16), (16, 64), (16, 16)):
        p = torch.nn.Parameter(torch.zeros(rows, cols))
        p.grad = torch.linalg.qr(torch.randn(max(rows, cols), min(rows, cols)))[0].reshape(rows, cols) if rows >= cols \
            else torch.linalg.qr(torch.randn(cols, rows))[0].T.contiguous()
        Muon([p], lr=0.1).step()
        sizes[rows, cols] = torch.linalg.svdvals(p.data).mean().item()
    assert sizes[64, 16] == pytest.approx(2 * sizes[16, 16], rel=1e-3) and sizes[16, 64] == pytest.approx(sizes[16, 16], rel=1e-3)


def test_gradients_that_are_not_contiguous_give_the_same_step():
    "Transposed or sliced gradients once broke a compiled kernel elsewhere (issue 569)."
    g = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    a, b = torch.nn.Parameter(torch.zeros(8, 12)), torch.nn.Parameter(torch.zeros(8, 12))
    a.grad, b.grad = g.T, g.T.contiguous()
    for p in (a, b): Muon([p], lr=0.1).step()
    torch.testing.assert_close(a, b)


def test_bf16_parameters_keep_fp32_momentum():
    p, q = torch.nn.Parameter(torch.zeros(8, 8, dtype=torch.bfloat16)), torch.nn.Parameter(torch.zeros(8, 8))
    g, optimizers = torch.Generator().manual_seed(0), [Muon([x], lr=0.1) for x in (p, q)]
    for _ in range(20):
        p.grad = torch.randn(8, 8, generator=g).bfloat16()
        q.grad = p.grad.float()
        for optimizer in optimizers: optimizer.step()
    a, b = (o.state[x]["momentum"] for o, x in zip(optimizers, (p, q)))
    assert a.dtype == torch.float32 and torch.equal(a, b)
    assert (p.float() - q).abs().max() < 0.05


def test_there_is_one_adamw_only():
    "Two copies of an optimizer drift apart (a9d0a86 there)."
    assert muon.UPDATES["adamw"] is adamw_update_fused


def test_the_number_of_rounds_can_be_chosen():
    model = GPT(config_for(1, 64, 16, head_dim=32))
    assert make_optimizer(model, ns_steps=5).param_groups[2]["ns_steps"] == 5
    with pytest.raises(UserError, match="at least one"): make_optimizer(model, ns_steps=0)


@pytest.mark.parametrize("make", [make_optimizer, make_adamw])
@pytest.mark.parametrize("rate", ["matrix_lr", "embedding_lr", "head_lr", "lr_scale"])
@pytest.mark.parametrize("value", [0.0, -0.02, float("nan")])
def test_rates_that_cannot_learn_are_refused(make, rate, value):
    with pytest.raises(UserError, match="learning rate .*above zero") as caught: make(tiny(), **{rate: value})
    assert "\n" not in str(caught.value)


def test_other_mistakes_are_refused():
    p = torch.nn.Parameter(torch.zeros(4, 4))
    for make in (lambda: Muon([p], lr=-1.0), lambda: Muon([p], weight_decay=-0.1), lambda: Muon([p], lr=0.5, weight_decay=3.0),
                 lambda: make_optimizer(tiny(), batch_tokens=0), lambda: make_optimizer(tiny(), weight_decay=-1.0)):
        with pytest.raises(UserError): make()
    for shape in ((3,), (2, 3, 4)):
        with pytest.raises(UserError, match="matrices"): Muon([torch.nn.Parameter(torch.zeros(*shape))])


def test_published_overhead_at_depth_20():
    "What the lesson says about 8 GPUs, counted from the matrices of the model."
    with torch.device("meta"): model = GPT(config_for(20, 65_536, 2048))
    sides = [sorted(p.shape) for p in model.parts()["matrices"]]
    flops = sum(5 * (4 * n * n * m + 2 * n**3) for n, m in sides)
    assert flops == 20 * 5 * 60 * 1280**3 and flops / (model.flops_per_token() * 2**19) < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(32, 96), (96, 32), (64, 64)])
@pytest.mark.parametrize("steps", [3, 5])
def test_tiny_matrices_stay_finite(shape, steps, dtype):
    "The norm of A squares its entries; they underflowed for lengths of 1e-11 to 1e-14, and the weights became NaN."
    G = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for power in range(45):
        found = newton_schulz((G / G.norm() * 10.0**-power).to(dtype), steps)
        assert found.isfinite().all() and found.abs().max() < 3, power
