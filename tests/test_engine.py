"The cached engine: the same tokens as the naive sampler, and a cache that keeps its rows apart."
import random

import pytest
import torch

from nanochat.engine import Decoder, KVCache, decoding_model, make_engine, stream
from nanochat.gpt import GPT, config_for
from nanochat.sample import Rows, make_sampler
from nanochat.workshop import UserError

torch.set_num_threads(1)
V = 97
VARIANTS = {"plain": {}, "one key head": dict(kv_heads=1), "windows": dict(window=(5,)),
            "both": dict(kv_heads=2, window=(3, 9), head_dim=32)}


def lively(**kwargs):
    model = GPT(config_for(**(dict(depth=3, vocab_size=V, seq_len=32, head_dim=48) | kwargs)))
    g = torch.Generator().manual_seed(0)
    for p in model.parameters():
        if not p.any(): torch.nn.init.normal_(p, std=0.1, generator=g)
    return model


def prompts():
    r = random.Random(0)
    many = [[r.randrange(V) for _ in range(n)] for n in (1, 7, 3, 30, 12, 5)]
    return many + [many[1], many[3]]


def tool(row): return [1, 2, 3] if row[-1] % 5 == 0 else None


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("temperature, top_k", [(0, None), (1.0, None), (0.8, 10)])
def test_engine_equals_the_naive_sampler(name, temperature, top_k):
    model = lively(**VARIANTS[name])
    how = dict(max_new_tokens=20, temperature=temperature, top_k=top_k, seed=3, tool=tool)
    naive, cached = (make(model, [7, 8])(prompts(), **how) for make in (make_sampler, make_engine))
    assert naive == cached
    assert any(not all(s.sampled) for s in cached)           # tokens were forced


def test_rows_that_end_at_different_times():
    model, many = lively(), prompts()
    stop = list(range(0, V, 6))                               # a sixth of the tokens ends a row
    for seed in range(4):
        how = dict(max_new_tokens=30, seed=seed)
        naive, cached = (make(model, stop)(many, **how) for make in (make_sampler, make_engine))
        assert naive == cached and len({len(s.tokens) for s in cached}) > 2


def test_finished_rows_leave_the_batch_when_half_are_done():
    model = lively()
    rows = Rows([[1], [2], [3], [4, 5, 6]], frozenset({0}), 9)
    decoder, sizes = Decoder(model, rows), []
    with torch.inference_mode():
        for picked in ({0: 0, 1: 9, 2: 9, 3: 9}, {1: 0, 2: 9, 3: 9}, {2: 9, 3: 9}, {2: 0, 3: 9}, {3: 9}):
            logits = decoder.logits()
            sizes.append(decoder.cache.k.shape[1])
            rows.push(picked)
        last = decoder.logits()
    assert sizes == [4, 4, 2, 2, 1] and decoder.slots == [3]
    torch.testing.assert_close(last[0], model(torch.tensor([rows.tokens[3]]))[0, -1], rtol=1e-4, atol=1e-4)


def test_equal_prompts_are_read_once():
    model, read = lively(), []
    model.wte.register_forward_hook(lambda m, args, out: read.append(args[0].shape))
    make_engine(model, [])([[1, 2, 3]] * 8, max_new_tokens=3)
    assert [tuple(s) for s in read] == [(1, 3), (8, 1), (8, 1)]       # and the last token is never read


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("cuts", [(0, 12), (0, 1, 2, 3, 12), (0, 5, 6, 7, 8, 9, 10, 11, 12), (0, 4, 8, 12)])
def test_any_way_of_cutting_a_text_gives_the_same_logits(name, cuts):
    model = lively(**VARIANTS[name])
    idx = torch.randint(0, V, (2, 12), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        cache = KVCache(model.config, 2, room=1)                       # grows again and again
        got = torch.cat([model(idx[:, a:b], cache=cache) for a, b in zip(cuts, cuts[1:])], dim=1)
        torch.testing.assert_close(got, model(idx), rtol=1e-4, atol=1e-4)


def test_growth_copies_along_the_time_axis():
    cache = KVCache(lively().config, 3, room=5)
    for store in (cache.k, cache.v): store.copy_(torch.randn(store.shape, generator=torch.Generator().manual_seed(0)))
    k, v = cache.k.clone(), cache.v.clone()
    cache.reserve(6)
    assert cache.k.shape[3] >= 6 and torch.equal(cache.k[:, :, :, :5], k) and torch.equal(cache.v[:, :, :, :5], v)
    cache.reserve(2)
    assert cache.k.shape[3] >= 6


def test_select_may_repeat_reorder_and_drop():
    cache = KVCache(lively().config, 3, room=2)
    cache.k += torch.arange(3.0).view(1, 3, 1, 1, 1)
    cache.lengths = [5, 6, 7]
    cache.select([2, 0, 2])
    assert cache.lengths == [7, 5, 7] and cache.k[0, :, 0, 0, 0].tolist() == [2.0, 0.0, 2.0]


def test_filling_of_short_prompts_is_never_seen():
    "Poison the cache beyond each row's length: nothing may change."
    model = lively(kv_heads=1)
    with torch.inference_mode():
        cache = KVCache(model.config, 2, room=12)
        model(torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 0, 0, 0, 0]]), cache=cache)
        cache.trim([6, 2])
        cache.k[:, 1, :, 2:], cache.v[:, 1, :, 2:] = 1e4, -1e4
        got = model(torch.tensor([[9], [9]]), cache=cache)[:, 0]
        for row, text in enumerate(([1, 2, 3, 4, 5, 6, 9], [7, 8, 9])):
            torch.testing.assert_close(got[row], model(torch.tensor([text]))[0, -1], rtol=1e-4, atol=1e-4)


def test_the_text_may_fill_the_rotary_tables_and_not_one_token_more():
    model = lively(seq_len=4)                                          # tables of 40
    for make in (make_sampler, make_engine):
        assert len(make(model, [])([[1] * 35], max_new_tokens=6)[0].tokens) == 6      # the 41st is written, not read
        with pytest.raises(UserError, match="longer than 40"): make(model, [])([[1] * 35], max_new_tokens=7)
        with pytest.raises(UserError, match="longer than 40"): make(model, [])([[1] * 41], max_new_tokens=1)


def test_a_row_that_ends_at_the_end_of_the_tables_lets_the_others_go_on():
    model = lively(seq_len=4)                                          # tables of 40
    full, short = [1] * 40, [[2, 3], [4]]
    first = make_sampler(model, [])([full], max_new_tokens=1, temperature=0)[0].tokens[0]        # the 41st, which is not read
    prompts, how = [full, *short], dict(max_new_tokens=6, temperature=0)
    want = make_sampler(model, [first])(prompts, **how)
    assert len(want[0].tokens) == 1 and make_engine(model, [first])(prompts, **how) == want
    assert max(len(s.tokens) for s in want[1:]) > 2                    # else nothing went on


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_stream_equals_the_engine(temperature):
    model = lively()
    for seed, prompt in enumerate(prompts()[:4]):
        how = dict(max_new_tokens=15, temperature=temperature, seed=seed, tool=tool)
        sample, = make_engine(model, [7, 8])([prompt], **how)
        assert list(stream(model, prompt, stop=[7, 8], **how)) == list(zip(*sample))


def test_stream_is_lazy():
    model, read = lively(), []
    model.wte.register_forward_hook(lambda m, args, out: read.append(1))
    pieces = stream(model, [1, 2], stop=[], max_new_tokens=50)
    next(pieces), next(pieces)
    assert len(read) == 2
    pieces.close()


def test_bf16_decoding_uses_the_same_casts():
    model = lively()
    model.compute_dtype = torch.bfloat16
    idx = torch.randint(0, V, (2, 9), generator=torch.Generator().manual_seed(2))
    ready = decoding_model(model)
    with torch.inference_mode(): assert torch.equal(ready(idx), model(idx))
    assert ready.cos.dtype == torch.float32 and model.wte.weight.dtype == torch.float32
    samples = make_engine(model, [7])(prompts(), max_new_tokens=10, temperature=0)
    assert all(len(s.tokens) == 10 or s.tokens[-1] == 7 for s in samples)


def test_the_engine_sees_weights_as_they_are_now():
    "Reinforcement learning samples, updates and samples again."
    for dtype in (torch.float32, torch.bfloat16):
        model = lively()
        model.compute_dtype = dtype
        engine = make_engine(model, [])
        before = engine([[1, 2]], max_new_tokens=8, temperature=0)
        with torch.no_grad(): model.lm_head.weight.neg_()
        assert engine([[1, 2]], max_new_tokens=8, temperature=0) != before


def test_training_goes_on_after_decoding():
    model = lively()
    make_engine(model, [])([[1, 2]], max_new_tokens=4)
    idx = torch.randint(0, V, (2, 9))
    model(idx, idx).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_edges():
    engine = make_engine(lively(), [])
    assert engine([], max_new_tokens=5) == [] and engine([[1]], max_new_tokens=0)[0].tokens == []
    with pytest.raises(UserError, match="empty"): engine([[]], max_new_tokens=5)
