"""AdamW, schedule, clipping and rules against PyTorch and closed forms."""
import copy
import math

import pytest
import torch
import torch.nn.functional as F

from nanochat.muon import MUON, MuonAdamW
from nanochat.optim import AdamW, adamw_update, adamw_update_fused, batch_scale, check_groups, clip_by_global_norm, horizon_scale, schedule, width_scale
from nanochat.train import train
from nanochat.workshop import UserError


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
    assert horizon_scale(math.inf) == horizon_scale(21_400) == horizon_scale(700) == 1
    assert horizon_scale(122) == pytest.approx(3.2045, abs=1e-3) and horizon_scale(10) == horizon_scale(1) == 4
    scales = [horizon_scale(steps) for steps in range(50, 800)]
    assert scales == sorted(scales, reverse=True)


@pytest.mark.parametrize("lr", [0.0, -1e-3, float("nan"), float("inf")])
def test_a_learning_rate_that_cannot_learn_is_refused(lr):
    with pytest.raises(UserError, match="learning rate .* group 0: it must be above zero"): AdamW(net().parameters(), lr=lr)
    with pytest.raises(UserError, match="group 1"):
        AdamW([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": r} for r in (0.1, lr)])


@pytest.mark.parametrize("settings", [dict(betas=(1.0, 0.95)), dict(betas=(0.9, 1.0)), dict(betas=(-0.1, 0.9)), dict(eps=0.0), dict(eps=-1.0)])
def test_memories_and_eps_that_divide_by_zero_are_refused(settings):
    "eps 0 wrote NaN where the gradient is 0, even in a step that was not allowed."
    with pytest.raises(UserError, match="betas .* eps"): AdamW(net().parameters(), **settings)
    group = {"params": list(net().parameters()), "kind": "adamw", "lr": 0.1, "weight_decay": 0.0, "betas": (0.9, 0.95), "eps": 1e-8}
    with pytest.raises(UserError, match="betas .* eps"): check_groups([group | settings])


@pytest.mark.parametrize("step", [-1, 8, 9])
@pytest.mark.parametrize("warmdown", [0.0, 0.5])
def test_a_step_outside_of_the_run_has_no_rate(step, warmdown):
    "Beyond the end it was negative, which walks uphill."
    with pytest.raises(UserError, match=f"step {step} of a run of 8"): schedule(step, 8, warmdown=warmdown)


@pytest.mark.parametrize("decay", [-0.1, 10.0, float("nan")])
def test_a_decay_that_grows_or_flips_weights_is_refused(decay):
    with pytest.raises(UserError, match="weight decay"): check_groups([{"lr": 0.1, "weight_decay": decay}])


@pytest.mark.parametrize("call", [
    lambda: schedule(0, 10, warmup=0.6, warmdown=0.5), lambda: schedule(0, 10, warmdown=-0.1), lambda: schedule(0, 10, final=2.0),
    lambda: width_scale(0), lambda: batch_scale(0), lambda: batch_scale(-4096), lambda: horizon_scale(0),
    lambda: clip_by_global_norm(net().parameters(), 0.0), lambda: clip_by_global_norm(net().parameters(), float("nan"))])
def test_other_settings_that_cannot_work_are_refused(call):
    with pytest.raises(UserError) as caught: call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["AdamW", "MuonAdamW"])
def test_a_state_read_on_the_cpu_goes_where_the_parameters_are(name):
    "Torch moves the moments of a loaded state and leaves the counter; the meta device stands for a GPU here."
    def make(device):
        p = torch.nn.Parameter(torch.zeros(4, 3, device=device))
        groups = [{"params": [p], "lr": 0.1}]
        return p, AdamW(groups) if name == "AdamW" else MuonAdamW([MUON | groups[0]])
    p, there = make("cpu")
    p.grad = torch.ones(4, 3)
    there.step()
    _, here = make("meta")
    here.load_state_dict(there.state_dict())
    (state,) = here.state.values()
    assert len(state) >= 2 and {k: v.device.type for k, v in state.items()} == dict.fromkeys(state, "meta")


def test_bf16_parameters_keep_their_state_in_fp32():
    "1 - beta2 has no digits left in bf16 (issue 741 there): small squares would vanish from the average."
    half = torch.nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    full = torch.nn.Parameter(torch.ones(64))
    g = torch.Generator().manual_seed(0)
    a, b = (AdamW([p], lr=0.05, betas=(0.9, 0.999)) for p in (half, full))
    for _ in range(50):
        grad = (torch.randn(64, generator=g)).bfloat16()
        half.grad, full.grad = grad.clone(), grad.float()
        a.step(); b.step()
    for key in ("exp_avg", "exp_avg_sq"):
        assert a.state[half][key].dtype == torch.float32
        torch.testing.assert_close(a.state[half][key], b.state[full][key])
    assert (half.float() - full).abs().max() < 0.1


def test_all_tensors_are_clipped_as_one_vector():
    "Clipped tensor by tensor, (3, 4) and (0.3, 0.4) would both end at length 1 and 0.5: the direction would turn."
    long, short = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    long.grad, short.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
    clip_by_global_norm([long, short], 1.0)
    assert torch.allclose(long.grad, 10 * short.grad) and torch.cat([long.grad, short.grad]).norm() == pytest.approx(1, abs=1e-4)


def test_the_loop_clips_the_averaged_gradient_and_not_each_part():
    "Published nanochat clipped on each rank before averaging (061f83c)."
    class Dot(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(2))
        def forward(self, x, y): return (self.w * x.float()).sum()

    other = torch.tensor([8.0, 0.0])                       # what the other rank found
    def average(tensors):
        for t in tensors:
            if t.shape == other.shape: t.copy_((t + other) / 2)
    seen = []
    class Sgd(torch.optim.SGD):
        def step(self, allowed): seen.append(self.param_groups[0]["params"][0].grad.clone())
    model = Dot()
    optimizer = Sgd(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["initial_lr"] = 0.1
    batch = (torch.tensor([[0, 6]]), torch.tensor([[0, 0]]))
    record = next(train(model, optimizer, iter([batch]), steps=1, schedule=lambda t: 1.0, reduce=average))
    assert record.grad_norm == pytest.approx(5)            # (8, 6) / 2, not (1, 0) and (0, 1) averaged
    assert torch.allclose(seen[0], torch.tensor([0.8, 0.6]), atol=1e-5)


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
