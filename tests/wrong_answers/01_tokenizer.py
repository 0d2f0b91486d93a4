"""Plausible wrong answers for exercises/01_tokenizer.ipynb: grade_id -> [(source, part of the message), ...]."""

WRONG = {
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
        # never more than two
        ("from collections import Counter\n"
         "def train(ids, n):\n"
         "    merges = []\n"
         "    while len(merges) < min(n, 2) and (counts := Counter(zip(ids, ids[1:]))):\n"
         "        best = min(counts, key=lambda p: (-counts[p], p))\n"
         "        ids = merge_pair(ids, best, 256 + len(merges))\n"
         "        merges.append(best)\n"
         "    return merges",
         "merges of 8 were made"),
        # the first pair seen wins a tie
        ("from collections import Counter\n"
         "def train(ids, n):\n"
         "    merges = []\n"
         "    while len(merges) < n and (counts := Counter(zip(ids, ids[1:]))):\n"
         "        best = max(counts, key=counts.get)\n"
         "        ids = merge_pair(ids, best, 256 + len(merges))\n"
         "        merges.append(best)\n"
         "    return merges",
         "the smaller pair"),
        # the larger pair wins a tie
        ("from collections import Counter\n"
         "def train(ids, n):\n"
         "    merges = []\n"
         "    while len(merges) < n and (counts := Counter(zip(ids, ids[1:]))):\n"
         "        best = max(counts, key=lambda p: (counts[p], p))\n"
         "        ids = merge_pair(ids, best, 256 + len(merges))\n"
         "        merges.append(best)\n"
         "    return merges",
         "the smaller pair"),
        # all merges from one count
        ("from collections import Counter\n"
         "def train(ids, n):\n"
         "    counts = Counter(zip(ids, ids[1:]))\n"
         "    return sorted(counts, key=lambda pair: (-counts[pair], pair))[:n]",
         "has to see the first one's new symbol"),
        # does not stop
        ("from collections import Counter\n"
         "def train(ids, n):\n"
         "    merges = []\n"
         "    for i in range(n):\n"
         "        counts = Counter(zip(ids, ids[1:]))\n"
         "        best = min(counts, key=lambda p: (-counts[p], p)) if counts else (0, 0)\n"
         "        ids = merge_pair(ids, best, 256 + i)\n"
         "        merges.append(best)\n"
         "    return merges",
         "stop when no pair is left"),
        # pairs without overlap, as a merge would use them
        ("from collections import Counter\n"
         "def train(ids, n):\n"
         "    merges = []\n"
         "    while len(merges) < n and (pairs := sorted(set(zip(ids, ids[1:])))):\n"
         "        best = max(pairs, key=lambda p: merge_pair(ids, p, -1).count(-1))\n"
         "        ids = merge_pair(ids, best, 256 + len(merges))\n"
         "        merges.append(best)\n"
         "    return merges",
         "overlapping pairs all count"),
    ],
    "split": [
        # from the left, as GPT-4 does
        ("def from_the_right():\n"
         "    return SPLIT_PATTERN.replace(r'\\p{N}{1,2}', r'\\p{N}{1,3}')",
         "counted from the right"),
        # looks ahead for threes, but not for the end of the number
        ("def from_the_right():\n"
         "    return SPLIT_PATTERN.replace(r'\\p{N}{1,2}', r'\\p{N}{1,3}(?=(?:\\p{N}{3})*)')",
         "counted from the right"),
        # looks for one group of three only
        ("def from_the_right():\n"
         "    return SPLIT_PATTERN.replace(r'\\p{N}{1,2}', r'\\p{N}{1,3}(?=(?:\\p{N}{3})?(?!\\p{N}))')",
         "up to the end of the number"),
        # threes up to the end of the text
        ("def from_the_right():\n"
         "    return SPLIT_PATTERN.replace(r'\\p{N}{1,2}', r'\\p{N}{1,3}(?=(?:\\p{N}{3})*$)|\\p{N}{1,3}')",
         "where no digit follows"),
        # digits only: the rest of the text is lost
        ("def from_the_right():\n"
         "    return r'\\p{N}{1,3}(?=(?:\\p{N}{3})*(?!\\p{N}))'",
         "keep the others"),
        # a simpler pattern for the rest
        ("def from_the_right():\n"
         "    return r'\\p{N}{1,3}(?=(?:\\p{N}{3})*(?!\\p{N}))|[^\\p{N}]+'",
         "keep the others"),
        # the ten digits only: other numbers are lost
        ("def from_the_right():\n"
         "    return SPLIT_PATTERN.replace(r'\\p{N}{1,2}', r'\\d{1,3}(?=(?:\\d{3})*(?!\\d))')",
         "no character may be lost"),
    ],
    "fallback": [
        # the longest token that fits, from the left
        ("def encode_piece(piece, ranks):\n"
         "    ids = []\n"
         "    while piece:\n"
         "        n = next(n for n in range(len(piece), 0, -1) if piece[:n] in ranks)\n"
         "        ids.append(ranks[piece[:n]])\n"
         "        piece = piece[n:]\n"
         "    return ids",
         "not the leftmost and not the longest"),
        # the leftmost pair that is a token
        ("def encode_piece(piece, ranks):\n"
         "    parts, i = [bytes([b]) for b in piece], 0\n"
         "    while i < len(parts) - 1:\n"
         "        if parts[i] + parts[i + 1] in ranks:\n"
         "            parts[i:i + 2] = [parts[i] + parts[i + 1]]\n"
         "            i = 0\n"
         "        else: i += 1\n"
         "    return [ranks[p] for p in parts]",
         "the lowest id first"),
        # what is no ASCII is left out
        ("def encode_piece(piece, ranks):\n"
         "    return [ranks[bytes([b])] for b in piece if b < 128]",
         "stays bytes"),
        # never joins
        ("def encode_piece(piece, ranks):\n"
         "    return [ranks[bytes([b])] for b in piece]",
         "the lowest id first"),
        # one merge of each pair, then it stops
        ("def encode_piece(piece, ranks):\n"
         "    parts = [bytes([b]) for b in piece]\n"
         "    joins = sorted((ranks[a + b], a, b) for a, b in set(zip(parts, parts[1:])) if a + b in ranks)\n"
         "    for _, a, b in joins:\n"
         "        out = []\n"
         "        for p in parts:\n"
         "            if out and out[-1] == a and p == b: out[-1] = a + b\n"
         "            else: out.append(p)\n"
         "        parts = out\n"
         "    return [ranks[p] for p in parts]",
         "a new token may join again"),
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
        # writing ends with the call, and only an output begins it again
        ("def loss_mask(ids, tokenizer):\n"
         "    mask, writing = [], 0\n"
         "    for i in ids:\n"
         "        if i == tokenizer.output_start: writing = 0\n"
         "        mask.append(writing)\n"
         "        if i in (tokenizer.assistant_start, tokenizer.output_end): writing = 1\n"
         "        if i in (tokenizer.assistant_end, tokenizer.python_end): writing = 0\n"
         "    return mask",
         "<|assistant_end|> must be 1"),
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
