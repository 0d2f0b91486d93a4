"""Plausible wrong answers for exercises/04_muon.ipynb: grade_id -> [(source, part of the message), ...]."""

TURNED = ("def orthogonalise(X, coefficients):\n"
          "    tall = X.shape[-2] > X.shape[-1]\n"
          "    X = X.mT if tall else X\n")
ROUNDS = ("    for a, b, c in coefficients:\n"
          "        A = X @ X.mT\n"
          "        X = a * X + (b * A + c * A @ A) @ X\n")

WRONG = {
    "fair": [
        # the gradient, divided by its largest strength
        ("def fair_step(G):\n"
         "    S = torch.linalg.svdvals(G)\n"
         "    return G / S[0], S.sum()",
         "the soft direction counts"),
        # full matrices
        ("def fair_step(G):\n"
         "    U, S, Vt = torch.linalg.svd(G)\n"
         "    n = min(G.shape)\n"
         "    return U[:, :n] @ Vt[:n, :n], S.sum()",
         "full_matrices=False"),
        # V turned once too often
        ("def fair_step(G):\n"
         "    U, S, Vt = torch.linalg.svd(G, full_matrices=False)\n"
         "    return (U @ Vt.T if G.shape[0] >= G.shape[1] else U @ Vt), S.sum()",
         "svd returns V transposed already"),
        # the length in place of the sum
        ("def fair_step(G):\n"
         "    U, S, Vt = torch.linalg.svd(G, full_matrices=False)\n"
         "    return U @ Vt, G.norm()",
         "of all strengths"),
    ],
    "polish": [
        ("def polish():\n    return 1.5, -0.5, 0.0", "flat, but curved"),
        ("def polish():\n    return 3.4445, -4.7750, 2.0315", "1 must stay 1"),
        ("def polish():\n    return 15 / 8, -5 / 8, -2 / 8", "the slope a + 3b + 5c"),
    ],
    "orthogonalise": [
        # one norm for all
        (TURNED + "    X = X / (X.norm() + 1e-7)\n" + ROUNDS + "    return X.mT if tall else X",
         "divided by its own length"),
        # turned and left so
        (TURNED + "    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)\n" + ROUNDS + "    return X",
         "turn back at the end"),
        # the larger side
        ("def orthogonalise(X, coefficients):\n"
         "    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)\n" + ROUNDS + "    return X",
         "turn tall matrices first"),
        # zero over zero
        (TURNED + "    X = X / X.norm(dim=(-2, -1), keepdim=True)\n" + ROUNDS + "    return X.mT if tall else X",
         "a matrix of zeros must stay zero"),
        # in place
        ("def orthogonalise(X, coefficients):\n"
         "    X /= X.norm(dim=(-2, -1), keepdim=True) + 1e-7\n" + ROUNDS + "    return X",
         "do not divide it in place"),
        # one power too few
        (TURNED + "    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)\n"
         "    for a, b, c in coefficients:\n"
         "        A = X @ X.mT\n"
         "        X = a * X + (b * A + c * A) @ X\n"
         "    return X.mT if tall else X",
         "the powers of the strengths are 1, 3, 5"),
    ],
    "step": [
        # a new tensor
        ("def muon_step(W, G, M, lr, mu):\n"
         "    M = mu * M + (1 - mu) * G\n"
         "    W.sub_(lr * fair_step((1 - mu) * G + mu * M)[0])",
         "the caller's M must change"),
        # no Nesterov
        ("def muon_step(W, G, M, lr, mu):\n"
         "    M.mul_(mu).add_((1 - mu) * G)\n"
         "    W.sub_(lr * max(1, W.shape[0] / W.shape[1]) ** 0.5 * fair_step(M)[0])",
         "momentum without Nesterov"),
        # the old momentum
        ("def muon_step(W, G, M, lr, mu):\n"
         "    D = (1 - mu) * G + mu * M\n"
         "    M.mul_(mu).add_((1 - mu) * G)\n"
         "    W.sub_(lr * max(1, W.shape[0] / W.shape[1]) ** 0.5 * fair_step(D)[0])",
         "into the new momentum"),
        # undamped momentum
        ("def muon_step(W, G, M, lr, mu):\n"
         "    M.mul_(mu).add_(G)\n"
         "    W.sub_(lr * max(1, W.shape[0] / W.shape[1]) ** 0.5 * fair_step(G + mu * M)[0])",
         "the momentum is 0.1"),
        # wide matrices scaled as well
        ("def muon_step(W, G, M, lr, mu):\n"
         "    M.mul_(mu).add_((1 - mu) * G)\n"
         "    W.sub_(lr * max(W.shape) ** 0.5 / min(W.shape) ** 0.5 * fair_step((1 - mu) * G + mu * M)[0])",
         "only tall matrices are scaled"),
        # uphill
        ("def muon_step(W, G, M, lr, mu):\n"
         "    M.mul_(mu).add_((1 - mu) * G)\n"
         "    W.add_(lr * max(1, W.shape[0] / W.shape[1]) ** 0.5 * fair_step((1 - mu) * G + mu * M)[0])",
         "downhill is minus"),
    ],
    "overhead": [
        # forward only
        ("def muon_overhead(depth, batch_tokens, rounds=5):\n"
         "    return rounds * 60 * 64 * depth / (24 * batch_tokens)",
         "2 forward, 4 backward"),
        # the larger side
        ("def muon_overhead(depth, batch_tokens, rounds=5):\n"
         "    return rounds * (24 + 2 * (64 + 128)) * 64 * depth / (72 * batch_tokens)",
         "n is the smaller side"),
        # all blocks above, one below
        ("def muon_overhead(depth, batch_tokens, rounds=5):\n"
         "    return depth * rounds * 60 * 64 * depth / (72 * batch_tokens)",
         "both sides count all blocks"),
        # all matrices taken for square
        ("def muon_overhead(depth, batch_tokens, rounds=5):\n"
         "    return rounds * 64 * depth / batch_tokens",
         "two of C by 4C"),
        # the batch forgotten
        ("def muon_overhead(depth, batch_tokens, rounds=5):\n"
         "    return rounds * 60 * 64 * depth / 72",
         "does not see the batch"),
    ],
    "cautious": [
        ("def cautious(W, move, lr, decay):\n"
         "    return W - lr * move - lr * decay * W",
         "this decays everywhere"),
        ("def cautious(W, move, lr, decay):\n"
         "    return W - lr * move - lr * decay * W * (move * W < 0)",
         "the other way round"),
        ("def cautious(W, move, lr, decay):\n"
         "    return W - lr * move - lr * decay * W * (move * W > 0)",
         "where the move is zero"),
        # the weights after the step
        ("def cautious(W, move, lr, decay):\n"
         "    W = W - lr * move\n"
         "    return W - lr * decay * W * (move * W >= 0)",
         "give 0.3, -1.5, 1.5, -0.3"),
        # in place
        ("def cautious(W, move, lr, decay):\n"
         "    W -= lr * (move + decay * W * (move * W >= 0))\n"
         "    return W",
         "leave the old ones alone"),
    ],
}
