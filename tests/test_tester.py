"""Each check of the tester bites: a method that is broken on purpose fails it, and the same method unbroken passes."""

import inspect
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from methods.tester import TINY_RESNET, MethodTester, differences
from processes import Failed, on_pair, run_plain
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from hf_ssl import MoCoForPreTraining, SimCLRConfig, SimCLRForPreTraining
from hf_ssl.methods._batch_norm import GlobalBatchNorm, replace_batch_norm
from hf_ssl.methods._distributed import world_size
from hf_ssl.methods._momentum import momentum_update

CHECKS = [name for name in dir(MethodTester) if name.startswith("test_")]


class SimCLR(MethodTester):
    model_class = SimCLRForPreTraining
    config = dict(backbone_config=TINY_RESNET, projection_size=16)
    chance_loss = math.log(15)
    tolerance = 1e-5
    floor = 1e-7

    def batch(self, seed=0):
        """Images of one colour, seen twice with noise."""
        generator = torch.Generator().manual_seed(seed)
        colours = torch.randn(8, 3, 1, 1, generator=generator)
        views = [colours + torch.randn(8, 3, 16, 16, generator=generator) for _ in range(2)]
        return dict(zip(("pixel_values", "pixel_values_2"), views, strict=True))


class MoCo(SimCLR):
    model_class = MoCoForPreTraining
    config = dict(
        backbone_config=TINY_RESNET, queue_size=16, projection_size=16, momentum=0.9, batch_norm_group_size=8
    )
    chance_loss = math.log(17)
    teachers = {"key_backbone": "backbone", "key_projector": "projector"}

    def batch(self, seed=0):
        return super().batch(seed) | {"sample_seeds": torch.arange(8) + 8 * seed}


class WithoutSteps(SimCLR):
    most_steps = 60

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=0.0)


class WithoutStepsMoCo(MoCo):
    """The queue moves nevertheless."""

    most_steps = 60
    optimizer = WithoutSteps.optimizer


class DetachedFeatures(SimCLR):
    class model_class(SimCLRForPreTraining):
        def embed(self, pixel_values):
            return super().embed(pixel_values).detach()


class NegativesOfOneProcess(SimCLR):
    class model_class(SimCLRForPreTraining):
        def forward(self, pixel_values, pixel_values_2):
            output = super().forward(pixel_values, pixel_values_2)
            projections = F.normalize(self.projector(output.features), dim=1)
            logits = projections @ projections.T / self.config.temperature
            logits.diagonal().fill_(-torch.inf)
            output.loss = F.cross_entropy(logits, torch.arange(len(logits)).roll(len(pixel_values)))
            return output


class StatisticsOfOneProcess(SimCLR):
    class model_class(SimCLRForPreTraining):
        def __init__(self, config):
            super().__init__(config)
            replace_batch_norm(self.backbone, nn.BatchNorm2d, kinds=(GlobalBatchNorm,))


class GradientsDividedByTheProcesses(SimCLR):
    class model_class(SimCLRForPreTraining):
        def forward(self, *args, **batch):
            output = super().forward(*args, **batch)
            value = output.loss.detach()
            output.loss = value + (output.loss - value) / world_size()
            return output


class FrozenKeyEncoder(MoCo):
    class model_class(MoCoForPreTraining):
        def after_step(self, progress):
            pass


class CopiedKeyEncoder(MoCo):
    config = MoCo.config | {"momentum": 0.0}


class KeyEncoderThatMovesInForward(MoCo):
    class model_class(MoCoForPreTraining):
        def forward(self, *args, **batch):
            momentum_update(self.key_backbone, self.backbone, self.config.momentum)
            return super().forward(*args, **batch)


class KeyEncoderOfAnotherStart(MoCo):
    class model_class(MoCoForPreTraining):
        def _init_weights(self, module):
            if module is not self:  # whose own draw makes the two alike
                super()._init_weights(module)


class ForgottenWeight(SimCLR):
    class model_class(SimCLRForPreTraining):
        def __init__(self, config):
            super().__init__(config)
            self.projector.requires_grad_(False)


class DrawnInForward(SimCLR):
    class model_class(SimCLRForPreTraining):
        def forward(self, pixel_values, pixel_values_2):
            return super().forward(pixel_values, pixel_values_2 + 0.1 * torch.randn_like(pixel_values))


class CountsInEval(SimCLR):
    class model_class(SimCLRForPreTraining):
        def __init__(self, config):
            super().__init__(config)
            self.register_buffer("calls", torch.zeros(()), persistent=False)

        def forward(self, *args, **batch):
            self.calls += 1
            return super().forward(*args, **batch)


class CountsWhatIsComputedTwice(SimCLR):
    class model_class(SimCLRForPreTraining):
        def __init__(self, config):
            super().__init__(config)
            self.register_buffer("calls", torch.zeros(()))
            self.backbone.encoder.stages[1].layers[0].layer.register_forward_hook(self.count)

        def count(self, *_):
            self.calls += 1


class ComputesNothingTwice(SimCLR):
    class model_class(SimCLRForPreTraining):
        def gradient_checkpointing_enable(self, *args, **kwargs):
            pass

        activation_checkpointing_enable = gradient_checkpointing_enable


class CentredOverTheBatch(SimCLR):
    class model_class(SimCLRForPreTraining):
        def embed(self, pixel_values):
            features = super().embed(pixel_values)
            return features - features.mean(0)


@strict
class ForgetfulConfig(SimCLRConfig):
    model_type = "ssl_of_the_tester"


class Forgetful(SimCLR):
    """Its memory is no buffer."""

    class model_class(SimCLRForPreTraining):
        config: ForgetfulConfig

        def __init__(self, config):
            super().__init__(config)
            self.centre = 0.0

        def forward(self, *args, **batch):
            output = super().forward(*args, **batch)
            output.loss = output.loss + self.centre
            return output

        def after_step(self, progress):
            self.centre += 1.0


class Garbage(SimCLR):
    class model_class(SimCLRForPreTraining):
        def _init_weights(self, module):
            if not isinstance(module, nn.Linear):  # these are as torch draws them, when they are not built on "meta"
                super()._init_weights(module)


class ChangedAfterTheDraw(SimCLR):
    """As MAE's query, key and value."""

    class model_class(SimCLRForPreTraining):
        def __init__(self, config):
            super().__init__(config)
            self.projector[0].weight.data *= 1.5


class MovedAfterTheDraw(SimCLR):
    class model_class(SimCLRForPreTraining):
        def __init__(self, config):
            super().__init__(config)
            self.projector[0].weight.data += 0.01  # one standard deviation


class ConstantAfterTheDraw(SimCLR):
    class model_class(SimCLRForPreTraining):
        def __init__(self, config):
            super().__init__(config)
            self.projector[1].weight.data.zero_()


class ReleasedWithoutAKey(SimCLR):
    class model_class(SimCLRForPreTraining):
        def export_encoder(self):
            encoder = super().export_encoder()
            weights = encoder.state_dict()
            del weights["embedder.embedder.convolution.weight"]
            save = encoder.save_pretrained
            encoder.save_pretrained = lambda folder: save(folder, state_dict=weights)
            return encoder


class ReleasedWithOtherWeights(SimCLR):
    class model_class(SimCLRForPreTraining):
        def export_encoder(self):
            encoder = super().export_encoder()
            encoder.embedder.embedder.convolution.weight.data += 0.01
            return encoder


class ReleasedAsAClassOfItsOwn(SimCLR):
    class model_class(SimCLRForPreTraining):
        def export_encoder(self):
            return self


class WithoutTuples(SimCLR):
    class model_class(SimCLRForPreTraining):
        def __init__(self, config):
            super().__init__(config)
            self.forward = partial(SimCLRForPreTraining.forward.__wrapped__, self)


class WithHalfAHead(SimCLR):
    class model_class(SimCLRForPreTraining):
        def forward(self, *args, **batch):
            self.projector.float()
            return super().forward(*args, **batch)


BROKEN = [
    ("test_learns", WithoutSteps, "untrained"),
    ("test_learns", WithoutStepsMoCo, "untrained"),
    ("test_every_trained_weight_gets_a_gradient", DetachedFeatures, "backbone.embedder"),
    ("test_two_processes_equal_one", NegativesOfOneProcess, "approx"),
    ("test_two_processes_equal_one", StatisticsOfOneProcess, "approx"),
    ("test_two_processes_equal_one", GradientsDividedByTheProcesses, "approx"),
    ("test_teachers_follow", FrozenKeyEncoder, "key_backbone.* does not follow"),
    ("test_teachers_follow", CopiedKeyEncoder, "key_backbone.* does not follow"),
    ("test_teachers_follow", KeyEncoderThatMovesInForward, "key_backbone.* is moved by `forward`"),
    ("test_teachers_follow", KeyEncoderOfAnotherStart, "key_projector"),
    ("test_teachers_follow", ForgottenWeight, "neither in `teachers` nor in `fixed`"),
    ("test_same_draw_same_loss", DrawnInForward, "equal"),
    ("test_eval_forward_changes_nothing", CountsInEval, "calls"),
    ("test_activation_checkpointing_changes_nothing", CountsWhatIsComputedTwice, "calls"),
    ("test_activation_checkpointing_changes_nothing", ComputesNothingTwice, "8 > 8"),
    ("test_embed_does_not_depend_on_the_batch", CentredOverTheBatch, "not close"),
    ("test_save_and_load", Forgetful, "loss"),
    ("test_weights_missing_from_a_file_are_drawn_not_garbage", Garbage, "projector.0.weight: is not initialised"),
    ("test_weights_missing_from_a_file_are_drawn_not_garbage", ChangedAfterTheDraw, "projector.0.weight: has standard"),
    ("test_weights_missing_from_a_file_are_drawn_not_garbage", MovedAfterTheDraw, "projector.0.weight: has mean"),
    ("test_weights_missing_from_a_file_are_drawn_not_garbage", ConstantAfterTheDraw, "projector.1.weight: is a constant"),
    ("test_arguments_of_transformers", WithoutTuples, "tuple"),
    ("test_arguments_of_transformers", WithHalfAHead, "dtype"),
    ("test_released_encoder_is_native", ReleasedWithoutAKey, "missing_keys.*embedder.embedder.convolution.weight"),
    ("test_released_encoder_is_native", ReleasedWithOtherWeights, "not close"),
    ("test_released_encoder_is_native", ReleasedAsAClassOfItsOwn, "ssl_simclr"),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def registered():
    AutoConfig.register(ForgetfulConfig.model_type, ForgetfulConfig, exist_ok=True)
    for auto in (AutoModel, AutoModelForPreTraining):
        auto.register(ForgetfulConfig, Forgetful.model_class, exist_ok=True)


def run(check, tester, tmp_path):
    function = getattr(tester(), check)
    function(**({"tmp_path": tmp_path} if "tmp_path" in inspect.signature(function).parameters else {}))


@pytest.mark.parametrize("check, broken, message", BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_broken_fails(check, broken, message, tmp_path):
    with pytest.raises((AssertionError, RuntimeError, Failed, pytest.fail.Exception), match=message):
        run(check, broken, tmp_path)


@pytest.mark.parametrize("check", CHECKS)
def test_what_is_whole_passes(check, tmp_path):
    testers = {MoCo if issubclass(broken, MoCo) else SimCLR for name, broken, _ in BROKEN if name == check}
    assert testers, f"nothing shows that {check} can fail"
    for tester in testers:
        run(check, tester, tmp_path / tester.__name__)


def test_padding_and_single_numbers_are_compared():
    """Where a sample says little, garbage is found nevertheless."""
    drawn = torch.randn(4)
    assert differences(drawn, torch.randn(4), constant=False) == []
    assert differences(torch.zeros(4), drawn, constant=False) and differences(drawn * torch.nan, drawn, constant=False)
    assert differences(torch.tensor(1), torch.tensor(0), constant=True) == [
        "is a constant in a new model, and another one here"
    ]


# -- the processes that the tests share --------------------------------------------------------------------------------


def ranks():
    total = torch.tensor([1.0 + torch.distributed.get_rank()])
    torch.distributed.all_reduce(total)
    return torch.distributed.get_rank(), total.item(), torch.multiprocessing.current_process().pid


def fails_on_one():
    if torch.distributed.get_rank() == 1:
        raise ValueError("broken on purpose")
    torch.distributed.barrier()


def hangs_on_one():
    if torch.distributed.get_rank() == 0:
        torch.distributed.barrier()


def dies():
    import os

    os._exit(7)


def test_a_pair_stays_until_a_call_fails():
    first = on_pair(ranks)
    assert [answer[:2] for answer in first] == [(0, 3.0), (1, 3.0)] and on_pair(ranks) == first
    for function, message in (
        (fails_on_one, "process 1: Traceback(.|\n)*in fails_on_one(.|\n)*ValueError: broken on purpose"),
        (hangs_on_one, "process 0: no answer within 1 seconds"),
        (dies, "exit codes"),
    ):
        with pytest.raises(Failed, match=message):
            on_pair(function, timeout=1 if function is hangs_on_one else 60)
    again = on_pair(ranks)
    assert [answer[:2] for answer in again] == [(0, 3.0), (1, 3.0)] and again != first


def test_plain_transformers_have_never_heard_of_hf_ssl():
    """Neither the code nor the server that it is forked from has imported it or can, and no helper of the tests either."""
    names = run_plain("import sys; print(*(name for name, module in sys.modules.items() if module))").split()
    assert "transformers" in names and not {name.split(".")[0] for name in names} & {"hf_ssl", "processes", "methods"}
    with pytest.raises(Failed, match="ModuleNotFoundError: import of hf_ssl"):
        run_plain("import hf_ssl")
    with pytest.raises(Failed, match="ModuleNotFoundError: .*hf_ssl.methods"):
        run_plain("import hf_ssl.methods")


def test_plain_transformers_take_arguments_and_variables():
    program = "import os, sys; print(sys.argv[1:], os.environ['HF_HUB_CACHE'], os.environ['HF_MODULES_CACHE'])"
    first, second = (run_plain(program, 1, "two", HF_HUB_CACHE="/somewhere") for _ in range(2))
    assert first.startswith("['1', 'two'] /somewhere ") and first != second, (
        "code that comes with models is not shared"
    )
    with pytest.raises(Failed, match="exit code 3"):
        run_plain("import os; os._exit(3)")
    with pytest.raises(Failed, match="exit code -9"):
        run_plain("import time; time.sleep(60)", timeout=0.2)
