"""What a contrastive loss says of the mutual information of the two things that it compares."""

import math

import torch


def information_bound(loss, candidates):
    """Metrics of an InfoNCE loss over N candidates, the positive among them, in nats: `nats`, log N - loss, a lower bound of
    the mutual information (van den Oord et al. 2018, https://arxiv.org/abs/1807.03748, section 2.3), by chance 0, and
    `most_nats`, log N, which it cannot exceed, however much there is to know.

    loss: any shape, as is `nats`. candidates: N, a number, or a tensor of each row's N, of whose logarithms the mean is
    taken.
    """
    loss = loss.detach()
    if isinstance(candidates, torch.Tensor):
        most = candidates.to(loss.dtype).log().mean()
    else:
        most = loss.new_full((), math.log(candidates))
    return {"nats": most - loss, "most_nats": most}
