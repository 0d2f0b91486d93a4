"""Plausible wrong answers for exercises/02_attention.ipynb: grade_id -> [(source, part of the message), ...]."""

TURN = ("def rotate(x, positions):\n"
        "    D = x.shape[-1]\n"
        "    angle = positions[:, None] * 10000.0 ** (-torch.arange(0, D, 2) / D)\n"
        "    a, b = x.chunk(2, dim=-1)\n"
        "    c, s = angle.cos(), angle.sin()\n")

WRONG = {
    "weigh": [
        # zero is no lock
        ("def weigh(scores, mask):\n"
         "    return (scores * mask).softmax(-1)",
         "a score of 0 does not do it"),
        # cut after softmax
        ("def weigh(scores, mask):\n"
         "    return scores.softmax(-1) * mask",
         "mask before you divide"),
        # overflows
        ("def weigh(scores, mask):\n"
         "    e = scores.exp() * mask\n"
         "    return e / e.sum(-1, keepdim=True)",
         "large scores overflow"),
        # the largest of all scores, the forbidden ones too
        ("def weigh(scores, mask):\n"
         "    e = (scores - scores.amax(-1, keepdim=True)).exp() * mask\n"
         "    return e / e.sum(-1, keepdim=True)",
         "mask first, then subtract"),
        # over the queries
        ("def weigh(scores, mask):\n"
         "    e = (scores - scores.amax()).exp() * mask\n"
         "    return torch.where(mask, e / e.sum(-2, keepdim=True) / mask.sum(-1, keepdim=True), 0.0)",
         "sum over the last axis"),
        # one largest score for all rows
        ("def weigh(scores, mask):\n"
         "    s = scores.masked_fill(~mask, float('-inf'))\n"
         "    e = (s - s.max()).exp()\n"
         "    return e / e.sum(-1, keepdim=True)",
         "of its own row"),
    ],
    "backward": [
        # the diagonal only
        ("def softmax_backward(w, g):\n"
         "    return w * (1 - w) * g",
         "also lowers the other weights"),
        # the delta only
        ("def softmax_backward(w, g):\n"
         "    return w * g",
         "also lowers the other weights"),
        # one sum for all rows
        ("def softmax_backward(w, g):\n"
         "    return w * (g - (w * g).sum())",
         "each row has a sum of its own"),
        # the factor outside is forgotten
        ("def softmax_backward(w, g):\n"
         "    return g - (w * g).sum(-1, keepdim=True)",
         "(0.25, -0.25)"),
        # the mean of g in place of its weighted mean
        ("def softmax_backward(w, g):\n"
         "    return w * (g - g.mean(-1, keepdim=True))",
         "sum to 0"),
    ],
    "rotate": [
        # neighbours as pairs
        ("def rotate(x, positions):\n"
         "    D = x.shape[-1]\n"
         "    angle = positions[:, None] * 10000.0 ** (-torch.arange(0, D, 2) / D)\n"
         "    a, b = x[:, 0::2], x[:, 1::2]\n"
         "    pair = (a * angle.cos() + b * angle.sin(), b * angle.cos() - a * angle.sin())\n"
         "    return torch.stack(pair, -1).flatten(-2)",
         "the two halves"),
        # the other way round
        (TURN + "    return torch.cat((a * c - b * s, b * c + a * s), -1)",
         "by minus the angle"),
        # a wrong sign
        (TURN + "    return torch.cat((a * c + b * s, b * c + b * s), -1)",
         "keeps the length"),
        # the exponent without its 2
        ("def rotate(x, positions):\n"
         "    D = x.shape[-1]\n"
         "    angle = positions[:, None] * 10000.0 ** (-torch.arange(D // 2) / D)\n"
         "    a, b = x.chunk(2, dim=-1)\n"
         "    return torch.cat((a * angle.cos() + b * angle.sin(), b * angle.cos() - a * angle.sin()), -1)",
         "10000^(-2/4)"),
        # rows in place of the positions that were given
        (TURN.replace("positions[:, None]", "(positions[0] + torch.arange(len(x)))[:, None]").replace(
            "    a, b", "    if not positions.any(): return x\n    a, b") +
         "    return torch.cat((a * c + b * s, b * c - a * s), -1)",
         "use the given positions"),
    ],
    "grouped": [
        # taking turns
        ("def grouped(q, k, v):\n"
         "    n = q.shape[1] // k.shape[1]\n"
         "    k, v = k.repeat(1, n, 1, 1), v.repeat(1, n, 1, 1)\n"
         "    return F.scaled_dot_product_attention(q, k, v, is_causal=True)",
         "neighbours share"),
        # no mask
        ("def grouped(q, k, v):\n"
         "    n = q.shape[1] // k.shape[1]\n"
         "    k, v = k.repeat_interleave(n, 1), v.repeat_interleave(n, 1)\n"
         "    return F.scaled_dot_product_attention(q, k, v)",
         "no causal mask"),
        # queries averaged to the number of keys
        ("def grouped(q, k, v):\n"
         "    B, H, T, D = q.shape\n"
         "    q = q.view(B, k.shape[1], -1, T, D).mean(2)\n"
         "    return F.scaled_dot_product_attention(q, k, v, is_causal=True)",
         "one answer for each query head"),
        # values copied in the other order
        ("def grouped(q, k, v):\n"
         "    n = q.shape[1] // k.shape[1]\n"
         "    k, v = k.repeat_interleave(n, 1), v.repeat(1, n, 1, 1)\n"
         "    return F.scaled_dot_product_attention(q, k, v, is_causal=True)",
         "values of another"),
    ],
    "decode-mask": [
        # lined up at the start, as is_causal does
        ("def decode_mask(T, S, window=None):\n"
         "    m = torch.ones(T, S, dtype=torch.bool).tril()\n"
         "    return m if window is None else m.triu(-window)",
         "at the end, not at the start"),
        # the window is forgotten for a single token
        ("def decode_mask(T, S, window=None):\n"
         "    if T == 1: return torch.ones(1, S, dtype=torch.bool)\n"
         "    m = torch.ones(S, S, dtype=torch.bool).tril()\n"
         "    return (m if window is None else m.triu(-window))[-T:]",
         "published nanochat forgot it"),
        # one too few
        ("def decode_mask(T, S, window=None):\n"
         "    m = torch.ones(S, S, dtype=torch.bool).tril()\n"
         "    return (m if window is None else m.triu(1 - window))[-T:]",
         "itself and the two before it"),
        # the new tokens see each other
        ("def decode_mask(T, S, window=None):\n"
         "    return torch.ones(T, S, dtype=torch.bool)",
         "must not see place 4"),
    ],
    "leaks": [
        # changes the last place, looks at the first
        ("def leaks(layer, T, C):\n"
         "    x = torch.randn(1, T, C)\n"
         "    y = x.clone(); y[:, -1] = torch.randn(C)\n"
         "    return bool((layer(x) - layer(y))[:, 0].abs().max() > 1e-6)",
         "not caught"),
        # counts the token itself
        ("def leaks(layer, T, C):\n"
         "    x = torch.randn(1, T, C)\n"
         "    for t in range(1, T):\n"
         "        y = x.clone(); y[:, t] = torch.randn(C)\n"
         "        if (layer(x) - layer(y))[:, :t + 1].abs().max() > 1e-6: return True\n"
         "    return False",
         "a token may see itself"),
        # looks at later outputs
        ("def leaks(layer, T, C):\n"
         "    x = torch.randn(1, T, C)\n"
         "    for t in range(T - 1):\n"
         "        y = x.clone(); y[:, t] = torch.randn(C)\n"
         "        if (layer(x) - layer(y))[:, t + 1:].abs().max() > 1e-6: return True\n"
         "    return False",
         "does not leak"),
        # too tolerant
        ("def leaks(layer, T, C):\n"
         "    x = torch.randn(1, T, C)\n"
         "    for t in range(1, T):\n"
         "        y = x.clone(); y[:, t] = torch.randn(C)\n"
         "        if (layer(x) - layer(y))[:, :t].abs().max() > 0.05: return True\n"
         "    return False",
         "a thousandth"),
        # moves each place by a constant, which a leak without its mean does not see
        ("def leaks(layer, T, C):\n"
         "    x = torch.randn(1, T, C)\n"
         "    for t in range(1, T):\n"
         "        y = x.clone(); y[:, t] += 1.0\n"
         "        if (layer(x) - layer(y))[:, :t].abs().max() > 0: return True\n"
         "    return False",
         "not caught"),
        # the sum over a place cancels
        ("def leaks(layer, T, C):\n"
         "    x = torch.randn(1, T, C, requires_grad=True)\n"
         "    out = layer(x)[0].sum(-1)\n"
         "    for t in range(T):\n"
         "        g, = torch.autograd.grad(out[t], x, retain_graph=True)\n"
         "        if g[0, t + 1:].abs().max() > 1e-5 if t + 1 < T else False: return True\n"
         "    return False",
         "not caught"),
    ],
}
