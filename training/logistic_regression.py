"""Many logistic regressions on the same rows at once.

Nested cross-validation as the skip-thoughts paper does it (10 x 10 folds, 9 values of C) fits 910 classifiers to the
same vectors, which takes hours one at a time. They differ only in which rows count and in C, so here they share every
matrix product. The objective is LIBLINEAR's, which scikit-learn's `LogisticRegression` used when
the paper was written: the intercept is a weight like any other and is penalised too,

    min_w  1/2 |w|^2 + C sum_i log(1 + exp(-y_i w . [x_i ; 1]))        y_i = +-1

solved by L-BFGS in the eigenbasis of the rows, where the curvature is nearly diagonal and known beforehand. A rotation
changes no optimum: the solution on the training rows is the same, whatever rows the basis was made from.

Shapes: N rows, D features, R rank of the rows, P problems.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812  (the field's usual name)

TOLERANCE = 1e-4  # of the gradient in the metric of the curvature, relative to its size at w = 0
MAXIMUM_STEPS = 100
MEMORY = 8
VALUES_AT_ONCE = 12_000_000  # N x P of one block of problems: about 50 MB a working array


def rotate(features: np.ndarray) -> torch.Tensor:
    """Rows [N, D] with a 1 appended, in the eigenbasis of their second moments: float32 [N, R], R <= min(N, D + 1).

    Inner products of rows, and so every penalised linear classifier, stay the same.
    """
    rows = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float64))
    rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)  # [N, D + 1]
    wide = rows.size(1) > rows.size(0)
    values, basis = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    keep = values > values[-1] * 1e-12
    rotated = basis[:, keep] * values[keep].sqrt() if wide else rows @ basis[:, keep]
    return rotated.float()


def fit_margins(rotated: torch.Tensor, labels: np.ndarray, train: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Solve P problems and give their margins w . [x ; 1] on every row, trained on or not.

    Args:
        rotated: `rotate(features)` [N, R].
        labels: True for the positive class [N, P].
        train: True where a row counts for a problem [N, P].
        strength: C of each problem [P].

    Returns:
        float32 [N, P].
    """
    count, problems = labels.shape
    block = max(1, VALUES_AT_ONCE // count)
    margins = np.empty((count, problems), dtype=np.float32)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = rotated.to(device)
    for start in range(0, problems, block):
        part = slice(start, start + block)
        signs = torch.from_numpy(np.where(labels[:, part], 1, -1).astype(np.float32)).to(device)
        weights = torch.from_numpy((train[:, part] * strength[part]).astype(np.float32)).to(device)
        margins[:, part] = _solve(rows, signs, weights).cpu().numpy()
    return margins


@torch.no_grad()
def _solve(rows: torch.Tensor, signs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """L-BFGS on all columns at once: rows [N, R], signs and weights (C where a row counts, else 0) [N, P] -> [N, P]."""
    energy = rows.square().sum(0)  # [R], eigenvalues
    share = weights.sum(0) / len(rows)  # [P], C times the share of rows that count
    scale = 1 / (1 + 0.1 * share * energy.unsqueeze(1))  # [R, P], inverse curvature at a typical p (1 - p)
    w = rows.new_zeros(rows.size(1), signs.size(1))  # [R, P]
    z = rows.new_zeros(signs.shape)  # margins [N, P]
    gradient = _gradient(rows, signs, weights, z, w)
    loss = _loss(signs, weights, z, w)
    target = TOLERANCE * (gradient.square() * scale).sum(0).sqrt()  # [P]
    history: list[tuple[torch.Tensor, ...]] = []
    active = torch.arange(signs.size(1), device=rows.device)
    final = torch.empty_like(z)
    for _ in range(MAXIMUM_STEPS):
        direction = _direction(gradient, history, scale)
        ahead = rows @ direction  # [N, P]: the line is linear in the margins, so its search needs no further product
        slope = (direction * gradient).sum(0)
        step = _line_search(signs, weights, z, w, ahead, direction, loss, slope)
        w, z = w + step * direction, z + step * ahead
        before, gradient = gradient, _gradient(rows, signs, weights, z, w)
        loss = _loss(signs, weights, z, w)
        history = [*history, (step * direction, gradient - before)][-MEMORY:]
        going = ((gradient.square() * scale).sum(0).sqrt() > target) & (step > 0)
        if not going.all():
            final[:, active[~going]] = z[:, ~going]
            if not going.any():
                return final
            active, loss, target = active[going], loss[going], target[going]
            w, z, gradient, scale = w[:, going], z[:, going], gradient[:, going], scale[:, going]
            signs, weights = signs[:, going], weights[:, going]
            history = [(s[:, going], y[:, going]) for s, y in history]
    final[:, active] = z
    return final


def _loss(signs: torch.Tensor, weights: torch.Tensor, z: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Objective of each problem [P], summed in double precision."""
    data = (weights * F.softplus(-signs * z)).sum(0, dtype=torch.float64)
    return data + 0.5 * w.square().sum(0, dtype=torch.float64)


def _gradient(
    rows: torch.Tensor, signs: torch.Tensor, weights: torch.Tensor, z: torch.Tensor, w: torch.Tensor
) -> torch.Tensor:
    """Gradient of each problem [R, P]."""
    return w - rows.T @ (weights * signs * torch.sigmoid(-signs * z))


def _direction(gradient: torch.Tensor, history: list[tuple[torch.Tensor, ...]], scale: torch.Tensor) -> torch.Tensor:
    """Two-loop recursion (Nocedal and Wright, algorithm 7.4) for every column; `scale` is the first inverse Hessian."""
    q, taken = gradient.clone(), []
    for s, y in reversed(history):
        curvature = (s * y).sum(0)
        rho = torch.where(curvature > 0, 1 / curvature.clamp_min(1e-30), 0)
        alpha = rho * (s * q).sum(0)
        q -= alpha * y
        taken.append((alpha, rho))
    q *= scale
    if history:
        s, y = history[-1]
        gamma = (s * y).sum(0) / (scale * y * y).sum(0).clamp_min(1e-30)
        q *= torch.where(gamma > 0, gamma, 1)
    for (s, y), (alpha, rho) in zip(history, reversed(taken), strict=True):
        q += (alpha - rho * (y * q).sum(0)) * s
    return -q


def _line_search(
    signs: torch.Tensor,
    weights: torch.Tensor,
    z: torch.Tensor,
    w: torch.Tensor,
    ahead: torch.Tensor,
    direction: torch.Tensor,
    loss: torch.Tensor,
    slope: torch.Tensor,
) -> torch.Tensor:
    """Largest of 1, 1/2, 1/4 ... that lowers each loss enough (Armijo) [P]; 0 where none does: rounding is reached."""
    step = torch.zeros_like(slope)
    size = 1.0
    todo = torch.arange(len(slope), device=slope.device)
    for _ in range(12):
        tried = _loss(
            signs[:, todo], weights[:, todo], z[:, todo] + size * ahead[:, todo], w[:, todo] + size * direction[:, todo]
        )
        good = tried <= loss[todo] + 1e-4 * size * slope[todo]
        step[todo[good]] = size
        todo = todo[~good]
        if not len(todo):
            break
        size /= 2
    return step
