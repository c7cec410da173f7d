"""The loss that training minimises: cross-entropy or focal, smoothed and weighted, of labels or of mixed images; and of a teacher's answers.

N images of a batch, K classes.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, one_hot

LEAST_DOUBT = 1e-8
"""Of 1 - p in the focal loss: a power below 1 has an infinite slope at 0."""


def classification_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    gamma: float | None = None,
) -> Tensor:
    """Compute the mean loss of a batch.

    Args:
        logits: (N, K) float32.
        targets: (N,) int64 labels, or (N, K) float32 shares of each class in a mixed image; a row sums to 1.
        smoothing: share of the target that is spread over all classes.
        class_weights: (K,) factors on the loss of each class's images; of a mixed image, on each class's share.
        gamma: None for cross-entropy; else the loss towards a class is multiplied by (1 - p)^gamma, p its probability (Lin et
            al., Focal Loss for Dense Object Detection, ICCV 2017): images that are classified surely count less.

    Returns:
        A scalar.
    """
    if gamma is None and class_weights is None:
        return cross_entropy(logits, targets, label_smoothing=smoothing)
    if gamma is None and class_weights is not None and targets.ndim == 1:
        # Not by torch's `weight`: it divides by the weights of the batch, so that a batch of frequent classes would count as
        # much as one of rare classes, and it weighs the smoothed share of every other class too.
        losses = cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
        return (losses * class_weights[targets]).mean()
    shares = one_hot(targets, logits.shape[1]).float() if targets.ndim == 1 else targets
    if class_weights is not None:
        shares = shares * class_weights
    logs = logits.log_softmax(dim=1)
    if gamma is not None:
        logs = logs * (-torch.expm1(logs)).clamp(min=LEAST_DOUBT) ** gamma
    own = (1 - smoothing) * (shares * logs).sum(dim=1)
    return -(own + smoothing * shares.sum(dim=1) * logs.mean(dim=1)).mean()


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Compute the mean divergence of a network's softened probabilities from its teacher's, times temperature².

    Hinton et al., Distilling the Knowledge in a Neural Network, 2015; the square keeps the gradients' scale.

    Args:
        logits: (N, K) of the network.
        teacher_logits: (N, K).
        temperature: that divides both before the softmax.
    """
    own = (logits / temperature).log_softmax(dim=1)
    expected = (teacher_logits / temperature).log_softmax(dim=1)
    return kl_div(own, expected, reduction="batchmean", log_target=True) * temperature**2
