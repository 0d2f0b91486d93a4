"Attention against torch's own kernel, complex numbers and perturbation."
import pytest
import torch
import torch.nn.functional as F

from nanochat.attention import (EPS, Attention, Linear, apply_rotary, attend, attend_normed, attend_on, attend_sdpa, attention_maps,
                                causal_mask, rms_norm, rotary_tables, show_weights, window_mask)
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


@pytest.mark.parametrize("H, G, T", [(4, 4, 64), (4, 2, 11), (3, 1, 1), (2, 2, 2)])
def test_attend_normed_equals_sdpa_with_its_gradients(H, G, T):
    "Halves of odd length, one token, shared keys; the gradient is by hand, so it is compared with torch's."
    ours, theirs = ([(rms_norm(x) if i < 2 else x).requires_grad_() for i, x in enumerate(qkv(H, G, T))] for _ in range(2))
    y, expected = attend_normed(*ours), F.scaled_dot_product_attention(*theirs, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(y, expected)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    for a, b in zip(ours, theirs): torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("D", [64, 128])
def test_attend_normed_at_the_bounds_of_its_scores(D):
    "All scores at -sqrt(D) or sqrt(D): e to the power of their distance from the bound neither underflows nor overflows."
    one = rms_norm(torch.ones(1, 1, 6, D))
    v = torch.randn(1, 1, 6, 4, generator=torch.Generator().manual_seed(0))
    for sign in (1, -1): torch.testing.assert_close(attend_normed(one, sign * one, v), attend(one, sign * one, v))


def test_attend_normed_in_bf16_is_as_near_as_the_plain_form():
    q, k, v = (z.bfloat16() for z in qkv(4, 4, 64))
    q, k = rms_norm(q), rms_norm(k)
    exact = attend(*(z.double() for z in (q, k, v)))
    errors = [(form(q, k, v).double() - exact).norm() for form in (attend_normed, attend)]
    assert errors[0] < 1.2 * errors[1] < 0.02 * exact.norm()


def test_attend_normed_with_a_mask_is_the_plain_form_and_refuses_what_it_refuses():
    q, k, v = qkv(4, 2)
    assert torch.equal(attend_normed(q, k, v, window_mask(11, 3)), attend(q, k, v, window_mask(11, 3)))
    with pytest.raises(ValueError, match="give a mask"): attend_normed(q[:, :, :3], k, v)


def test_attend_normed_leaves_float16_to_the_plain_form():
    "A loss scaled by 65,536 over a sum of e^(s - 8) of unlike vectors is beyond float16."
    one, v = rms_norm(torch.ones(1, 1, 8, 64)).half(), torch.ones(1, 1, 8, 4).half().requires_grad_()
    y = attend_normed(one, -one, v)
    (y * 8192.0).sum().backward()
    assert torch.equal(y, attend(one, -one, v)) and v.grad.isfinite().all() and v.grad.any()


def test_the_form_follows_the_device():
    assert attend_on(torch.device("cpu")) is attend_normed and attend_on(torch.device("cuda", 3)) is attend_sdpa


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
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x, rotary_tables(12, 8), mask), x)[0, :, :, 0]   # (T, C, T, C)
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


@pytest.mark.parametrize("form", [attend, attend_sdpa])
def test_fewer_queries_than_keys_are_refused_without_a_mask(form):
    "torch's causal flag lines them up at the start: the newest token would see the oldest one only."
    q, k, v = qkv(4, 2, T=1, S=9)
    assert torch.equal(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[:, 0, 0], v[:, 0, 0])
    with pytest.raises(ValueError, match="1 queries and 9 keys"): form(q, k, v)
    torch.testing.assert_close(form(q, k, v, causal_mask(9)[-1:]), form(q, k, v, torch.ones(1, 9, dtype=torch.bool)))


class Kept:
    "The least a cache can be: all keys and values so far."
    k = v = None

    def update(self, layer, k, v):
        self.k, self.v = (new if old is None else torch.cat((old, new), 2) for old, new in ((self.k, k), (self.v, v)))
        return self.k, self.v


@pytest.mark.parametrize("form", [attend, attend_sdpa])
@pytest.mark.parametrize("window", [None, 0, 3])
def test_decoding_with_a_cache_keeps_the_window(form, window):
    "Published nanochat's fallback once forgot the window while it decoded, so a model wrote unlike it was trained."
    torch.manual_seed(0)
    layer, x, cache = Attention(32, 4, 2), torch.randn(1, 9, 32), Kept()
    layer.attend, (cos, sin) = form, rotary_tables(9, 8)
    mask = causal_mask(9) if window is None else window_mask(9, window)
    steps = [layer(x[:, i:i + 1], (cos[i:i + 1], sin[i:i + 1]), mask[i:i + 1, :i + 1], cache) for i in range(9)]
    torch.testing.assert_close(torch.cat(steps, 1), layer(x, (cos, sin), mask))


def test_no_two_positions_share_their_angles():
    "Angles computed in bf16 would: it has no whole numbers between 256 and 258."
    cos, sin = rotary_tables(20480, 64)
    assert len(torch.cat((cos, sin), 1).unique(dim=0)) == 20480


def test_casting_the_layer_as_a_whole_has_no_table_to_round():
    layer = Attention(32, 4, 2).bfloat16()
    assert not list(layer.buffers())
    assert layer(torch.randn(1, 5, 32).bfloat16(), rotary_tables(5, 8)).dtype == torch.bfloat16


def test_maps_are_the_weights_and_change_nothing():
    torch.manual_seed(0)
    model, x = torch.nn.ModuleList([Attention(32, 4, 2), Attention(32, 4, 1)]), torch.randn(2, 7, 32)
    place, mask = rotary_tables(7, 8), window_mask(7, 2)
    def run(): return model[1](model[0](x, place), place, mask)
    plain = run()
    model[1].attend = attend_sdpa
    with attention_maps(model) as maps: torch.testing.assert_close(run(), plain)
    assert model[0].attend is None and model[1].attend is attend_sdpa
    assert [m.shape for m in maps] == [(2, 4, 7, 7)] * 2 and not maps[0].requires_grad
    q, k = (rms_norm(apply_rotary(model[0].heads(c(x)), *place)) for c in (model[0].c_q, model[0].c_k))
    scores = q @ k.repeat_interleave(2, dim=1).mT / 8**0.5
    torch.testing.assert_close(maps[0], scores.masked_fill(~causal_mask(7), -torch.inf).softmax(-1).detach())
    assert torch.equal(maps[1][0, 3] > 0, mask)
    with pytest.raises(RuntimeError), attention_maps(model): raise RuntimeError
    assert model[0].attend is None


def test_shown_weights_are_text_and_name_the_strongest():
    page = show_weights(["<b>", "a", "b"], torch.tensor([0.1, 0.7, 0.2]), asks=0)
    assert "<b>" not in page and "&lt;b&gt;" in page
    assert page.index("“a” at 1 (70%)") < page.index("“b” at 2 (20%)")
