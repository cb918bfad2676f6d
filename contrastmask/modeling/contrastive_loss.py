"""
The pixel-level contrastive loss with shared queries (Sec. 3.3), and the ramp of its weight: pure
functions.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .layers import full_precision

LOSS_FORMS = ("released", "paper")

# Lengths below count as this. Shorter differences of features are rounding errors, whose directions
# would get gradients up to 1e12 with PyTorch's default.
_MIN_LENGTH = 1e-6


class ContrastiveTerms(NamedTuple):
    """The four terms of the loss, 0-dim float32 tensors; the loss is their sum."""

    foreground_easy: torch.Tensor
    foreground_hard: torch.Tensor
    background_easy: torch.Tensor
    background_hard: torch.Tensor


def query_sharing_loss(
    queries: torch.Tensor,
    keys: torch.Tensor,
    key_sets: torch.Tensor,
    *,
    temperature_easy: float,
    temperature_hard: float,
    form: str,
) -> ContrastiveTerms:
    """
    The four terms of the query-sharing contrastive loss (Eq. 3). The foreground query attracts
    positive and repels negative keys, the background query the reverse.

    Args:
        queries (Tensor): (2, D), the shared foreground and background query.
        keys (Tensor): (N, D), features of all sampled pixels of all RoIs.
        key_sets (Tensor): (N, 4) bool, membership of each key in the easy positive, easy negative,
            hard positive and hard negative set. A key may be in several sets.
        temperature_easy, temperature_hard (float): temperatures of the easy and hard terms.
        form (str): "paper" or "released", see ``MODEL.ROI_CONTRASTIVE_HEAD.LOSS_FORM``.

    Returns:
        ContrastiveTerms: all zero where a positive set is empty; gradients reach queries and keys.

    Raises:
        ValueError: for another `form`.
    """
    if form not in LOSS_FORMS:
        raise ValueError(f"unknown form {form!r} of the contrastive loss, choose from {LOSS_FORMS}")
    with full_precision(keys):
        queries, keys = queries.float(), keys.float()
        easy_positive, easy_negative, hard_positive, hard_negative = key_sets.unbind(dim=1)
        to_foreground, to_background = (_similarity(q, keys, form) for q in queries)
        easy, hard = temperature_easy, temperature_hard
        return ContrastiveTerms(
            _contrast(to_foreground, easy_positive, easy_negative, easy, form),
            _contrast(to_foreground, hard_positive, hard_negative, hard, form),
            _contrast(to_background, easy_negative, easy_positive, easy, form),
            _contrast(to_background, hard_negative, hard_positive, hard, form),
        )


def loss_ramp(
    iteration: int, *, max_iter: int, start: float, num_steps: int, full_step: int
) -> float:
    """
    Stepwise growing factor of the loss weight (authors' code: 0.25, 0.25, 0.5, 0.75, then 1 in
    steps of one twelfth of training). A function of the iteration alone, so a resumed run continues
    it.

    Args:
        iteration (int): current iteration, from 0.
        max_iter (int): iterations of the whole training.
        start (float): smallest factor.
        num_steps (int): number of equal steps training is cut into.
        full_step (int): step, counted from 0, from which on the factor is 1.

    Returns:
        float: factor between `start` and 1.

    Raises:
        ValueError: if a number is out of range.
    """
    if max_iter < 1 or num_steps < 1 or full_step < 1 or not 0 <= start <= 1:
        raise ValueError(
            "the ramp needs SOLVER.MAX_ITER, MODEL.ROI_CONTRASTIVE_HEAD.RAMP_STEPS and "
            "RAMP_FULL_STEP of at least 1 and RAMP_START between 0 and 1, not "
            f"{max_iter}, {num_steps}, {full_step} and {start}"
        )
    step = iteration * num_steps // max_iter
    return min(max(start, step / full_step), 1.0)


def _similarity(query, keys, form):
    """Cosine of a query (D,) with keys (N, D), or with keys relative to the query ("released")."""
    if form == "released":
        keys = keys - query
    return F.normalize(keys, dim=1, eps=_MIN_LENGTH) @ F.normalize(query, dim=0, eps=_MIN_LENGTH)


def _contrast(similarity, positive, negative, temperature, form):
    """Mean over the positive keys of the InfoNCE loss against all negative keys (Eq. 2)."""
    logits = similarity / temperature
    negatives = torch.where(negative, logits, -torch.inf)
    # The appended value keeps the sum finite where there is no negative key.
    negatives = torch.cat([negatives, logits.new_full((1,), torch.finfo(logits.dtype).min)])
    negatives = negatives.logsumexp(dim=0)
    denominator = torch.logaddexp(similarity if form == "released" else logits, negatives)
    losses = torch.where(positive, denominator - logits, 0.0)
    return losses.sum() / positive.sum().clamp(min=1)
