"""Attention-based double compression, ADC (Alvetreti et al., arXiv 2509.15058).

Samples of a batch with similar CLS attention are merged, and of each merged sample only
the most attended tokens are sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from fl_split.codecs.clusters import kmeans, means_of, membership, sizes_of
from fl_split.codecs.codec import Codec, Ratio, Received, Smashed, most_attended
from fl_split.payload import Payload, check_size
from fl_split.ragged import is_real, with_padding, without_padding
from fl_split.specs import STRICT


@dataclass(frozen=True, config=STRICT)
class ADC(Codec):
    """Merge samples of similar attention, keep the most attended tokens (ADC, 2025).

    A batch of B samples with N tokens becomes K clusters of T tokens, where
    K = max(2, floor(beta B)) and T = max(1, floor(tau N)), CLS included; beta and tau come
    from `ratio`, or are set as `batch_ratio` and `token_ratio`. A DeiT's distillation token
    is one like the others, unless a classifier reads it: then it is kept as CLS is, and T
    is at least 2.

    Always finite: a cluster that ends up without members is dropped from payload and
    loss, so K is never more than B nor than the number of distinct attention rows. A
    batch of one sample, or of copies of one sample, becomes one cluster.

    Parameters
    ----------
    ratio : float
        Share of the smashed data that is sent, in (0, 1].
    split : "sqrt" or "fifth"
        How `ratio` is shared between samples and tokens: ratio^(1/2) each (the paper),
        or ratio^(1/5) for samples and ratio^(4/5) for tokens (the code behind the
        published accuracies).
    batch_ratio, token_ratio : float, optional
        Override what `split` makes of `ratio`, each on its own: what is sent, and counted
        by a nominal budget, is then beta tau, as set or as split.
    weighted_loss : bool
        Weight the loss of a cluster by its size instead of equally (the paper).
    """

    ratio: Ratio = 0.1
    split: Literal["sqrt", "fifth"] = "sqrt"
    batch_ratio: Ratio | None = None
    token_ratio: Ratio | None = None
    weighted_loss: bool = False

    in_place: ClassVar[bool] = False
    needs_attention: ClassVar[bool] = True
    keeps_samples: ClassVar[bool] = False
    carries_counts: ClassVar = True
    up: ClassVar[str] = "K merged samples of T tokens in fp32; their members' labels"

    def shares(self) -> tuple[float, float]:
        """Return which shares of the samples and of the tokens are sent, beta and tau."""
        exponent = 1 / 2 if self.split == "sqrt" else 1 / 5
        beta, tau = self.ratio**exponent, self.ratio ** (1 - exponent)
        return self.batch_ratio or beta, self.token_ratio or tau

    def sizes(self, num_samples: int, num_tokens: int) -> tuple[int, int]:
        """Return (K, T) for a batch of `num_samples` samples of `num_tokens` tokens."""
        batch_ratio, token_ratio = self.shares()
        num_clusters = max(2, math.floor(batch_ratio * num_samples))
        return min(num_clusters, num_samples), max(1, math.floor(token_ratio * num_tokens))

    def nominal_ratio(self, batch: float, numbers: int) -> float:
        """Return beta tau: `ratio`, unless one of them is set."""
        return math.prod(self.shares())

    def encode(self, smashed: Smashed, generator: torch.Generator) -> Payload:
        """Send merged tokens (K, T, D) and, per cluster, how many members each class has."""
        attention, num_read = smashed.attention(), smashed.num_read
        num_clusters, num_tokens = self.sizes(*attention.shape)
        num_tokens = max(num_tokens, num_read)
        assignment, _ = kmeans(attention, num_clusters, generator=generator)
        merged, kept = merge_and_select(smashed.tokens, attention, assignment, num_tokens, num_read)
        cluster = _consecutive(assignment)
        mixtures = label_mixtures(cluster, smashed.labels, smashed.num_classes)
        if smashed.counts is None:
            return Payload({"tokens": merged}, mixtures)
        present = is_real(smashed.counts, attention.shape[1]).to(merged.dtype)
        shares = means_of(present, cluster, len(kept))[0].gather(1, kept)
        merged = merged / shares.clamp(min=1e-12)[..., None]  # the mean of those that have it
        tokens, side = without_padding(merged, (shares > 0).sum(dim=1))
        return Payload({"tokens": tokens}, {**mixtures, **side})

    def decode(self, payload: Payload) -> Received:
        """Return merged tokens with label mixtures, weighted by size if asked."""
        members = read_mixtures(payload.side).float()
        sizes = members.sum(dim=1)
        weights = sizes if self.weighted_loss else None
        tokens, counts = with_padding(payload.carried["tokens"], payload.side)
        return Received(tokens, members / sizes[:, None], weights, counts)


def label_mixtures(cluster: Tensor, labels: Tensor, num_classes: int) -> dict[str, Tensor]:
    """Side information for label mixtures: counts (K, C), or labels by cluster if shorter.

    Counts are mixtures before division: their rows sum to the cluster sizes. With many
    classes nearly all are zero; then the members' labels, cluster by cluster, and the
    cluster sizes say the same in fewer bytes.
    """
    sizes = sizes_of(cluster, int(cluster.max()) + 1)
    members = {
        "labels": labels[cluster.argsort(stable=True)],
        "sizes": sizes,
        "classes": torch.tensor([num_classes], device=labels.device),
    }
    counts = {"counts": _count(cluster, labels, len(sizes), num_classes)}
    return min(counts, members, key=lambda side: Payload({}, side).nbytes)


def read_mixtures(side: Mapping[str, Tensor]) -> Tensor:
    """Read counts (K, C) back from either form; raise ValueError if it makes no sense."""
    if "counts" in side:
        return side["counts"]
    sizes, classes = side["sizes"], int(side["classes"])
    check_size(len(sizes), classes)
    if int(sizes.sum()) != len(side["labels"]) or int(sizes.min()) < 1:
        raise ValueError(f"{len(side['labels'])} labels for clusters of {sizes.tolist()}")
    cluster = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
    return _count(cluster, side["labels"], len(sizes), classes)


def _count(cluster: Tensor, labels: Tensor, num_clusters: int, num_classes: int) -> Tensor:
    counts = torch.zeros(num_clusters, num_classes, dtype=torch.int64, device=labels.device)
    return counts.index_put_((cluster, labels), torch.ones_like(labels), accumulate=True)


def merge_and_select(
    tokens: Tensor, attention: Tensor, assignment: Tensor, num_tokens: int, num_read: int = 1
) -> tuple[Tensor, Tensor]:
    """Average the members of each cluster and keep its most attended tokens.

    Selecting comes before averaging: the kept tokens are the same for all members of a
    cluster, so the result is equal and only T of N tokens are moved.

    Parameters
    ----------
    tokens : Tensor
        (B, N, D).
    attention : Tensor
        (B, N) scores.
    assignment : Tensor
        (B,) cluster of each sample; numbers without members are skipped.
    num_tokens : int
        T, at most N.
    num_read : int
        How many of the T are the first ones (CLS), which are kept whatever their score.

    Returns
    -------
    merged : Tensor
        (K, T, D) for the K clusters that have members, in order of their number.
        Differentiable in `tokens`: a member gets 1/n_k of the gradient of its cluster on
        kept tokens and zero elsewhere.
    kept : Tensor
        (K, T) int64 token indices, the read ones first, then by falling attention.

    Raises
    ------
    ValueError
        `num_tokens` is below `num_read`.
    """
    if num_tokens < num_read:
        raise ValueError(f"num_tokens must be at least {num_read}, got {num_tokens}")
    cluster = _consecutive(assignment)
    num_clusters = int(cluster.max()) + 1
    scores, sizes = means_of(attention, cluster, num_clusters)
    kept = most_attended(scores, min(num_tokens, scores.shape[1]), num_read)
    total = (sum_of_bags if tokens.is_cpu else sum_of_products)(tokens, cluster, kept, sizes)
    return total / sizes[:, None, None].to(total.dtype), kept


def sum_of_bags(tokens: Tensor, cluster: Tensor, kept: Tensor, sizes: Tensor) -> Tensor:
    """Sum the kept tokens (K, T) of each cluster's members, (K, T, D), without a copy of them.

    `tokens` are (B, N, D), `cluster` (B,) and `sizes` (K,).
    """
    device, width = tokens.device, kept.shape[1]
    samples = torch.arange(len(tokens), device=device)
    places = samples[:, None] * tokens.shape[1] + kept[cluster]
    bags = (cluster[:, None] * width + torch.arange(width, device=device)).flatten()
    members = places.flatten()[bags.argsort(stable=True)]  # by cluster, then by token
    counts = sizes.repeat_interleave(width)
    rows = tokens.flatten(0, 1)
    total = functional.embedding_bag(members, rows, counts.cumsum(0) - counts, mode="sum")
    return total.view(*kept.shape, -1)


def sum_of_products(tokens: Tensor, cluster: Tensor, kept: Tensor, sizes: Tensor) -> Tensor:
    """Do the same by one product with who belongs to which cluster: the same bits each time.

    On a GPU sums into bags go by atomic additions, in any order.
    """
    belongs = membership(cluster, len(sizes)).to(tokens.dtype)
    total = (belongs @ tokens.flatten(1)).view(len(sizes), *tokens.shape[1:])  # clusters tokens dim
    return total.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))


def _consecutive(assignment: Tensor) -> Tensor:
    """Renumber clusters so that those with members are 0..K-1, order kept."""
    return torch.unique(assignment, return_inverse=True)[1]
