"""What schedules, optimizers, losses and other choices of torch, timm, fastai, Ultralytics, Keras and Lightning are called in `train`.

Names are compared as `plain` spells them. What stands between backticks is a value; more keys follow as `key: value`.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

SCHEDULES = {
    "`one_cycle`": "fit_one_cycle, cyclic, triangular, triangular2, super_convergence",
    "`cosine`": "cosine_annealing, cosine_annealing_warm_restarts, cos, flat_cos, fit_flat_cos, sgdr, fit_sgdr, warm_restarts, "
    "cosine_restarts, cosine_decay_restarts, cosine_with_restarts, tanh, k_decay, half_cosine",
    "`cosine` with warmup: `0.05`": "warmup_cosine, cosine_warmup, cosine_with_warmup, "
    "cosine_schedule_with_warmup, get_cosine_schedule_with_warmup, linear_warmup_cosine_annealing",
    "`linear` with lr_end: `0.01`": "lrf, poly, polynomial, fit_poly, inverse_time, inverse_sqrt, noam, inv_sqrt, annealing_linear",
    "`linear` with warmup: `0.05`": "linear_warmup, warmup_linear, linear_with_warmup, linear_schedule_with_warmup, "
    "get_linear_schedule_with_warmup, warmup, gradual_warmup, trapezoidal, wsd, warmup_stable",
    "`step` with step_epochs: `[60, 80]`": "multi_step, piecewise_constant, piecewise",
    "`step` with step_epochs: `1`": "exponential, exp, multiplicative, natural_exp",
    "`constant`": "none, fixed, const, off",
}

NO_SCHEDULE = {
    "a rate that waits for a plateau is not offered, since a resumed run needs a rate that is a function of the step. Set "
    "`one_cycle` or `cosine`": "plateau, reduce_lr_on_plateau, reduce, fit_reduce_on_plateau",
    "a schedule is chosen, not composed, and has its warm-up in train.warmup. Set `one_cycle` or `cosine`": "lambda, sequential, "
    "chained, learning_rate, callback, sched, combined_cos, step_lr_on_plateau",
}

OPTIMIZERS = {
    "`adamw`": "adam, nadam, nadamw, radam, adamax, lamb, lion, ranger, ranger21, adan, rmsprop, rmsprop_tf, adagrad, adadelta, "
    "adafactor, adabelief, adahessian, adamp, adamw_schedulefree, schedulefree, fused_adam, adam_w_fused, madgrad, madgradw, novograd, "
    "nvnovograd, sophia, sparse_adam, ftrl, laprop, lookahead, adopt, mars, auto, paged_adamw, adam8bit, galore, prodigy, dadaptation",
    "`sgd`": "nesterov, momentum, nag, sgdw, sgdp, lars, larc, asgd, sgd_momentum, fused_sgd, sgd_schedulefree, decoupled_momentum, rprop",
    "`muon`": "normuon, normalized_muon, single_device_muon, shampoo, soap, kron, scion, distributed_shampoo, adamuon",
}

NO_OPTIMIZER = {
    "methods of second order over the whole set are not offered. Set `sgd` or `adamw`": "lbfgs, bfgs, newton",
}

LOSSES = {
    "`cross_entropy`": "ce, xent, nll, softmax_cross_entropy, categorical_crossentropy, sparse_categorical_crossentropy, soft_target_cross_entropy, "
    "cross_entropy_with_logits, crossentropy, log_loss, softmax, jsd_cross_entropy, poly1, poly, cls, auto, kl_div, kl",
    "`cross_entropy` with label_smoothing: `0.1`": "label_smoothing_cross_entropy, label_smoothing, label_smooth, smooth_cross_entropy, "
    "cross_entropy_label_smooth",
    "`cross_entropy` with class_weights: `balanced`": "weighted_cross_entropy, balanced_cross_entropy, class_balanced, cb, weighted_ce, "
    "balanced_softmax, ldam, logit_adjusted",
    "`focal` with focal_gamma: `2.0`": "sigmoid_focal, categorical_focal_crossentropy, binary_focal_crossentropy, fl, asymmetric, "
    "asymmetric_loss_multi_label, asymmetric_loss_single_label, asl, varifocal, quality_focal, class_balanced_focal",
}

NO_LOSS = {
    "an image has a single class here, so classes exclude each other; for two classes it is the same. Set `cross_entropy`": "bce, bce_with_logits, "
    "binary_crossentropy, binary_cross_entropy_with_logits, multi_label_soft_margin, multi_label_margin, soft_margin, "
    "sigmoid_cross_entropy, binary",
    "it is made for regression, not for classes. Set `cross_entropy`": "mse, l1, smooth_l1, huber, mae, mean_squared_error, mean_absolute_error, "
    "gaussian_nll, poisson_nll, poisson, cosine_similarity, log_cosh",
    "it is made for masks, not for whole images. Set `cross_entropy`, or `focal` against imbalance": "dice, jaccard, iou, tversky, lovasz, generalized_dice",
    "it learns distances of images, not classes. Set `cross_entropy`": "triplet, triplet_margin, contrastive, arcface, cosface, cosine_embedding, hinge_embedding, "
    "margin_ranking, sup_con, nt_xent, ctc, angular, center",
    "margins between classes are not offered. Set `cross_entropy`": "multi_margin, hinge, categorical_hinge, squared_hinge, svm",
}

BEST = {
    "`val/loss`": "val_loss, loss, min, eval_loss, valid_loss, minimum",
    "`val/accuracy`": "val_accuracy, accuracy, val_acc, acc, max, top1, eval_top1, metrics_accuracy_top1, error_rate, f1, val_f1",
    "`last`": "final, latest, newest, none, end",
}

CLASS_WEIGHTS = {
    "`balanced`": "auto, inverse, balance, inverse_frequency, class_weight, sqrt, ins",
    "`effective`": "class_balanced, cb, ens, effective_number",
    "`none`": "off, uniform, null, false",
}

SAMPLERS = {
    "`balanced`": "weighted, weighted_random_sampler, weighted_random, oversample, class_balanced, imbalanced_dataset_sampler, uniform",
    "`shuffle`": "random, random_sampler, none, sequential, default, true",
}

PRECISIONS = {
    "`bf16`": "bf16_mixed, bfloat16, mixed_bfloat16, bf16_true, amp_bf16, 16, fp16, 16_mixed, float16, half, mixed_float16, mixed",
    "`32`": "32, fp32, float32, 32_true, single, full, float, false, high, highest, medium, 64, float64",
    "`auto`": "amp, true",
}

VIEWS = {
    "`flip`": "hflip, fliplr, horizontal_flip, mirror, flips, 2",
    "`views`": "ten_crop, five_crop, multi_crop, true, tta, augment, aug, 6, shift, crops",
    "`none`": "off, false, null, 0, 1",
}


def plain(word: str) -> str:
    """Spell a name without case, separators and endings such as `LR`, `Scheduler` and `Loss`."""
    bare = re.sub(r"[^a-z0-9]", "", word.lower())
    return re.sub(r"(lr|scheduler|schedule|decay|loss|flat|optimizer)+$", "", bare) or bare


def _by_name(table: Mapping[str, str]) -> dict[str, str]:
    return {plain(name): line for line, names in table.items() for name in names.split(", ")}


def hinted(table: Mapping[str, str], *allowed: str, none: Mapping[str, str] | None = None) -> WrapValidator:
    """Add to the message about a refused value what it corresponds to here.

    Args:
        table: by what to write, the names elsewhere.
        allowed: the words here.
        none: by reason and remedy, names elsewhere that have no counterpart.
    """
    meant = {plain(word): f"`{word}`" for word in allowed}
    lines, reasons = _by_name(table) | meant, _by_name(none or {})

    def validate(value: object, handler: ValidatorFunctionWrapHandler) -> Any:  # noqa: ANN401 (as pydantic declares it)
        try:
            return handler(value)
        except ValidationError as error:
            name, expected = plain(str(value)), error.errors()[0]["msg"]
            near = get_close_matches(str(value), allowed, n=1) or get_close_matches(
                name, lines, n=1, cutoff=0.8
            )
            if name in reasons and name not in lines:
                hint = reasons[name]
            elif line := lines.get(name) or next((lines.get(plain(word)) for word in near), None):
                hint = f"did you mean {line}?"
            else:
                raise
            raise PydanticCustomError(
                "word", "{expected}; {hint}", {"expected": expected, "hint": hint}
            ) from error

    return WrapValidator(validate)
