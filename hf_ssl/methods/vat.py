"""Virtual adversarial training: the small change of an image that changes the prediction most must change it little.

Miyato et al. 2017, https://arxiv.org/abs/1704.03976. Official code: https://github.com/takerum/vat_tf. The direction is found
by power iteration: the divergence of predictions grows with the square of a step, so its gradient a tiny step away from the
image points along the axis of steepest growth. All passes normalise by batch statistics, and only the labelled one moves the
running ones. All drop the same units, if the network drops any. Deviations: the least entropy can be had by one class for all,
which the entropy of the mean prediction may keep off; with one weight for both it is the mutual information of images and
classes, as in IMSAT (Hu et al. 2017). Batch statistics are those of all processes; xi is 1e-3, as the original's 1e-6 is less
than what float32 rounds away, and leaves of the direction mostly noise (its cosine with that of float64 is 0.4, with 1e-3 it is
0.99).
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ._backbone import classify
from ._base import SSLConfig, SSLModel, SSLOutput
from ._batch_norm import fixed_running_statistics
from ._distributed import sum_with_gradient, world_size
from ._initialization import draw_as_torch
from ._random import VAT_STREAM, fold_in, normal
from ._semi_supervised import build_classifier, entropy, label_metrics


@strict
class VATConfig(SSLConfig):
    """Defaults: the original's on CIFAR-10 with augmentation, VAT+EntMin, with a ResNet-50.

    backbone_config: of an image classifier of transformers; its num_labels are set from the data by the command line. epsilon:
    length of the adversarial step, of pixels as the network sees them, normalised. xi: of the step at whose end the gradient is
    taken. power_iterations: number of such gradients, each taken where the last one points. vat_weight: of the divergence.
    entropy_weight: of the unlabelled images' entropy; 0: VAT alone. balance_weight: of the entropy of their mean prediction,
    over all processes, which is to be high, where the classes of the unlabelled images are about as frequent
    (https://arxiv.org/abs/1702.08720).
    """

    model_type = "ssl_vat"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="resnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    epsilon: float = 8.0
    xi: float = 1e-3
    power_iterations: int = 1
    vat_weight: float = 1.0
    entropy_weight: float = 1.0
    balance_weight: float = 0.0

    def validate_ranges(self):
        self.check_least(power_iterations=1, vat_weight=0, entropy_weight=0, balance_weight=0)
        self.check_positive("epsilon", "xi")


class VATForPreTraining(SSLModel):
    config: VATConfig
    input_modalities = ("image",)
    learns_from_labels = True

    def __init__(self, config: VATConfig):
        super().__init__(config)
        self.backbone = build_classifier(config.backbone_config)
        self.compares_samples = config.balance_weight > 0  # by their mean
        self.post_init()

    def forward(self, pixel_values, labelled_pixel_values, labels, sample_seeds=None, noise=None, **kwargs):
        """pixel_values: (N, C, H, W). labelled_pixel_values: (B, C, H, W). labels: (B,). noise: (N, C, H, W), normal, where the
        search for the direction begins; it follows from `sample_seeds`, (N,) int64, if not given, and is drawn afresh
        without those. `logits`: (B, K)."""
        if noise is None:
            noise = self.draw_noise(pixel_values, sample_seeds)
        logits, _ = classify(self.backbone, labelled_pixel_values)
        with fixed_running_statistics(self.backbone):
            clean, features = self.classify_exactly(pixel_values)  # (N, K)
            step = self.config.epsilon * self.adversarial_direction(pixel_values, clean.detach(), noise)
            perturbed, _ = classify(self.backbone, pixel_values + step)
        supervised, distance = F.cross_entropy(logits, labels), divergence(clean.detach(), perturbed)
        loss, uncertainty = supervised + self.config.vat_weight * distance, entropy(clean)
        if self.config.entropy_weight:
            loss = loss + self.config.entropy_weight * uncertainty
        metrics = {"divergence": distance.detach(), "entropy": uncertainty.detach()}
        if self.config.balance_weight:
            balance = entropy_of_mean(clean)
            loss = loss - self.config.balance_weight * balance
            metrics["entropy_of_mean"] = balance.detach()
        return SSLOutput(
            loss=loss,
            logits=logits,
            features=features,
            metrics=label_metrics(logits, labels, supervised) | metrics,
        )

    def adversarial_direction(self, pixel_values, clean, noise):
        """(N, C, H, W), of length 1 for each image. clean: the network's logits of the images, (N, K), without gradient."""
        direction = noise
        for _ in range(self.config.power_iterations):
            step = (self.config.xi * unit(direction)).requires_grad_()
            with torch.enable_grad():
                perturbed, _ = self.classify_exactly(pixel_values + step)
                total = divergence(clean, perturbed) * len(clean)
                direction = torch.autograd.grad(total, step)[0]
        return unit(direction)

    def classify_exactly(self, images):
        """Logits and features without mixed precision, whose rounding is more than what a tiny step changes. It leaves the random
        state as it was, so that all passes of a step drop the same units."""
        kind = images.device.type
        device_type, devices = ("cuda", []) if kind == "cpu" else (kind, [images.device])
        with torch.autocast(kind, enabled=False), torch.random.fork_rng(devices, device_type=device_type):
            return classify(self.backbone, images)

    def draw_noise(self, pixel_values, sample_seeds=None):
        if sample_seeds is None:
            return torch.randn_like(pixel_values)
        numbers = normal(fold_in(sample_seeds, VAT_STREAM), pixel_values[0].numel())
        return numbers.view_as(pixel_values).to(pixel_values.dtype)

    def _init_weights(self, module):
        draw_as_torch(module)


def divergence(p_logits, q_logits):
    """KL(p || q), the mean over the batch, in nats. p_logits, q_logits: (N, K)."""
    return F.kl_div(q_logits.log_softmax(1), p_logits.log_softmax(1), reduction="batchmean", log_target=True)


def entropy_of_mean(logits):
    """Of the mean softmax of all processes' images, in nats. logits: (N, K)."""
    mean = sum_with_gradient(logits.softmax(1).mean(0)) / world_size()  # (K,)
    return torch.special.entr(mean.clamp(min=1e-12)).sum()


def unit(x):
    """Each of (N, ...) over its length, by way of its largest value, so that tiny gradients are not lost (vat.py)."""
    flat = x.flatten(1).to(torch.promote_types(x.dtype, torch.float32))
    flat = flat / (1e-12 + flat.abs().amax(1, keepdim=True))
    return (flat / (1e-6 + flat.square().sum(1, keepdim=True)).sqrt()).view_as(x).to(x.dtype)


__all__ = ["VATConfig", "VATForPreTraining"]
