"""Entropy minimisation: unlabelled images are to be classified with certainty, whatever the class.

Grandvalet and Bengio 2004, https://papers.nips.cc/paper/2740-semi-supervised-learning-by-entropy-minimization; as part of
another method Miyato et al. 2017, https://arxiv.org/abs/1704.03976. The border between classes moves to where there are few
images; so it does where a class swallows another, since nothing else is asked of the images without labels. Deviation: a
network in the place of logistic regression. With entropy_weight=0 it is supervised learning from the labels alone, and the
unlabelled images are not looked at: the baseline of all semi-supervised methods.
"""

import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ._backbone import classify
from ._base import SSLConfig, SSLModel, SSLOutput
from ._initialization import draw_as_torch
from ._semi_supervised import build_classifier, classify_all, entropy, label_metrics


@strict
class EntropyMinimizationConfig(SSLConfig):
    """Defaults: a ResNet-50 and the weight that VAT+EntMin has.

    backbone_config: of an image classifier of transformers; its num_labels are set from the data by the command line.
    entropy_weight: of the unlabelled images' mean entropy, in nats; 0: the labels alone.
    """

    model_type = "ssl_entropy_minimization"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="resnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    entropy_weight: float = 1.0

    def validate_ranges(self):
        self.check_least(entropy_weight=0)


class EntropyMinimizationForPreTraining(SSLModel):
    config: EntropyMinimizationConfig
    input_modalities = ("image",)
    learns_from_labels = True

    def __init__(self, config: EntropyMinimizationConfig):
        super().__init__(config)
        self.backbone = build_classifier(config.backbone_config)
        self.post_init()

    def forward(self, labelled_pixel_values, labels, pixel_values=None, **kwargs):
        """pixel_values: (N, C, H, W); with entropy_weight=0 they may be left out. labelled_pixel_values: (B, C, H, W). labels:
        (B,). `logits`: (B, K)."""
        if self.config.entropy_weight == 0:
            logits, features = classify(self.backbone, labelled_pixel_values)
            loss = F.cross_entropy(logits, labels)
            return SSLOutput(loss, logits, features, metrics=label_metrics(logits, labels, loss))
        logits, unlabelled_logits, features = classify_all(self.backbone, labelled_pixel_values, pixel_values)
        supervised, uncertainty = F.cross_entropy(logits, labels), entropy(unlabelled_logits)
        return SSLOutput(
            loss=supervised + self.config.entropy_weight * uncertainty,
            logits=logits,
            features=features,
            metrics=label_metrics(logits, labels, supervised) | {"entropy": uncertainty.detach()},
        )

    def _init_weights(self, module):
        draw_as_torch(module)


__all__ = ["EntropyMinimizationConfig", "EntropyMinimizationForPreTraining"]
