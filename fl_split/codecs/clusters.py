"""Clusters of rows: Lloyd's algorithm, with the same bits each time."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def kmeans(
    points: Tensor,
    num_clusters: int,
    *,
    init: Tensor | None = None,
    generator: torch.Generator | None = None,
    max_iter: int = 50,
    tol: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """Cluster rows by Lloyd's algorithm, squared Euclidean distance.

    Parameters
    ----------
    points : Tensor
        (B, N).
    num_clusters : int
        K, in 1..B.
    init : Tensor, optional
        (K,) indices of the samples that serve as initial centroids; by default K distinct
        samples drawn from `generator`.
    generator : torch.Generator, optional
        Source of the initial samples and of the replacements of empty centroids; by
        default one seeded with 0.
    max_iter, tol : int, float
        Stop after `max_iter` iterations, or once the squared sum of the centroids' moves
        is below `tol`.

    Returns
    -------
    assignment : Tensor
        (B,) int64; ties go to the lowest cluster.
    centroids : Tensor
        (K, N): for every cluster with members the mean of exactly this assignment, else a
        randomly drawn sample.

    Raises
    ------
    ValueError
        `points` is not a matrix, `num_clusters` or `init` does not fit it, or `max_iter`
        is below 1.
    """
    if points.dim() != 2 or not 1 <= num_clusters <= len(points):
        shape = tuple(points.shape)
        raise ValueError(
            f"num_clusters must be in 1..B for points (B, N), got {num_clusters}, {shape}"
        )
    if max_iter < 1:
        raise ValueError(f"max_iter must be at least 1, got {max_iter}")
    if init is not None and len(init) != num_clusters:
        raise ValueError(f"init must hold {num_clusters} indices, got {len(init)}")
    generator = generator or torch.Generator().manual_seed(0)
    if init is None:
        init = torch.randperm(len(points), generator=generator).to(points.device)[:num_clusters]
    centroids = points[init]
    for _ in range(max_iter):
        previous = centroids
        assignment = _squared_distances(points, previous).argmin(dim=1)
        centroids, sizes = means_of(points, assignment, num_clusters)
        empty = sizes == 0
        if empty.any():
            count = (int(empty.sum()),)
            chosen = torch.randint(len(points), count, generator=generator).to(points.device)
            centroids[empty] = points[chosen]
        if (centroids - previous).norm(dim=1).sum() ** 2 < tol:
            break
    return assignment, centroids


def membership(assignment: Tensor, num_clusters: int) -> Tensor:
    """Return (K, B) booleans: which samples belong to which cluster."""
    numbers = torch.arange(num_clusters, device=assignment.device)
    return assignment == numbers[:, None]


def _squared_distances(points: Tensor, centroids: Tensor) -> Tensor:
    return (points[:, None] - centroids).square_().sum(dim=-1)  # batch clusters


def sizes_of(assignment: Tensor, num_clusters: int) -> Tensor:
    """Return how many members (K,) each cluster has."""
    if assignment.is_cpu:
        return torch.bincount(assignment, minlength=num_clusters)
    return membership(assignment, num_clusters).sum(dim=1)


def means_of(points: Tensor, assignment: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """Return the means (K, N) of the members of each cluster, and how many these are."""
    sizes = sizes_of(assignment, num_clusters)
    if points.is_cpu:
        total = points.new_zeros(num_clusters, points.shape[1]).index_add(0, assignment, points)
    else:
        total = membership(assignment, num_clusters).to(points.dtype) @ points
    return total / sizes.clamp(min=1)[:, None], sizes
