"Attention against torch's own kernel, complex numbers and perturbation."
import pytest
import torch
import torch.nn.functional as F

from nanochat.attention import (EPS, Attention, Linear, apply_rotary, attend, attend_on, attend_sdpa, causal_mask,
                                rms_norm, rotary_tables, window_mask)
from nanochat.workshop import UserError

torch.set_num_threads(1)


def qkv(H, G, T=11, S=None, D=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = (2, H, T, D), (2, G, S or T, D), (2, G, S or T, D)
    return [torch.randn(s, generator=g) for s in shapes]


@pytest.mark.parametrize("H, G", [(4, 4), (4, 2), (4, 1), (6, 3)])
@pytest.mark.parametrize("window", [None, 1, 4, 50])
def test_attend_equals_sdpa(H, G, window):
    q, k, v = qkv(H, G)
    i = torch.arange(11)
    back = i[:, None] - i[None]                                # the masks again, by arithmetic
    mask = (back >= 0) & (back <= (99 if window is None else window))
    shared = [x.repeat_interleave(H // G, dim=1) for x in (k, v)]
    expected = F.scaled_dot_product_attention(q, *shared, attn_mask=mask)
    given = None if window is None else window_mask(11, window)
    torch.testing.assert_close(attend(q, k, v, given), expected)
    torch.testing.assert_close(attend_sdpa(q, k, v, given), expected)


def test_attend_with_a_mask_for_each_row_and_fewer_queries_than_keys():
    q, k, v = qkv(4, 2, T=3, S=9)
    mask = torch.rand(2, 1, 3, 9, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[..., 0] = True
    shared = [x.repeat_interleave(2, dim=1) for x in (k, v)]
    torch.testing.assert_close(attend(q, k, v, mask), F.scaled_dot_product_attention(q, *shared, attn_mask=mask))


def test_gradients_equal_those_of_sdpa():
    ours, theirs = ([x.requires_grad_() for x in qkv(4, 2)] for _ in range(2))
    attend(*ours).square().sum().backward()
    F.scaled_dot_product_attention(*theirs, is_causal=True, enable_gqa=True).square().sum().backward()
    for a, b in zip(ours, theirs): torch.testing.assert_close(a.grad, b.grad)


def test_attend_reads_an_fp32_cache_with_bf16_queries():
    q, k, v = qkv(4, 2)
    low = attend(q.bfloat16(), k, v)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), attend(q, k, v), rtol=0.05, atol=0.05)


def test_attend_takes_tensors_that_are_not_contiguous():
    q, k, v = qkv(4, 2)
    odd = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    assert not odd[0].is_contiguous()
    torch.testing.assert_close(attend(*odd), attend(q, k, v))


def test_the_form_follows_the_device():
    assert attend_on(torch.device("cpu")) is attend and attend_on(torch.device("cuda", 3)) is attend_sdpa


def test_rotary_equals_complex_multiplication():
    D, T = 16, 300
    x = torch.randn(2, 3, T, D, generator=torch.Generator().manual_seed(0))
    cos, sin = rotary_tables(T, D, base=10000.0)
    assert cos.shape == (T, D // 2) and cos.dtype == sin.dtype == torch.float32
    z = torch.complex(x[..., :D // 2].double(), x[..., D // 2:].double())
    angle = torch.arange(T, dtype=torch.float64)[:, None] * 10000.0 ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    turned = z * torch.polar(torch.ones_like(angle), -angle)
    expected = torch.cat((turned.real, turned.imag), dim=-1).float()
    torch.testing.assert_close(apply_rotary(x, cos, sin), expected, rtol=1e-4, atol=2e-4)


def test_rotary_scores_depend_on_distance_only():
    cos, sin = rotary_tables(200, 32)
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(32, generator=g), torch.randn(32, generator=g)
    def score(i, j): return apply_rotary(q, cos[i], sin[i]) @ apply_rotary(k, cos[j], sin[j])
    torch.testing.assert_close(score(50, 43), score(180, 173), rtol=1e-3, atol=1e-3)
    assert abs(score(50, 43) - score(50, 44)) > 0.05 and abs(score(50, 43) - score(43, 50)) > 0.05


def test_rotary_in_bf16_uses_fp32_tables():
    "Angles of far positions must not be rounded: only the result is."
    cos, sin = rotary_tables(3000, 8)
    x = torch.ones(3000, 8)
    exact, low = apply_rotary(x, cos, sin), apply_rotary(x.bfloat16(), cos, sin)
    assert low.dtype == torch.bfloat16 and torch.equal(low, exact.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm_has_one_epsilon_in_every_dtype(dtype):
    assert EPS == torch.finfo(torch.float32).eps
    x = (3e-4 * torch.randn(5, 64, generator=torch.Generator().manual_seed(0))).to(dtype)   # epsilon matters here
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 2.0**-23).sqrt()
    assert rms_norm(x).dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    torch.testing.assert_close(rms_norm(x).double(), expected, rtol=tolerance, atol=1e-6)


def test_linear_casts_its_weight_and_keeps_fp32_gradients():
    layer = Linear(6, 4)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x), x @ layer.weight.T)
    y = layer(x.bfloat16())
    assert y.dtype == torch.bfloat16 and layer.bias is None and layer.weight.dtype == torch.float32
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(layer.weight.grad, x.bfloat16().float().sum(0).expand(4, 6), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("G, window", [(4, None), (2, None), (1, 3)])
def test_no_output_depends_on_a_later_token_or_beyond_the_window(G, window):
    torch.manual_seed(0)
    layer, x = Attention(32, 4, G), torch.randn(1, 12, 32)
    mask = None if window is None else window_mask(12, window)
    jacobian = torch.func.jacrev(lambda x: layer(x, rotary_tables(12, 8), mask))(x)[0, :, :, 0]   # (T, C, T, C)
    reach = jacobian.abs().amax(dim=(1, 3)) > 0                     # (T, T) output i depends on input j
    assert torch.equal(reach, causal_mask(12) if window is None else window_mask(12, window))


def test_attention_normalises_after_the_turn_and_attends_by_head():
    "The layer written again with einsum and torch's kernel."
    torch.manual_seed(0)
    layer, x, D = Attention(32, 4, 2), torch.randn(2, 7, 32), 8
    cos, sin = rotary_tables(7, D)
    def heads(c, n): return torch.einsum("btc,hdc->bhtd", x, c.weight.view(n, D, 32))
    q, k, v = heads(layer.c_q, 4), heads(layer.c_k, 2), heads(layer.c_v, 2)
    q, k = (F.normalize(apply_rotary(z, cos, sin), dim=-1) * D**0.5 for z in (q, k))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    expected = torch.einsum("bhtd,chd->btc", y, layer.c_proj.weight.view(32, 4, D))
    torch.testing.assert_close(layer(x, (cos, sin)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("C, H, G", [(30, 4, 4), (32, 4, 3), (12, 4, 4)])
def test_sizes_that_do_not_fit_are_refused(C, H, G):
    with pytest.raises(UserError, match="heads"): Attention(C, H, G)
