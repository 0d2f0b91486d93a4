"Sampling against softmax, and the rules of a batch of rows."
import math

import pytest
import torch

from nanochat.gpt import GPT, config_for
from nanochat.sample import Rows, Sample, make_sampler, pad_right, pick, pick_next
from nanochat.workshop import UserError

torch.set_num_threads(1)
V = 53


@pytest.fixture(scope="module")
def model():
    model = GPT(config_for(2, V, 32, head_dim=64))
    g = torch.Generator().manual_seed(0)
    for p in model.parameters():
        if not p.any(): torch.nn.init.normal_(p, std=0.1, generator=g)
    return model


def darts(n): return (torch.arange(n, dtype=torch.float64) + 0.5) / n


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 0, 1, 3, 9, 100])
def test_shares_equal_softmax(temperature, top_k):
    logits = torch.randn(9, generator=torch.Generator().manual_seed(1)) * 3
    kept = logits.double()
    if top_k: kept = kept.where(kept >= kept.topk(min(top_k, 9)).values[-1], -math.inf)
    got = pick(logits.expand(20_000, 9), darts(20_000), temperature, top_k).bincount(minlength=9) / 20_000
    torch.testing.assert_close(got.double(), (kept / temperature).softmax(-1), rtol=0, atol=2e-4)


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-53])
def test_a_token_without_probability_is_never_picked(u):
    logits = torch.tensor([[-math.inf, 1.0, -math.inf, 2.0, -math.inf]])
    assert pick(logits, torch.tensor([u], dtype=torch.float64)).item() in (1, 3)
    assert pick(logits, torch.tensor([u], dtype=torch.float64), top_k=4).item() in (1, 3)


def test_the_largest_draw_stays_inside_a_large_vocabulary():
    logits = torch.randn(4, 65536, generator=torch.Generator().manual_seed(0))
    got = pick(logits, torch.full((4,), 1 - 2**-53, dtype=torch.float64))
    assert (got < 65536).all()


def test_temperature_zero_and_near_zero_take_the_best():
    logits = torch.randn(6, V, generator=torch.Generator().manual_seed(0))
    best = logits.argmax(-1)
    for temperature in (0, 0.0, 1e-30, 1e-3): assert torch.equal(pick_next(logits, temperature), best)
    assert torch.equal(pick_next(logits, 1.0, 1), best)


def test_bf16_logits_and_generators():
    logits = torch.randn(6, V, generator=torch.Generator().manual_seed(0))
    assert pick_next(logits.bfloat16(), 0).shape == (6,)
    a, b = (pick_next(logits, 1.0, 5, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(a, b)


@pytest.mark.parametrize("temperature, top_k", [(-1, None), (1, -2), (math.nan, None)])
def test_negative_knobs_are_refused(temperature, top_k):
    with pytest.raises(UserError, match="negative"): pick_next(torch.zeros(1, 4), temperature, top_k)


def test_pad_right():
    assert pad_right([[1, 2], [3], [4, 5, 6]]).tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6]]


def test_greedy_equals_one_row_at_a_time_by_hand(model):
    prompts = [[1], [2, 3, 4, 5, 6], [7, 8]]
    expected = []
    for p in prompts:
        row = list(p)
        for _ in range(9): row.append(model(torch.tensor([row]))[0, -1].argmax().item())
        expected.append(row[len(p):])
    got = make_sampler(model, [])(prompts, max_new_tokens=9, temperature=0)
    assert [s.tokens for s in got] == expected and all(s.sampled == [True] * 9 for s in got)


def test_a_stop_token_is_kept_and_ends_its_row_only(model):
    free = make_sampler(model, [])([[1], [2]], max_new_tokens=30, seed=5)
    stop = free[0].tokens[4]
    got = make_sampler(model, [stop])([[1], [2]], max_new_tokens=30, seed=5)
    at = free[0].tokens.index(stop)
    assert got[0].tokens == free[0].tokens[:at + 1]
    end = free[1].tokens.index(stop) + 1 if stop in free[1].tokens else 30
    assert got[1].tokens == free[1].tokens[:end]


def test_rows_have_their_own_luck_from_the_first_token_on(model):
    "One first token for all samples of a prompt once cost diversity."
    same = make_sampler(model, [])([[3]] * 64, max_new_tokens=2, seed=0)
    assert len({s.tokens[0] for s in same}) > 10


def test_neighbours_do_not_matter_and_seeds_do(model):
    sampler = make_sampler(model, [])
    alone = sampler([[3, 4]], max_new_tokens=12, seed=9)
    crowd = sampler([[3, 4], [1], [5] * 20], max_new_tokens=12, seed=9)
    assert alone[0] == crowd[0] and sampler([[3, 4]], max_new_tokens=12, seed=9) == alone
    others = [sampler([[3, 4]], max_new_tokens=12, seed=s)[0].tokens for s in (-9, 8, 10, 2**40)]
    assert len({tuple(t) for t in [alone[0].tokens, *others]}) == 5       # -9 and 9 are different seeds


def test_forced_tokens_are_free_marked_and_read_by_the_model(model):
    def tool(row): return [40, 41] if len(row) == 3 else None
    got, = make_sampler(model, [])([[1, 2]], max_new_tokens=4, temperature=0, tool=tool)
    assert got.sampled == [True, False, False, True, True, True] and got.tokens[1:3] == [40, 41]
    next_one = model(torch.tensor([[1, 2, *got.tokens[:3]]]))[0, -1].argmax().item()
    assert got.tokens[3] == next_one


def test_draws_keep_their_digits_in_bf16(monkeypatch, model):
    "Rounded to bf16, one draw in 512 would become 1 and take the last token."
    from nanochat import sample
    seen = []
    monkeypatch.setattr(sample, "pick", lambda logits, u, *rest: (seen.append(u), pick(logits, u, *rest))[1])
    monkeypatch.setattr(model, "compute_dtype", torch.bfloat16)
    make_sampler(model, stop=[])([[1]] * 300, max_new_tokens=1, seed=3)
    wanted = Rows([[1]] * 300, frozenset(), 1, seed=3).uniforms(list(range(300)))
    torch.testing.assert_close(seen[0].double(), wanted, rtol=0, atol=1e-7)


def test_forced_tokens_use_no_luck(model):
    "The k-th sampled token draws the k-th number, forced tokens or not."
    rows = Rows([[1]], frozenset(), 3, seed=4, tool=lambda row: [9, 9] if len(row) == 2 else None)
    first = rows.uniforms([0]).item()
    rows.push({0: 5})
    seconds = set()
    while rows.forced[0]:
        seconds.add(rows.uniforms([0]).item())
        rows.push({0: 6})
    assert seconds == {rows.uniforms([0]).item()} and first not in seconds


def test_the_tool_sees_the_row_after_each_sampled_token_and_not_after_the_end():
    seen = []
    rows = Rows([[1, 2]], frozenset({0}), 9, tool=lambda row: seen.append(list(row)) or ([7] if row[-1] == 5 else []))
    for token in (4, 5, 6, 3, 0): rows.push({0: token})       # the 6 is replaced by the forced 7
    assert seen == [[1, 2, 4], [1, 2, 4, 5], [1, 2, 4, 5, 7, 3]] and rows.live == []
    assert rows.samples() == [Sample([4, 5, 7, 3, 0], [True, True, False, True, True])]


def test_a_forced_stop_token_does_not_end_a_row():
    rows = Rows([[1]], frozenset({0}), 3, tool=lambda row: [0] if row[-1] == 5 else None)
    rows.push({0: 5}), rows.push({0: 6}), rows.push({0: 8})
    assert rows.live == [0] and rows.tokens == [[1, 5, 0, 8]]


def test_edges(model):
    sampler = make_sampler(model, [])
    assert sampler([], max_new_tokens=5) == []
    assert sampler([[1]], max_new_tokens=0) == [Sample([], [])]
    with pytest.raises(UserError, match="empty"): sampler([[1], []], max_new_tokens=5)
    with pytest.raises(UserError, match="longer than 320"): sampler([[1] * 318], max_new_tokens=5)


def test_prompts_are_not_changed(model):
    prompts = [[1, 2], [3]]
    make_sampler(model, [])(prompts, max_new_tokens=3)
    assert prompts == [[1, 2], [3]]


@pytest.mark.parametrize("temperature, top_k", [(0, None), (1.0, None), (1.0, 3), (0.7, 0)])
def test_logits_that_are_not_numbers_are_named(temperature, top_k):
    "A damaged model gave an index outside the vocabulary, or quietly the first token."
    logits = torch.zeros(3, 9)
    logits[1, 4] = math.nan
    with pytest.raises(UserError, match="not a finite number"): pick_next(logits, temperature, top_k)


@pytest.mark.parametrize("bad", [math.inf, -math.inf])
def test_rows_without_a_finite_peak_are_named(bad):
    "They gave an index outside the vocabulary."
    logits = torch.zeros(2, 9)
    logits[1, 4] = bad
    if bad < 0: logits[1] = bad
    with pytest.raises(UserError, match="not a finite number"): pick(logits, torch.full((2,), 0.5), 1.0)


@pytest.mark.parametrize("temperature", [1e-300, 1e-46, 1e-40, 1e-31, 1e-29])
def test_a_tiny_temperature_is_greedy(temperature):
    "1 / 1e-46 is infinite in fp32, and the index was outside the vocabulary."
    assert pick(torch.tensor([[3.0, 2.5, 1.0], [0.0, 1.0, 4.0]]), torch.tensor([0.5, 0.99]), temperature).tolist() == [0, 2]


def test_draws_equal_those_of_gumbel_and_of_multinomial():
    "Two methods that share nothing with ours; 100,000 draws, five standard errors."
    n, g = 100_000, torch.Generator().manual_seed(0)
    logits = torch.randn(8, generator=g) * 2
    ours = pick(logits.expand(n, 8), torch.rand(n, generator=g), 0.8)
    gumbel = -(-torch.rand(n, 8, generator=g).clamp(min=1e-30).log()).log()
    others = (logits / 0.8 + gumbel).argmax(-1), torch.multinomial((logits / 0.8).softmax(-1), n, replacement=True, generator=g)
    for theirs in others:
        assert (ours.bincount(minlength=8) - theirs.bincount(minlength=8)).abs().max() < 5 * (0.5 * n) ** 0.5


def test_temperature_is_a_power_of_the_ratios_and_top_k_keeps_them():
    logits = torch.tensor([2.0, 1.0, 0.5, -3.0])
    def share(**how): return pick(logits.expand(200_000, 4), darts(200_000), **how).bincount(minlength=4) / 200_000
    p, half, kept = share(), share(temperature=0.5), share(top_k=2)
    assert (half[0] / half[1]).item() == pytest.approx((p[0] / p[1]).item() ** 2, rel=1e-3)
    assert (kept[0] / kept[1]).item() == pytest.approx((p[0] / p[1]).item(), rel=1e-3) and not kept[2:].any()


def test_rows_that_have_ended_cost_nothing(model):
    "Each forward pass holds live rows only: finished rows once kept computing to the end."
    seen = []
    hook = model.wte.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    free = make_sampler(model, [])([[1], [2], [3]], max_new_tokens=12, seed=5)
    stop = free[0].tokens[2]
    seen.clear()
    got = make_sampler(model, [stop])([[1], [2], [3]], max_new_tokens=12, seed=5)
    hook.remove()
    assert seen == [sum(len(s.tokens) > i for s in got) for i in range(max(len(s.tokens) for s in got))]
    assert seen[-1] < 3 and sum(seen) < 36


def test_the_naive_sampler_reads_the_text_again_for_every_token(model):
    seen = []
    hook = model.wte.register_forward_pre_hook(lambda module, args: seen.append(args[0].numel()))
    make_sampler(model, [])([[1] * 7], max_new_tokens=9)
    hook.remove()
    assert sum(seen) == 9 * 7 + 9 * 8 // 2


def test_a_short_row_is_continued_from_its_own_last_token(model):
    "Read at the last column, a short row would continue the filling."
    sampler = make_sampler(model, [])
    together = sampler([[7, 8, 9], [1] * 20], max_new_tokens=6, temperature=0)
    assert together[0] == sampler([[7, 8, 9]], max_new_tokens=6, temperature=0)[0]
    padded = pad_right([[7, 8, 9], [1] * 20])
    with torch.no_grad(): last_column = model(padded)[0, -1]
    assert (last_column - model(torch.tensor([[7, 8, 9]]))[0, -1]).abs().max() > 0.1
