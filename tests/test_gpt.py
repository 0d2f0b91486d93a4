"The model: published totals, initial loss, no look-ahead, compiled equals eager."
import json
import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from nanochat.attention import Attention, attend, attend_sdpa
from nanochat.gpt import GPT, GPTConfig, config_for, next_token_loss, softcap
from nanochat.workshop import UserError

torch.set_num_threads(1)


def lively(seed=0, **kwargs):
    "A small model whose zero matrices were filled, so that every path matters."
    args = dict(depth=3, vocab_size=61, seq_len=16, head_dim=48) | kwargs
    model = GPT(config_for(**args), seed=seed)
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if not p.any(): torch.nn.init.normal_(p, std=0.1, generator=g)
    return model


def tokens(B=3, T=16, V=61, seed=0):
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("depth, params, flops", [
    (4, 36_700_160, 1.447e8), (12, 185_597_952, 1.038e9), (20, 560_988_160, 3.491758e9),
    (26, 1_081_999_360, 6.901e9), (32, 1_879_048_192, 1.207960e10)])
def test_published_sizes(depth, params, flops):
    with torch.device("meta"): model = GPT(config_for(depth, 65536, 2048))
    assert model.num_params()["total"] == params == sum(p.numel() for p in model.parameters())
    assert model.flops_per_token() == pytest.approx(flops, rel=4e-4)


def test_parts_hold_every_parameter_once():
    model = lively(kv_heads=2)
    parts = [p for ps in model.parts().values() for p in ps]
    assert sorted(map(id, parts)) == sorted(map(id, model.parameters()))
    assert list(model.parts()) == ["embedding", "matrices", "head"]


def test_windows_cost_fewer_operations():
    full, short = lively(seq_len=64), lively(seq_len=64, window=(8,))
    assert full.flops_per_token() - short.flops_per_token() == 12 * 192 * 2 * (64 - 8)


@pytest.mark.parametrize("depth", range(1, 36))
def test_every_depth_makes_a_model(depth):
    config = config_for(depth, 65536, 2048)
    assert config.n_embd % 128 == 0 and 64 * depth <= config.n_embd < 64 * depth + 128
    assert config.head_dim == 128 and config.n_kv_head == config.n_head == config.n_embd // 128


@pytest.mark.parametrize("change", [
    dict(depth=0), dict(depth=-2), dict(depth=2.5), dict(vocab_size=0), dict(seq_len=-1), dict(head_dim=0), dict(head_dim=7),
    dict(kv_heads=0), dict(kv_heads=2, depth=3, head_dim=64), dict(kv_heads=-1), dict(window=(0,)), dict(window=()),
    dict(window="SL"), dict(window=(1.5,)), dict(seq_len=None), dict(depth="4"), dict(depth=True), dict(vocab_size=512.0),
    dict(head_dim=-64), dict(seq_len="2048")])
def test_impossible_sizes_are_refused_in_one_line(change):
    with pytest.raises(UserError) as error: config_for(**(dict(depth=2, vocab_size=64, seq_len=16) | change))
    assert "\n" not in str(error.value) and len(str(error.value)) > 20


def test_a_head_count_that_does_not_divide_the_width_is_refused():
    with pytest.raises(UserError, match="do not fit"): GPTConfig(64, 16, 2, 3, 3, 128)


def test_a_refusal_names_the_way_out():
    with pytest.raises(UserError, match=r"2 key/value heads .* 3 heads: choose one of \[1, 3\]"): config_for(3, 64, 16, 64, 2)
    with pytest.raises(UserError, match="depth = 0; it must be a whole number of at least 1"): config_for(0, 64, 16)
    with pytest.raises(UserError, match="vocab_size = -5"): config_for(2, -5, 16)
    with pytest.raises(UserError, match="must hold 2 entries"): GPTConfig(64, 16, 2, 1, 1, 64, window=(3,))


def test_config_survives_json():
    config = config_for(3, 64, 16, head_dim=64, kv_heads=1, window=(4, None))
    assert config.window == (4, None, None)
    assert GPTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(UserError, match="sizes"): GPTConfig.from_dict({"vocab_size": 3})
    with pytest.raises(UserError, match="sizes"): GPTConfig.from_dict(config.to_dict() | {"smear": 1})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_first_loss_is_chance(dtype):
    model = GPT(config_for(2, 300, 16, head_dim=64))
    model.compute_dtype = dtype
    idx = tokens(V=300)
    assert not model(idx).any() and model(idx, idx).item() == pytest.approx(math.log(300), abs=1e-5)


def test_initial_spread():
    model = GPT(config_for(4, 512, 16, head_dim=64, kv_heads=1))
    C, attn, mlp = 256, model.blocks[1].attn, model.blocks[1].mlp
    for p, std in ((model.wte.weight, 1.0), (attn.c_q.weight, C**-0.5), (mlp.c_fc.weight, C**-0.5),
                   (attn.c_k.weight, C**-0.5 * 0.25**0.5), (attn.c_v.weight, C**-0.5 * 0.25**0.5)):
        assert p.std().item() == pytest.approx(std, rel=0.03)
    for p in (attn.c_proj.weight, mlp.c_proj.weight, model.lm_head.weight): assert not p.any()


def test_seeds_make_models():
    a, b, c = (GPT(config_for(2, 64, 16, head_dim=64), seed=s) for s in (1, 1, 2))
    assert torch.equal(a.wte.weight, b.wte.weight) and not torch.equal(a.wte.weight, c.wte.weight)


def test_a_model_built_on_meta_becomes_the_same_model():
    config = config_for(2, 64, 16, head_dim=64)
    with torch.device("meta"): late = GPT(config)
    late = late.to_empty(device="cpu")
    for b in late.buffers(): b.fill_(7.0)
    late.init_weights(3)
    early = GPT(config, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(late.parameters(), early.parameters()))
    assert len(list(late.buffers())) == 2 and all(torch.equal(a, b) for a, b in zip(late.buffers(), early.buffers()))
    assert late.cos.dtype == torch.float32


def test_rotary_tables_are_not_saved():
    assert set(lively().state_dict()) == {n for n, _ in lively().named_parameters()}


@pytest.mark.parametrize("kwargs", [{}, dict(kv_heads=1), dict(window=(3,))])
def test_no_logit_depends_on_a_later_token(kwargs):
    model, idx = lively(**kwargs), tokens()
    before = model(idx)
    for at in (1, 7, 15):
        changed = idx.clone()
        changed[:, at] = (changed[:, at] + 1) % 61
        moved = (model(changed) - before).abs().amax(dim=(0, 2))
        assert (moved[:at] == 0).all() and moved[at] > 1e-3


def test_windows_limit_how_far_a_model_reads():
    "Two layers that see 3 back and a last one that sees all: with all three short, nothing beyond 9 arrives."
    config = config_for(3, 61, 32, head_dim=48)
    config.window = (3, 3, 3)
    model = GPT(config)
    model.load_state_dict(lively(seq_len=32).state_dict())
    idx = tokens(T=32)
    changed = idx.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 61
    moved = (model(changed) - model(idx)).abs().amax(dim=(0, 2)) > 0
    assert moved[4:14].all() and not moved[14:].any() and not moved[:4].any()


def test_loss_equals_cross_entropy_and_ignores_minus_one():
    model, idx = lively(), tokens()
    targets = tokens(seed=1)
    targets[0, :9] = -1
    logits, loss, each = model(idx), model(idx, targets), model(idx, targets, reduction="none")
    assert logits.dtype == loss.dtype == torch.float32 and each.shape == (3, 16)
    torch.testing.assert_close(loss, F.cross_entropy(logits.view(-1, 61), targets.view(-1), ignore_index=-1))
    assert not each[0, :9].any() and (each[1:] > 0).all()
    torch.testing.assert_close(each.sum() / (targets >= 0).sum(), loss)


def test_a_batch_without_targets_gives_zero_and_finite_gradients():
    model, idx = lively(), tokens()
    loss = model(idx, torch.full_like(idx, -1))
    loss.backward()
    assert loss.item() == 0 and all(torch.isfinite(p.grad).all() and not p.grad.any() for p in model.parameters())


def test_softcap_is_fp32_and_bounded():
    z = torch.linspace(-500, 500, 1001)
    torch.testing.assert_close(softcap(z).double(), 15 * torch.tanh(z.double() / 15), rtol=1e-5, atol=1e-6)
    assert softcap(z.bfloat16()).dtype == torch.float32 and softcap(torch.tensor([30.0, 31.0]).bfloat16()).diff() > 0


def test_bf16_is_close_to_fp32_and_keeps_fp32_weights():
    model, idx = lively(), tokens()
    exact = model(idx)
    model.compute_dtype = torch.bfloat16
    assert model.features(idx).dtype == torch.bfloat16 and model(idx).dtype == torch.float32
    assert (model(idx) - exact).abs().max() < 0.1 * exact.abs().max()
    model(idx, idx).backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("form", [attend, attend_sdpa])
def test_the_forms_of_attention_train_alike(form):
    models = [lively(kv_heads=2, depth=2, window=(4,), head_dim=32) for _ in range(2)]
    for block in models[1].blocks: block.attn.attend = form
    for m in models: m(tokens(), tokens(seed=1)).backward()
    for a, b in zip(*(m.parameters() for m in models)): torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_text_longer_than_the_tables_is_refused():
    model = lively(seq_len=4)
    assert model(tokens(T=40)).shape == (3, 40, 61)
    with pytest.raises(UserError, match="longer than 40"): model(tokens(T=41))


def test_forward_with_loss_is_one_graph_but_for_the_look_up(monkeypatch):
    "No graph break in forward or loss that is not meant: dynamo captures all of it (the inductor is not needed to know)."
    monkeypatch.setattr(GPT, "embed", lambda self, idx: self.wte(idx))
    for kwargs in ({}, dict(kv_heads=1, window=(5,))):
        model, idx = lively(**kwargs), tokens()
        model.compute_dtype = torch.bfloat16
        captured = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
        loss = captured(idx, idx)
        loss.backward()
        torch.testing.assert_close(loss, model(idx, idx), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("scale", [1.0, 20.0, 1000.0])
def test_next_token_loss_and_its_gradient_equal_torchs(reduction, scale):
    "The gradient is by hand: against autograd through tanh and cross entropy, in fp64; scores far beyond the cap too."
    scores = (scale * torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0))).requires_grad_()
    targets = torch.tensor([[3, -1, 0, 8], [-1, 1, 1, 2]])
    capped = 15 * torch.tanh(scores.double() / 15)
    expected = F.cross_entropy(capped.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction=reduction).view(targets.shape if reduction == "none" else ())
    found = next_token_loss(scores, targets, reduction)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    for_each = torch.rand(targets.shape, generator=torch.Generator().manual_seed(1)) if reduction == "none" else torch.ones(())
    (a,), (b,) = (torch.autograd.grad((z * for_each).sum(), scores) for z in (found, expected))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert not a[targets == -1].any()


def test_any_negative_target_is_left_out_of_the_mean_too():
    "transformers marks with -100; it was left out of the sum and counted in the mean."
    scores = torch.randn(1, 3, 10, generator=torch.Generator().manual_seed(0))
    assert next_token_loss(scores, torch.tensor([[4, -100, 7]])) == next_token_loss(scores, torch.tensor([[4, -1, 7]]))


@pytest.mark.parametrize("make", [lambda: config_for(2, 64, 32, window=16), lambda: GPTConfig(64, 32, 2, 2, 2, 128, window=16),
                                  lambda: GPTConfig.from_dict([1]), lambda: Attention(8, 0, 0), lambda: Attention(8, 2, 0)])
def test_sizes_of_another_type_are_one_line(make):
    with pytest.raises(UserError): make()


def test_next_token_loss_keeps_nothing_but_the_scores():
    scores, targets, kept = torch.randn(1, 5, 64).bfloat16().requires_grad_(), torch.randint(64, (1, 5)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t): next_token_loss(scores, targets)
    assert sum(kept) < scores.nbytes + 5 * 64


# -- counts against counters -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kwargs", [{}, dict(kv_heads=1), dict(depth=1, head_dim=64)])
def test_flops_equal_those_that_torch_counts(kwargs):
    model, idx = lively(**kwargs), tokens()
    for block in model.blocks: block.attn.attend = attend           # which computes masked pairs, too
    with FlopCounterMode(display=False) as counter: model(idx, idx).backward()
    assert counter.get_total_flops() == idx.numel() * model.flops_per_token()


def test_flops_do_not_depend_on_the_class_of_a_layer():
    "A count by class lost every layer that 8-bit arithmetic had swapped for another class."
    class Swapped(nn.Module):
        def __init__(self, old):
            super().__init__()
            self.weight = old.weight
        def forward(self, x): return F.linear(x, self.weight)
    model = lively()
    before = model.flops_per_token(), model.num_params(), model.memory(4)
    for block in model.blocks: block.mlp.c_fc, block.attn.c_q = Swapped(block.mlp.c_fc), Swapped(block.attn.c_q)
    assert (model.flops_per_token(), model.num_params(), model.memory(4)) == before


def kept_for_backward(model, rows):
    "Bytes of the tensors that autograd keeps of one forward pass, weights and tables apart."
    own, kept = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}, {}
    def keep(t):
        if t.untyped_storage().data_ptr() not in own: kept[t.untyped_storage().data_ptr()] = (t.untyped_storage().nbytes(), t)
        return t
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t): loss = model(rows, rows)
    return sum(n for n, _ in kept.values()), loss


@pytest.mark.parametrize("kwargs", [{}, dict(kv_heads=1), dict(seq_len=64), dict(window=(8,)), dict(vocab_size=999), dict(depth=1, head_dim=64), dict(depth=1, head_dim=32)])
def test_memory_equals_what_is_kept(kwargs):
    model = lively(**dict(seq_len=128) | kwargs)
    T = model.config.seq_len
    real, loss = kept_for_backward(model, tokens(B=4, T=T, V=61))
    formula = model.memory(rows=4)
    assert formula["activations"] == pytest.approx(real, rel=0.03)
    optimizer = torch.optim.AdamW(model.parameters())
    loss.backward()
    optimizer.step()
    assert formula["weights"] == formula["gradients"] == sum(p.grad.nbytes for p in model.parameters())
    assert formula["optimizer"] == sum(t.nbytes for s in optimizer.state.values() for t in s.values() if t.dim())
    assert formula["total"] == sum(formula[k] for k in ("weights", "gradients", "optimizer", "activations"))


def test_memory_in_bf16_and_with_fused_attention_is_near():
    model = lively(seq_len=128)
    model.compute_dtype = torch.bfloat16
    assert model.memory(4)["activations"] == pytest.approx(kept_for_backward(model, tokens(B=4, T=128))[0], rel=0.25)
    with torch.device("meta"): paper = GPT(model.config)           # elsewhere than on a CPU the fused form runs
    model.compute_dtype = torch.float32
    for block in model.blocks: block.attn.attend = attend_sdpa
    assert paper.memory(4)["activations"] == pytest.approx(kept_for_backward(model, tokens(B=4, T=128))[0], rel=0.03)


def test_memory_with_one_moment_for_matrices():
    model, kept = lively(), {"embedding": 2, "matrices": 1, "head": 2}
    n = model.num_params()
    assert model.memory(1, kept)["optimizer"] == 8 * n["total"] - 4 * n["matrices"] == model.memory(1)["optimizer"] - 4 * n["matrices"]


# -- traps -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("cast", [lambda m: m.bfloat16(), lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.double().bfloat16()])
def test_casting_the_whole_model_leaves_the_rotary_tables_alone(cast):
    model, exact = lively(), lively()
    cast(model)
    assert torch.equal(model.cos, exact.cos) and torch.equal(model.sin, exact.sin) and model.wte.weight.dtype != torch.float32
    assert (model(tokens()) - exact(tokens())).abs().max() < 0.1 * exact(tokens()).abs().max()


def test_after_three_steps_every_weight_has_moved():
    "Zeros wake from the top: head, then what writes, then all. A weight between two zeros would sleep for ever."
    model = GPT(config_for(3, 61, 16, head_dim=48))
    first = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer, moved = torch.optim.SGD(model.parameters(), lr=1.0), []
    for step in range(3):
        optimizer.zero_grad(), model(tokens(), tokens(seed=1)).backward(), optimizer.step()
        moved.append({n for n, p in model.named_parameters() if not torch.equal(p, first[n])})
    writers = {n for n in first if n.endswith("c_proj.weight")}
    assert moved[0] == {"lm_head.weight"} and writers <= moved[1] and moved[2] == set(first)


def test_head_and_embedding_are_apart():
    model = lively()
    assert model.lm_head.weight is not model.wte.weight and model.num_params()["head"] == model.num_params()["embedding"]


def test_tokens_need_not_be_contiguous():
    model, wide = lively(), tokens(T=32)
    for idx in (wide[:, ::2], wide[:, 1:17], tokens(B=16, T=3).T):
        assert not idx.is_contiguous()
        torch.testing.assert_close(model(idx, idx), model(idx.contiguous(), idx.contiguous()))


def test_the_longest_text_is_the_length_of_the_tables():
    model = lively(seq_len=4)
    assert len(model.cos) == len(model.sin) == model.config.max_len == 40
