"""AdamW, schedule, clipping and rules against PyTorch and closed forms."""
import copy

import pytest
import torch
import torch.nn.functional as F

from nanochat.optim import AdamW, adamw_update, adamw_update_fused, batch_scale, clip_by_global_norm, schedule, width_scale


def net(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))


def backward(model, seed):
    g = torch.Generator().manual_seed(seed)
    model.zero_grad()
    F.cross_entropy(model(torch.randn(32, 8, generator=g)), torch.randint(3, (32,), generator=g)).backward()


@pytest.mark.parametrize("settings", [
    dict(lr=1e-2, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0),
    dict(lr=3e-3, betas=(0.9, 0.999), eps=1e-3, weight_decay=0.2),      # a large eps: its place shows
])
def test_adamw_equals_torch(settings):
    ours, theirs = net(), net()
    a, b = AdamW(ours.parameters(), **settings), torch.optim.AdamW(theirs.parameters(), **settings, foreach=False)
    for i in range(100):
        for model, optimizer in ((ours, a), (theirs, b)):
            backward(model, i)
            optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters()): assert (p - q).abs().max() < 2e-6


def test_a_forbidden_step_changes_nothing_at_any_time():
    model = net()
    optimizer = AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    for i, allowed in enumerate([False, True, True, False, True]):
        backward(model, i)
        before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
        if not allowed:
            for p in model.parameters(): p.grad[..., 0] = float("nan") if i else float("inf")
        optimizer.step(torch.tensor(allowed))
        moved = any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert moved == allowed and all(v.isfinite().all() for v in model.state_dict().values())
        if state and not allowed:
            now = optimizer.state_dict()["state"]
            assert all(torch.equal(v, now[i][k]) for i, s in state.items() for k, v in s.items())


def test_forbidden_steps_leave_no_trace_in_later_ones():
    plain, poked = net(), net()
    a, b = AdamW(plain.parameters(), lr=0.1), AdamW(poked.parameters(), lr=0.1)
    for i in range(4):
        backward(poked, 99)
        for p in poked.parameters(): p.grad.fill_(float("inf"))
        b.step(torch.tensor(False))
        for model, optimizer in ((plain, a), (poked, b)):
            backward(model, i)
            optimizer.step(torch.tensor(True))
    for p, q in zip(plain.parameters(), poked.parameters()): assert torch.equal(p, q)


def test_state_round_trip_goes_on_bit_for_bit():
    model = net()
    optimizer = AdamW(model.parameters(), lr=0.1)
    for i in range(3): backward(model, i); optimizer.step()
    other = copy.deepcopy(model)
    again = AdamW(other.parameters(), lr=0.7)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for i in range(3, 6):
        for m, o in ((model, optimizer), (other, again)): backward(m, i); o.step()
    for p, q in zip(model.parameters(), other.parameters()): assert torch.equal(p, q)
    assert again.param_groups[0]["lr"] == 0.1 and again.param_groups[0]["initial_lr"] == 0.1


def test_a_parameter_without_a_gradient_stays_and_keeps_its_own_count():
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = AdamW([used, unused], lr=0.1, eps=1e-12)
    for _ in range(3):
        used.grad = torch.ones(2)
        optimizer.step()
    assert torch.equal(unused, torch.ones(2)) and unused not in optimizer.state
    unused.grad = torch.full((2,), 5.0)
    optimizer.step()
    assert torch.allclose(unused, torch.full((2,), 0.9))          # its first step, whatever the others did


def nanochat_multiplier(t, n, warmup, warmdown, final):
    "The formula of the fact sheet, written independently."
    w, d = round(warmup * n), round(warmdown * n)
    if t < w: return (t + 1) / w
    if t <= n - d: return 1.0
    r = (n - t) / d
    return r * 1.0 + (1 - r) * final


@pytest.mark.parametrize("shape", [(0, 0.2, 0), (0.1, 0.5, 0.05), (0, 1, 0), (0.3, 0.7, 0), (0, 0, 0)])
def test_schedule(shape):
    for n in (1, 7, 100):
        got = [schedule(t, n, *shape) for t in range(n)]
        assert got == pytest.approx([nanochat_multiplier(t, n, *shape) for t in range(n)])
        assert all(0 < m <= 1 for m in got)
    assert schedule(0, 10, 0, 1, 0) == 1 and schedule(9, 10, 0, 1, 0) == pytest.approx(0.1)     # down, not up (issue 68)


def test_clipping_equals_torch_and_returns_the_length_before():
    for max_norm in (0.05, 1e6):
        ours, theirs = net(), net()
        for m in (ours, theirs): backward(m, 0)
        a = clip_by_global_norm(ours.parameters(), max_norm)
        b = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
        assert isinstance(a, torch.Tensor) and torch.allclose(a, b)
        for p, q in zip(ours.parameters(), theirs.parameters()): assert torch.allclose(p.grad, q.grad)


def test_clipping_nothing_is_an_error():
    with pytest.raises(ValueError, match="backward"): clip_by_global_norm([torch.nn.Parameter(torch.ones(1))], 1.0)


def test_rules():
    assert width_scale(1280) == pytest.approx(0.774597, abs=1e-6) and width_scale(2048) == pytest.approx(0.6124, abs=1e-4)
    assert batch_scale(1) == batch_scale(524_288) == 1 and batch_scale(2**21) == pytest.approx(2)


@pytest.mark.parametrize("settings", [dict(lr=1e-2, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0),
                                      dict(lr=3e-3, betas=(0.9, 0.999), eps=1e-3, weight_decay=0.2)])
def test_the_fused_update_equals_the_plain_one(settings):
    "Weights and state, with steps that are not allowed in between; the first one is among them."
    nets = [net(), net()]
    states = [{p: {} for p in model.parameters()} for model in nets]
    for i in range(60):
        allowed = i % 7 != 0
        for model, state, update in zip(nets, states, (adamw_update, adamw_update_fused)):
            backward(model, i)
            if not allowed: next(model.parameters()).grad[0, 0] = float("nan")
            update({"params": list(model.parameters())} | settings, state, torch.tensor(allowed))
    for p, q in zip(*(model.parameters() for model in nets)):
        assert (p - q).abs().max() < 2e-6
        a, b = states[0][p], states[1][q]
        assert a.keys() == b.keys() and a["step"] == b["step"] == 51
        for name in a: torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-7)
