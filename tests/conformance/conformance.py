"""transformers' common tests of models and configs on every method, with the tiny config and batch of its own tester.

Not collected by plain pytest: `run.py`, beside this file, unpacks transformers' tests and starts it.
"""

import copy
import unittest
from types import SimpleNamespace

import torch
from methods.tester import find_tester
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin

from hf_ssl.methods import METHODS, BERTForPreTraining


def model_tester(tester):
    """What transformers' tests ask of the tester of one of its own models."""
    config_class, batch = tester.model_class.config_class, tester.batch()
    backbone = config_class(**copy.deepcopy(tester.config)).backbone_config
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    backbone = getattr(backbone, "vision_config", backbone)
    given = {name: getattr(backbone, name) for name in sizes if hasattr(backbone, name)}
    length = batch[tester.model_class.main_input_name].shape[1]
    if hasattr(backbone, "patch_size"):  # what the encoder sees of an image
        seen = 1 - getattr(tester.model().config, "mask_ratio", 0)
        length = 1 + int((backbone.image_size // backbone.patch_size) ** 2 * seen)

    def prepare():
        return config_class(**copy.deepcopy(tester.config)), copy.deepcopy(batch)

    return SimpleNamespace(
        prepare_config_and_inputs_for_common=prepare,
        batch_size=len(batch[tester.model_class.main_input_name]), seq_length=length, is_training=True, **given,
    )  # fmt: skip


def _mask_alike(self, input_ids, attention_mask, sample_seeds=None):
    """The tests compare two passes, and have no seeds to hand in."""
    seeds = torch.arange(len(input_ids), device=input_ids.device) if sample_seeds is None else sample_seeds
    return _mask(self, input_ids, attention_mask, seeds)


_mask, BERTForPreTraining.mask = BERTForPreTraining.mask, _mask_alike


def conformance_of(name):
    tester = find_tester(name)
    model_class = METHODS[name]
    config_class = model_class.config_class
    backbone = config_class(**copy.deepcopy(tester.config)).backbone_config
    reads_tokens = model_class.main_input_name == "input_ids"
    plain = {name: value for name, value in tester.config.items() if not isinstance(value, dict)}  # no sub-configs

    def set_up(self):
        self.model_tester = model_tester(tester)
        self.config_tester = ConfigTester(
            self, config_class, has_text_modality=False, common_properties=[], **copy.deepcopy(plain)
        )

    members = dict(
        all_model_classes=(model_class,),
        has_attentions=any(hasattr(backbone, name) for name in ("num_attention_heads", "vision_config")),
        test_resize_embeddings=reads_tokens,
        test_torch_exportable=False,
        _is_composite="text" in model_class.input_modalities and "image" in model_class.input_modalities,
        setUp=set_up,
        test_config=lambda self: self.config_tester.run_common_tests(),
    )
    return type(f"Test_{name}", (ModelTesterMixin, unittest.TestCase), members)


for _name in METHODS:
    globals()[f"Test_{_name}"] = conformance_of(_name)
