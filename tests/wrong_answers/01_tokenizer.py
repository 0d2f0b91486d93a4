"""Plausible wrong answers for exercises/01_tokenizer.ipynb: grade_id -> [(source, part of the message), ...]."""

WRONG = {
    "pair-counts": [
        ("def pair_counts(ids):\n    return {pair: 1 for pair in zip(ids, ids[1:])}",
         "the pairs (1, 2) twice"),
        # pairs without overlap: symbols two by two
        ("from collections import Counter\n"
         "def pair_counts(ids):\n    return dict(Counter(zip(ids[::2], ids[1::2])))",
         "the pairs (1, 2) twice"),
        # the last pair is forgotten
        ("from collections import Counter\n"
         "def pair_counts(ids):\n"
         "    return dict(Counter((ids[i], ids[i + 1]) for i in range(len(ids) - 2)))",
         "neighbours, in their order"),
        # a run counts once per merge that fits, not once per window
        ("def pair_counts(ids):\n"
         "    counts, i = {}, 0\n"
         "    while i < len(ids) - 1:\n"
         "        pair = (ids[i], ids[i + 1])\n"
         "        counts[pair] = counts.get(pair, 0) + 1\n"
         "        i += 2 if ids[i:i + 3] == [ids[i]] * 3 else 1\n"
         "    return counts",
         "overlapping pairs all count"),
        # breaks on short lists
        ("from collections import Counter\n"
         "def pair_counts(ids):\n"
         "    counts = Counter(zip(ids, ids[1:]))\n"
         "    return dict(counts) or {(ids[0], None): 0} if ids else None",
         "has no pair"),
    ],
    "merge": [
        # the end of the list is not looked at
        ("def merge_pair(ids, pair, new):\n"
         "    out, i = [], 0\n"
         "    while i < len(ids) - 1:\n"
         "        hit = (ids[i], ids[i + 1]) == pair\n"
         "        out.append(new if hit else ids[i])\n"
         "        i += 2 if hit else 1\n"
         "    return out",
         "the last symbol has to come along"),
        # only the first occurrence
        ("def merge_pair(ids, pair, new):\n"
         "    for i in range(len(ids) - 1):\n"
         "        if (ids[i], ids[i + 1]) == pair: return ids[:i] + [new] + ids[i + 2:]\n"
         "    return list(ids)",
         "every occurrence"),
        # does not jump over the second symbol
        ("def merge_pair(ids, pair, new):\n"
         "    out = []\n"
         "    for i, symbol in enumerate(ids):\n"
         "        if i + 1 < len(ids) and (symbol, ids[i + 1]) == pair: out.append(new)\n"
         "        elif i and (ids[i - 1], symbol) == pair: pass\n"
         "        else: out.append(symbol)\n"
         "    return out",
         "jump over both symbols"),
        # from the right
        ("def merge_pair(ids, pair, new):\n"
         "    out, i = [], len(ids)\n"
         "    while i > 0:\n"
         "        hit = i > 1 and (ids[i - 2], ids[i - 1]) == pair\n"
         "        out.insert(0, new if hit else ids[i - 1])\n"
         "        i -= 2 if hit else 1\n"
         "    return out",
         "from left to right"),
        # in place
        ("def merge_pair(ids, pair, new):\n"
         "    i = 0\n"
         "    while i < len(ids) - 1:\n"
         "        if (ids[i], ids[i + 1]) == pair: ids[i:i + 2] = [new]\n"
         "        i += 1\n"
         "    return ids",
         "changed its argument"),
    ],
    "train": [
        # the first pair seen wins a tie
        ("def train(ids, n):\n"
         "    merges = []\n"
         "    while len(merges) < n and (counts := pair_counts(ids)):\n"
         "        best = max(counts, key=counts.get)\n"
         "        ids = merge_pair(ids, best, 256 + len(merges))\n"
         "        merges.append(best)\n"
         "    return merges",
         "take the smaller pair"),
        # all merges from one count
        ("def train(ids, n):\n"
         "    counts = pair_counts(ids)\n"
         "    return sorted(counts, key=lambda pair: (-counts[pair], pair))[:n]",
         "has to see the first one's new symbol"),
        # does not stop
        ("def train(ids, n):\n"
         "    merges = []\n"
         "    for i in range(n):\n"
         "        counts = pair_counts(ids)\n"
         "        best = min(counts, key=lambda p: (-counts[p], p)) if counts else (0, 0)\n"
         "        ids = merge_pair(ids, best, 256 + i)\n"
         "        merges.append(best)\n"
         "    return merges",
         "stop when no pair is left"),
    ],
    "user-turn": [
        # one long string, specials allowed
        ("def user_turn(tokenizer, text):\n"
         "    whole = f'<|bos|><|user_start|>{text}<|user_end|>'\n"
         "    return tokenizer._encoding.encode(whole, allowed_special='all')",
         "typed text became a control token"),
        # one long string, specials as text
        ("def user_turn(tokenizer, text):\n"
         "    return tokenizer.encode(f'<|bos|><|user_start|>{text}<|user_end|>')",
         "starts with <|bos|>"),
        # forgets bos
        ("def user_turn(tokenizer, text):\n"
         "    return [tokenizer.user_start, *tokenizer.encode(text), tokenizer.user_end]",
         "starts with <|bos|>"),
        # filters what was typed
        ("def user_turn(tokenizer, text):\n"
         "    for name in SPECIALS: text = text.replace(name, '')\n"
         "    return [tokenizer.bos, tokenizer.user_start, *tokenizer.encode(text), tokenizer.user_end]",
         "must come back whole"),
    ],
    "loss-mask": [
        # the marker that opens the turn is supervised
        ("def loss_mask(ids, tokenizer):\n"
         "    mask, writing = [], 0\n"
         "    for i in ids:\n"
         "        if i == tokenizer.assistant_start: writing = 1\n"
         "        if i == tokenizer.output_start: writing = 0\n"
         "        mask.append(writing)\n"
         "        if i == tokenizer.output_end: writing = 1\n"
         "        if i == tokenizer.assistant_end: writing = 0\n"
         "    return mask",
         "<|assistant_start|> must be 0"),
        # the model never learns to stop
        ("def loss_mask(ids, tokenizer):\n"
         "    mask, writing = [], 0\n"
         "    for i in ids:\n"
         "        if i in (tokenizer.output_start, tokenizer.assistant_end): writing = 0\n"
         "        mask.append(writing)\n"
         "        if i in (tokenizer.assistant_start, tokenizer.output_end): writing = 1\n"
         "    return mask",
         "<|assistant_end|> must be 1"),
        # the tool's output is supervised
        ("def loss_mask(ids, tokenizer):\n"
         "    mask, writing = [], 0\n"
         "    for i in ids:\n"
         "        mask.append(writing)\n"
         "        if i == tokenizer.assistant_start: writing = 1\n"
         "        if i == tokenizer.assistant_end: writing = 0\n"
         "    return mask",
         "the output of the tool"),
        # shifted by one, as if the mask were of the targets
        ("def loss_mask(ids, tokenizer):\n"
         "    mask, writing = [], 0\n"
         "    for i in ids:\n"
         "        if i == tokenizer.assistant_end: writing = 0\n"
         "        mask.append(writing)\n"
         "        if i == tokenizer.assistant_start: writing = 1\n"
         "    return mask[1:]",
         "as long as the ids"),
    ],
    "token-bytes": [
        # through a string: a cut character becomes U+FFFD, three bytes
        ("def bytes_per_token(tokenizer):\n"
         "    n = tokenizer.vocab_size - len(SPECIALS)\n"
         "    return [len(tokenizer.decode([i]).encode()) for i in range(n)] + [0] * len(SPECIALS)",
         "measure the raw bytes"),
        # characters
        ("def bytes_per_token(tokenizer):\n"
         "    lengths = [0] * tokenizer.vocab_size\n"
         "    for token, i in tokenizer.ranks.items():\n"
         "        lengths[i] = len(token.decode(errors='replace'))\n"
         "    return lengths",
         "count bytes, not characters"),
        # specials count as their spelling
        ("def bytes_per_token(tokenizer):\n"
         "    lengths = [len(token) for token in tokenizer.ranks]\n"
         "    return lengths + [len(name) for name in SPECIALS]",
         "special tokens count 0 bytes"),
        ("def bytes_per_token(tokenizer):\n"
         "    return [len(token) for token in tokenizer.ranks]",
         "specials included"),
    ],
}
