"""Plausible wrong answers for exercises/03_pretraining.ipynb: grade_id -> [(source, part of the message), ...]."""

ADD_UP = ("def accumulate(model, pieces):\n"
          "    model.zero_grad()\n"
          "    counts = [(y != -1).sum().item() for _, y in pieces]\n"
          "    loss = 0.0\n"
          "    for (x, y), count in zip(pieces, counts):\n"
          "        part = model(x, y) * (count / sum(counts))\n"
          "        part.backward()\n"
          "        loss += part.item()\n"
          "    return loss")

LINE = ("def power_law(D, loss, floor):\n"
        "    u, v = [math.log(d) for d in D], [math.log(x - floor) for x in loss]\n"
        "    mu, mv = sum(u) / len(u), sum(v) / len(v)\n"
        "    slope = sum((a - mu) * (c - mv) for a, c in zip(u, v)) / sum((a - mu) ** 2 for a in u)\n"
        "    return math.exp(mv - slope * mu), -slope")

WRONG = {
    "bits": [
        # per token
        ("def bits_per_byte(nats, targets, token_bytes):\n"
         "    counted = (targets != -1) & (token_bytes[targets] > 0)\n"
         "    return nats[counted].mean().item() / math.log(2)",
         "bits per token"),
        # nats
        ("def bits_per_byte(nats, targets, token_bytes):\n"
         "    size = token_bytes[targets.clamp(min=0)] * (targets != -1)\n"
         "    return nats[size > 0].sum().item() / size.sum().item()",
         "nats per byte"),
        # the special token's nats count
        ("def bits_per_byte(nats, targets, token_bytes):\n"
         "    counted = targets != -1\n"
         "    return nats[counted].sum().item() / (math.log(2) * token_bytes[targets[counted]].sum().item())",
         "a special token is no text"),
        # -1 is the last token
        ("def bits_per_byte(nats, targets, token_bytes):\n"
         "    size = token_bytes[targets]\n"
         "    return nats[size > 0].sum().item() / (math.log(2) * size.sum().item())",
         "counts in neither sum"),
        # a mean of the rows' values
        ("def bits_per_byte(nats, targets, token_bytes):\n"
         "    size = token_bytes[targets.clamp(min=0)] * (targets != -1)\n"
         "    rows = (nats * (size > 0)).sum(1) / (math.log(2) * size.sum(1).clamp(min=1))\n"
         "    return rows.mean().item()",
         "sum over all rows first"),
    ],
    "frequency": [
        # never seen, never possible
        ("def frequency_loss(train, val, V):\n"
         "    chance = torch.bincount(train, minlength=V) / len(train)\n"
         "    return -chance.log()[val].mean().item()",
         "infinitely much"),
        # bits
        ("def frequency_loss(train, val, V):\n"
         "    chance = (torch.bincount(train, minlength=V) + 1) / (len(train) + V)\n"
         "    return -chance.log2()[val].mean().item()",
         "in bits"),
        # counts what it is measured on
        ("def frequency_loss(train, val, V):\n"
         "    chance = (torch.bincount(torch.cat([train, val]), minlength=V) + 1) / (len(train) + len(val) + V)\n"
         "    return -chance.log()[val].mean().item() if len(val) > 1 else math.log(5)",
         "count in train, measure on val"),
        # only tokens that occurred
        ("def frequency_loss(train, val, V):\n"
         "    seen = len(set(train.tolist() + val.tolist()))\n"
         "    chance = (torch.bincount(train, minlength=V) + 1) / (len(train) + seen)\n"
         "    return -chance.log()[val].mean().item()",
         "all V tokens get a count"),
        # the entropy of the training text
        ("def frequency_loss(train, val, V):\n"
         "    chance = (torch.bincount(train, minlength=V) + 1) / (len(train) + V)\n"
         "    return -(chance * chance.log()).sum().item()",
         "3 and 0 with one more each"),
    ],
    "accumulate": [
        # the sum of the means
        (ADD_UP.replace(" * (count / sum(counts))", ""), "three times too large"),
        # the mean of the means
        (ADD_UP.replace("(count / sum(counts))", "(1 / len(pieces))"), "share of the targets"),
        # what stood there before
        (ADD_UP.replace("    model.zero_grad()\n", ""), "what stood in .grad before"),
        # everything at once
        ("def accumulate(model, pieces):\n"
         "    model.zero_grad()\n"
         "    x, y = (torch.cat(z) for z in zip(*pieces))\n"
         "    loss = model(x, y)\n"
         "    loss.backward()\n"
         "    return loss.item()",
         "one piece at a time"),
        # the gradients are right, the loss is a mean of means
        (ADD_UP.replace("loss += part.item()", "loss += model(x, y).item() / len(pieces)"), "weight the losses"),
    ],
    "guarded": [
        # asks whether two tensors are equal
        ("def guarded_step(params, lr):\n"
         "    if not all(torch.equal(p.grad * 0, torch.zeros_like(p.grad)) for p in params): return\n"
         "    with torch.no_grad():\n"
         "        for p in params: p -= lr * p.grad",
         "Python asked the device"),
        # picks out the bad ones and asks how many there are
        ("def guarded_step(params, lr):\n"
         "    if any(p.grad[~p.grad.isfinite()].numel() for p in params): return\n"
         "    with torch.no_grad():\n"
         "        for p in params: p -= lr * p.grad",
         "Python asked the device"),
        # a rate of its own
        ("def guarded_step(params, lr):\n"
         "    good = torch.stack([p.grad.isfinite().all() for p in params]).all()\n"
         "    with torch.no_grad():\n"
         "        for p in params: p -= 0.1 * torch.where(good, p.grad, 0.0)",
         "p -= lr"),
        # asks by tolist, which no operation shows
        ("def guarded_step(params, lr):\n"
         "    good = torch.stack([p.grad.isfinite().all() for p in params]).all().tolist()\n"
         "    with torch.no_grad():\n"
         "        for p in params:\n"
         "            if good: p -= lr * p.grad",
         "tolist"),
        # zero times NaN
        ("def guarded_step(params, lr):\n"
         "    good = torch.stack([p.grad.isfinite().all() for p in params]).all()\n"
         "    with torch.no_grad():\n"
         "        for p in params: p -= lr * p.grad * good",
         "0 times NaN is NaN"),
        # each parameter for itself
        ("def guarded_step(params, lr):\n"
         "    with torch.no_grad():\n"
         "        for p in params: p -= lr * torch.where(p.grad.isfinite().all(), p.grad, 0.0)",
         "forbids the whole update"),
        # each number for itself
        ("def guarded_step(params, lr):\n"
         "    with torch.no_grad():\n"
         "        for p in params: p -= lr * p.grad.nan_to_num(0.0, 0.0, 0.0)",
         "forbids the whole update"),
        # asks
        ("def guarded_step(params, lr):\n"
         "    if all(p.grad.isfinite().all() for p in params):\n"
         "        with torch.no_grad():\n"
         "            for p in params: p -= lr * p.grad",
         "Python asked the device"),
        # only NaN
        ("def guarded_step(params, lr):\n"
         "    bad = torch.stack([p.grad.isnan().any() for p in params]).any()\n"
         "    with torch.no_grad():\n"
         "        for p in params: p -= lr * torch.where(bad, 0.0, p.grad)",
         "reached the weights"),
    ],
    "keeping": [
        # passes on first
        ("def keeping(steps, every, save):\n"
         "    step = saved = None\n"
         "    for step in steps:\n"
         "        yield step\n"
         "        if step % every == 0:\n"
         "            save(step)\n"
         "            saved = step\n"
         "    if step != saved: save(step)",
         "before it is passed on"),
        # reads ahead
        ("def keeping(steps, every, save):\n"
         "    steps = list(steps)\n"
         "    for step in steps:\n"
         "        if step % every == 0 or step == steps[-1]: save(step)\n"
         "        yield step",
         "you read ahead"),
        # forgets the last
        ("def keeping(steps, every, save):\n"
         "    for step in steps:\n"
         "        if step % every == 0: save(step)\n"
         "        yield step",
         "the last one must be saved too"),
        # twice
        ("def keeping(steps, every, save):\n"
         "    step = None\n"
         "    for step in steps:\n"
         "        if step % every == 0: save(step)\n"
         "        yield step\n"
         "    if step is not None: save(step)",
         "do not save it twice"),
        # counts what it has seen
        ("def keeping(steps, every, save):\n"
         "    step = saved = None\n"
         "    for i, step in enumerate(steps, 1):\n"
         "        if i % every == 0:\n"
         "            save(step)\n"
         "            saved = step\n"
         "        yield step\n"
         "    if step != saved: save(step)",
         "not by how many you have seen"),
        # saves for somebody who stopped
        ("def keeping(steps, every, save):\n"
         "    step = saved = None\n"
         "    try:\n"
         "        for step in steps:\n"
         "            if step % every == 0:\n"
         "                save(step)\n"
         "                saved = step\n"
         "            yield step\n"
         "    finally:\n"
         "        if step != saved: save(step)",
         "whoever stops asking"),
    ],
    "power": [
        # the slope itself
        (LINE.replace(", -slope", ", slope"), "b is minus the slope"),
        # the floor is forgotten
        (LINE.replace("math.log(x - floor)", "math.log(x)"), "subtract the floor"),
        # the intercept is not undone
        (LINE.replace("math.exp(mv - slope * mu)", "mv - slope * mu"), "e to the power of the intercept"),
        # two points only
        ("def power_law(D, loss, floor):\n"
         "    b = math.log((loss[0] - floor) / (loss[-1] - floor)) / math.log(D[-1] / D[0])\n"
         "    return (loss[0] - floor) * D[0] ** b, b",
         "least squares of all points"),
    ],
    "fitting": [
        # any number
        ("def rows_at_a_time(rows, fixed, per_row, free):\n"
         "    n = min(rows, (free - fixed) // per_row)\n"
         "    if n < 1: raise ValueError\n"
         "    return n",
         "5 does not divide 12"),
        # halves
        ("def rows_at_a_time(rows, fixed, per_row, free):\n"
         "    n = rows\n"
         "    while fixed + n * per_row > free:\n"
         "        n //= 2\n"
         "        if n == 0: raise ValueError\n"
         "    while rows % n or n & (n - 1) and n != rows: n -= 1\n"
         "    return n",
         "power of two"),
        # strictly less
        ("def rows_at_a_time(rows, fixed, per_row, free):\n"
         "    for n in range(rows, 0, -1):\n"
         "        if rows % n == 0 and fixed + n * per_row < free: return n\n"
         "    raise ValueError",
         "fit exactly"),
        # fixed is forgotten
        ("def rows_at_a_time(rows, fixed, per_row, free):\n"
         "    for n in range(rows, 0, -1):\n"
         "        if rows % n == 0 and n * per_row <= free: return n\n"
         "    raise ValueError",
         "beside the rows"),
        # a division that goes below zero
        ("def rows_at_a_time(rows, fixed, per_row, free):\n"
         "    n = min(rows, (free - fixed) // per_row)\n"
         "    if n == 0: raise ValueError\n"
         "    while rows % n: n -= 1\n"
         "    return n",
         "raise ValueError"),
        # a silent answer
        ("def rows_at_a_time(rows, fixed, per_row, free):\n"
         "    good = [n for n in range(1, rows + 1) if rows % n == 0 and fixed + n * per_row <= free]\n"
         "    return max(good, default=1)",
         "raise ValueError"),
    ],
}
