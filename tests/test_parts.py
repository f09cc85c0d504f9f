"""The parts that methods are made of."""

import itertools

import numpy as np
import pytest
import torch
import torchvision
from huggingface_hub.errors import StrictDataclassError
from methods.tester import TINY_RESNET, TINY_VIT
from processes import on_pair, run_plain
from torch import nn
from torch.nn.functional import softplus
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

import hf_ssl.methods._random as random_numbers
from hf_ssl import SSLAlexNetConfig, SSLAlexNetModel, SSLTwoHalvesConfig, SSLTwoHalvesModel
from hf_ssl.methods._backbone import (
    build_backbone,
    check_backbone,
    classify,
    is_classifier,
    load_parts,
    native_copy,
    pooled,
)
from hf_ssl.methods._base import SSLConfig, SSLModel, SSLOutput
from hf_ssl.methods._batch_norm import GlobalBatchNorm, fixed_running_statistics
from hf_ssl.methods._dcgan import DownConvolutions, Generator, UpConvolutions
from hf_ssl.methods._detached import with_detached_weights
from hf_ssl.methods._distributed import own_part, sum_with_gradient
from hf_ssl.methods._memory import write_rows
from hf_ssl.methods._momentum import momentum_update
from hf_ssl.methods._semi_supervised import (
    build_classifier,
    classify_all,
    confident_cross_entropy,
    linear_ramp,
    sigmoid_ramp,
)
from hf_ssl.methods._sobel import Sobel, SSLSobelConfig, SSLSobelModel


def test_no_two_streams_are_alike():
    streams = {name: value for name, value in vars(random_numbers).items() if name.endswith("_STREAM")}
    of_tokens = {name: streams.pop(name) for name in list(streams) if name.startswith("HIDDEN_")}
    first_view = streams.pop("VIEW_STREAM")
    views = range(first_view, first_view + 99)
    assert len({*streams.values(), *views}) == len(streams) + 99
    assert len({*of_tokens.values(), streams["NEGATIVES_STREAM"]}) == len(of_tokens) + 1


class TestBase:
    def test_names_of_the_log_are_refused_as_metrics(self):
        assert SSLOutput(torch.tensor(1.0), metrics={"accuracy": torch.tensor(0.5)}).metrics["accuracy"] == 0.5
        for name in ("loss", "learning_rate", "step", "epoch"):
            with pytest.raises(ValueError, match=f"^metrics must not be called .*; found {name}.$"):
                SSLOutput(torch.tensor(1.0), metrics={"accuracy": torch.tensor(0.5), name: torch.tensor(0.5)})

    def test_one_backbone_is_what_is_embedded_and_released(self):
        config = AutoConfig.for_model(**TINY_RESNET)
        model = SSLModel(SSLConfig()).eval()
        model.backbone = build_backbone(config).eval()
        pixels = torch.randn(2, 3, 16, 16)
        with torch.no_grad():
            expected = model.backbone(pixels).pooler_output.flatten(1)
            assert torch.equal(model.embed(pixels), expected)
            assert torch.equal(model.export_encoder()(pixels).pooler_output.flatten(1), expected)

    def test_without_one_backbone_the_defaults_say_so(self):
        model = SSLModel(SSLConfig())
        with pytest.raises(NotImplementedError, match="no module `backbone` and does not define embed"):
            model.embed(torch.zeros(2, 3, 16, 16))
        with pytest.raises(NotImplementedError, match="no module `backbone` and does not define export_encoder"):
            model.export_encoder()
        model.backbone = build_backbone(AutoConfig.for_model(**TINY_VIT | {"model_type": "vit_mae"}))
        with pytest.raises(ValueError, match="ViTMAEModel gives no pooler_output"):
            model.embed(torch.zeros(2, 3, 16, 16))


def on_each_process():
    """What the parts that span processes compute of a batch of 8, of which each process holds a part."""
    values = {f"sum: {name}": value for name, value in summed().items()} | {"bank": written()}
    for affine in (False, True):
        for x in (WAVES, WAVES[:, :, 0, 0]):
            found = normalized(x, affine).items()
            values |= {f"norm, affine={affine}, {x.ndim} axes: {name}": value for name, value in found}
    return {name: value.numpy() for name, value in values.items()}


WAVES = torch.arange(8 * 3 * 4 * 4.0, dtype=torch.float64).mul(0.7).sin().add(0.3).view(8, 3, 4, 4)


def normalized(x, affine):
    norm = GlobalBatchNorm(3, affine=affine).double()
    x = own_part(x).clone().requires_grad_()
    for _ in range(2):  # the running statistics move twice
        y = norm(x)
    y.pow(3).sum().backward()
    gradients = {f"gradient of {name}": p.grad for name, p in norm.named_parameters()}
    if torch.distributed.is_initialized():
        for gradient in gradients.values():
            torch.distributed.all_reduce(gradient)
    return {"of x": x.grad, "y": y.detach()} | gradients | dict(norm.named_buffers())


def summed():
    """A loss of a sum over the batch, through DDP as the loop's."""
    torch.manual_seed(0)
    network = nn.Linear(4, 2).double()
    model = DistributedDataParallel(network) if torch.distributed.is_initialized() else network
    rows = model(own_part(WAVES[:, 0, 0]))
    total = sum_with_gradient(rows.T @ rows)
    total.det().backward()
    return {"total": total.detach()} | {name: p.grad for name, p in network.named_parameters()}


def written():
    """Row 5 stands twice on one process, row 2 on both, row 7 three times."""
    bank, indices = torch.zeros(9, 2), torch.tensor([5, 2, 5, 7, 2, 7, 0, 7])
    write_rows(bank, own_part(indices), own_part(torch.arange(16.0, dtype=torch.float64).view(8, 2)))
    return bank


@pytest.fixture(scope="module")
def alone():
    return on_each_process()


class TestOverProcesses:
    def test_two_processes_equal_one(self, alone):
        for rank, values in enumerate(on_pair(on_each_process)):
            assert values.keys() == alone.keys()
            for name, value in values.items():
                expected = np.split(alone[name], 2)[rank] if name.endswith((": of x", ": y")) else alone[name]
                np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-12, err_msg=name)

    def test_global_batch_norm_alone_is_torch_s(self, alone):
        plain, x = nn.BatchNorm2d(3, affine=False).double(), WAVES.clone().requires_grad_()
        plain(x), plain(x).pow(3).sum().backward()
        np.testing.assert_allclose(alone["norm, affine=False, 4 axes: of x"], x.grad)

    def test_the_last_of_equal_rows_is_written(self, alone):
        expected = np.zeros((9, 2), np.float32)
        for place, row in ((5, 2), (2, 4), (0, 6), (7, 7)):
            expected[place] = 2 * row, 2 * row + 1
        np.testing.assert_array_equal(alone["bank"], expected)


class TestFixedRunningStatistics:
    def test_batches_normalise_and_move_nothing(self):
        """Values and gradients are those of torch's own; afterwards statistics move again, after an error too."""
        network, plain = nn.Sequential(GlobalBatchNorm(3)).double(), nn.BatchNorm2d(3).double()
        before = {name: buffer.clone() for name, buffer in network.named_buffers()}
        x, y = WAVES.clone().requires_grad_(), WAVES.clone().requires_grad_()
        with fixed_running_statistics(network):
            found = network(x)
        torch.testing.assert_close(found, plain(y))
        found.pow(3).sum().backward(), plain(y).pow(3).sum().backward()
        torch.testing.assert_close(x.grad, y.grad)
        torch.testing.assert_close(network[0].weight.grad, plain.weight.grad)
        assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
        with pytest.raises(ZeroDivisionError), fixed_running_statistics(network):
            raise ZeroDivisionError
        network(x)
        assert network[0].num_batches_tracked == 1 and not torch.equal(
            network[0].running_mean, before["0.running_mean"]
        )


class TestClassifiers:
    CONFIGS = [
        TINY_RESNET,
        TINY_RESNET | {"model_type": "ssl_resnet"},
        TINY_VIT,
        dict(model_type="convnext", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
        dict(
            model_type="dinov2",
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=16,
            patch_size=4,
        ),
    ]

    @pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config["model_type"])
    def test_logits_and_what_the_head_reads(self, config):
        classifier = build_classifier(AutoConfig.for_model(**config, num_labels=5)).eval()
        assert is_classifier(classifier) and not is_classifier(classifier.base_model)
        pixels = torch.randn(2, 3, 16, 16)
        with torch.no_grad():
            logits, features = classify(classifier, pixels)
            assert torch.equal(logits, classifier(pixels).logits) and logits.shape == (2, 5)
            torch.testing.assert_close(classifier.classifier(features), logits)
            assert torch.equal(pooled(classifier, pixels), features)
            assert torch.equal(native_copy(classifier)(pixels).logits, logits)
        assert not classifier.classifier._forward_pre_hooks

    def test_networks_that_are_none_are_refused(self):
        for config, message in (
            (
                TINY_VIT | {"model_type": "vit_mae"},
                "'vit_mae' has no image classifier in transformers: choose another",
            ),
            (
                dict(model_type="timm_wrapper", architecture="resnet18"),
                "'timm_wrapper' gives a classifier without a head",
            ),
        ):
            with pytest.raises(ValueError, match=message):
                build_classifier(AutoConfig.for_model(**config))

    def test_of_an_encoder_only_the_encoder_is_loaded(self):
        """And of a file that lacks some of it, what it has."""
        config = AutoConfig.for_model(**TINY_RESNET)
        one, other = (AutoModelForImageClassification.from_config(config) for _ in range(2))
        head, stem = one.classifier[1].weight.clone(), "embedder.embedder.convolution.weight"
        kept = one.resnet.state_dict()[stem].clone()
        load_parts(one, other.resnet, missing=[stem])
        assert torch.equal(one.classifier[1].weight, head) and torch.equal(one.resnet.state_dict()[stem], kept)
        for name, tensor in other.resnet.state_dict().items():
            assert torch.equal(one.resnet.state_dict()[name], tensor) == (name != stem), name
        load_parts(one, other)
        assert torch.equal(one.classifier[1].weight, other.classifier[1].weight)


@pytest.mark.parametrize("separate", [False, True])
def test_classifying_all_gives_each_kind_its_logits(separate):
    """In eval mode the same either way; the features are those of the first unlabelled images."""
    torch.manual_seed(0)
    classifier = build_classifier(AutoConfig.for_model(**TINY_RESNET, num_labels=5)).eval()
    kinds = [torch.randn(count, 3, 16, 16) for count in (2, 3, 3)]
    *logits, features = classify_all(classifier, *kinds, separate=separate)
    for own, images in zip(logits, kinds, strict=True):
        torch.testing.assert_close(own, classifier(images).logits)
    torch.testing.assert_close(features, pooled(classifier, kinds[1]))


def test_ramps_equal_their_formulas():
    for t in (-1.0, 0.0, 0.1, 0.3, 0.7, 1.0, 3.0):
        inside = min(max(t, 0), 1)
        assert sigmoid_ramp(torch.tensor(t)).item() == pytest.approx(np.exp(-5 * (1 - inside) ** 2), abs=1e-6)
        assert linear_ramp(torch.tensor(t)).item() == pytest.approx(inside, abs=1e-6)
        expected = max(0, (inside - 0.25) / 0.75)
        assert linear_ramp(torch.tensor(t), 0.25).item() == pytest.approx(expected, abs=1e-6)


def test_nothing_is_confident_at_first_and_that_is_a_loss_of_0():
    logits = torch.zeros(3, 4, requires_grad=True)
    loss, confident = confident_cross_entropy(logits, torch.full((3, 4), 0.25), torch.tensor([0, 1, 2]), 0.5)
    assert loss == 0 and confident == 0
    loss.backward()
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("momentum", [0.7, torch.tensor(0.7)])
def test_averages_move_by_momentum(momentum):
    """Parameters, and not buffers; the momentum is a number or stays on its device."""
    average, network = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    network.weight.data, network.running_mean = torch.tensor([2.0, 3, -1]), torch.ones(3)
    momentum_update(average, network, momentum)
    momentum_update(average, network, momentum)
    torch.testing.assert_close(average.weight.detach(), 0.49 * torch.ones(3) + 0.51 * network.weight.detach())
    assert (average.running_mean == 0).all() and torch.equal(network.weight.detach(), torch.tensor([2.0, 3, -1]))


class TestTwoPlayers:
    """A discriminator with batch norm, in training mode, against a generator."""

    def players(self):
        torch.manual_seed(0)
        generator = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
        discriminator = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        return generator, discriminator, torch.randn(16, 3), torch.randn(16, 4)

    def test_one_backward_pass_gives_the_gradients_of_two_optimizers(self):
        generator, discriminator, noise, real = self.players()
        fake = generator(noise)
        tells = softplus(-discriminator(real)).mean() + softplus(discriminator(fake.detach())).mean()
        fools = softplus(-discriminator(fake)).mean()
        expected = [
            *torch.autograd.grad(fools, [*generator.parameters()], retain_graph=True),
            *torch.autograd.grad(tells, [*discriminator.parameters()]),
        ]
        generator, discriminator, noise, real = self.players()
        fake = generator(noise)
        tells = softplus(-discriminator(real)).mean() + softplus(discriminator(fake.detach())).mean()
        fools = softplus(-with_detached_weights(discriminator, fake)).mean()
        (tells + fools).backward()
        found = [p.grad for p in (*generator.parameters(), *discriminator.parameters())]
        assert len(found) == len(expected) == 12 and all(map(torch.equal, found, expected))

    def test_running_statistics_move_as_in_any_call(self):
        _, discriminator, _, real = self.players()
        _, other, _, _ = self.players()
        assert torch.equal(with_detached_weights(discriminator, real), other(real))
        assert all(map(torch.equal, discriminator.buffers(), other.buffers()))
        assert discriminator[1].num_batches_tracked == 1
        assert all(p.requires_grad for p in discriminator.parameters())


class TestDCGAN:
    @pytest.mark.parametrize(
        "side, size, start, widths",
        [(4, 28, 4, [16, 8]), (4, 14, 4, [8]), (6, 227, 8, [64, 32, 16, 8]), (3, 96, 3, [64, 32, 16, 8])],
    )
    def test_up_convolutions_reach_the_size_that_is_asked(self, side, size, start, widths):
        with torch.device("meta"):
            network = UpConvolutions(64, 3, side, size, 8)
            assert network(torch.zeros(2, 64, side, side)).shape == (2, 3, size, size)
        found = [module for module in network.modules() if isinstance(module, nn.ConvTranspose2d)]
        assert [found[0].in_channels, *(each.out_channels for each in found)] == [
            64,
            *widths,
            3,
        ] and network.start == start

    def test_generator_and_down_convolutions_fit_each_other(self):
        for size in (5, 16, 28, 65):
            images = Generator(7, 3, size, 8)(torch.randn(2, 7))
            network = DownConvolutions(3, size, 8)
            assert images.shape == (2, 3, size, size) and network(images).shape == (2, network.width)

    def test_what_is_too_much_is_cut_off_evenly(self):
        network = UpConvolutions(4, 1, 4, 28, 8).eval()
        x = torch.randn(1, 4, 4, 4)
        assert torch.equal(network(x), network.layers(x)[..., 2:30, 2:30])


WITHOUT_HF_SSL = """
import sys, torch
from transformers import AutoModel
folder, again = sys.argv[1:]
expected = torch.load(folder + "/expected.pt")
for source in (folder, again):
    model, report = AutoModel.from_pretrained(source, trust_remote_code=True, output_loading_info=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    assert not any(report.values()), report
    features = model(expected["pixels"]).pooler_output
    torch.testing.assert_close(features, expected["features"], rtol=0, atol=1e-6)
    model.save_pretrained(again)
"""


def check_release(model, pixels, tmp_path, files):
    """A network of ours loads where hf_ssl is installed and where it is not, from its folder and from a copy made there."""
    folder = tmp_path / "release"
    model.save_pretrained(folder)
    assert sorted(path.name for path in folder.glob("*.py")) == files
    torch.save({"pixels": pixels, "features": model(pixels).pooler_output}, folder / "expected.pt")
    run_plain(WITHOUT_HF_SSL, folder, tmp_path / "again")
    for source in (folder, tmp_path / "again"):
        loaded = AutoModel.from_pretrained(source).eval()
        assert type(loaded) is type(model)
        assert torch.equal(loaded(pixels).pooler_output, model(pixels).pooler_output)


class TestTwoHalves:
    SMALL = TINY_RESNET | {"model_type": "ssl_resnet"}

    @torch.no_grad()
    def model(self, first=TINY_VIT, second=SMALL):
        torch.manual_seed(0)
        config = SSLTwoHalvesConfig(
            first_config=first | {"num_channels": 1}, second_config=second | {"num_channels": 2}
        )
        return SSLTwoHalvesModel(config).eval()

    @torch.no_grad()
    def test_features_are_those_of_the_halves_side_by_side(self):
        model, pixels = self.model(), torch.randn(2, 3, 16, 16)
        features = model(pixels).pooler_output
        first, second = model.first(pixels[:, :1]).pooler_output, model.second(pixels[:, 1:]).pooler_output.flatten(1)
        assert torch.equal(features, torch.cat([first, second], dim=1))
        assert check_backbone(model.config) == features.shape[1] == 32 + 16
        assert torch.equal(native_copy(model)(pixels).pooler_output, features)
        other = pixels.clone()
        other[:, 0] = 0  # the second half does not see it
        changed = (model(other).pooler_output != features).all(0)
        assert changed[:32].all() and not changed[32:].any()

    def test_any_channels(self):
        config = SSLTwoHalvesConfig(
            num_channels=5,
            first_channels=[3, 1],
            second_channels=[0],
            first_config=self.SMALL | {"num_channels": 2},
            second_config=self.SMALL | {"num_channels": 1},
        )
        pixels = torch.randn(2, 5, 8, 8)
        first, second = SSLTwoHalvesModel(config).split(pixels)
        assert torch.equal(first, pixels[:, [3, 1]]) and torch.equal(second, pixels[:, [0]])

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"first_channels": [3]}, r"first_channels must name some of the 3 channels, counted from 0, found \[3\]"),
            ({"second_channels": []}, r"second_channels must name some of the 3 channels, counted from 0, found \[\]"),
            ({"first_channels": [0, 1]}, "first_config must have num_channels=2, as many as first_channels, found 1"),
        ],
    )
    def test_channels_that_do_not_fit_are_refused(self, change, message):
        with pytest.raises(StrictDataclassError, match=message):
            SSLTwoHalvesConfig(**change)

    @torch.no_grad()
    def test_a_release_loads_with_and_without_hf_ssl(self, tmp_path):
        files = ["_alexnet.py", "_colour_spaces.py", "_resnet.py", "_sobel.py", "_two_halves.py"]
        check_release(self.model(), torch.randn(2, 3, 16, 16), tmp_path, files)


class TestSobel:
    def test_equals_a_slow_formula(self):
        """DeepCluster's two layers: a third of each channel, then two kernels of 3x3 with zeros beyond the border."""
        images = torch.randn(2, 3, 6, 5)
        across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
        padded = nn.functional.pad(images.sum(1) / 3, (1, 1, 1, 1))
        found = Sobel()(images)
        assert found.shape == (2, 2, 6, 5)
        for n, y, x in itertools.product(range(2), range(6), range(5)):
            patch = padded[n, y : y + 3, x : x + 3]
            expected = torch.stack([(patch * across).sum(), (patch * across.T).sum()])
            torch.testing.assert_close(found[n, :, y, x], expected, rtol=0, atol=1e-5)

    def test_a_network_of_other_channels_is_refused(self):
        with pytest.raises(
            StrictDataclassError, match="encoder_config must have num_channels=2, across and down, found 3"
        ):
            SSLSobelConfig(encoder_config=TINY_RESNET)

    @torch.no_grad()
    @pytest.mark.parametrize("encoder", [{"model_type": "ssl_alexnet", "stride": 1}, TestTwoHalves.SMALL])
    def test_a_release_loads_with_and_without_hf_ssl(self, encoder, tmp_path):
        torch.manual_seed(0)
        model = SSLSobelModel(SSLSobelConfig(encoder_config=encoder | {"num_channels": 2})).eval()
        check_release(model, torch.randn(2, 3, 16, 16), tmp_path, ["_alexnet.py", "_resnet.py", "_sobel.py"])


class TestAlexNet:
    def model(self, **changes):
        torch.manual_seed(0)
        return SSLAlexNetModel(SSLAlexNetConfig(**changes)).eval()

    @torch.no_grad()
    def test_features_are_those_of_torchvision(self):
        """Whose network has biases in the place of batch norm."""
        original, model = torchvision.models.alexnet().eval(), self.model()
        convolutions = [module for module in original.features if isinstance(module, nn.Conv2d)]
        for layer, convolution in zip(model.layers, convolutions, strict=True):
            layer[0].weight.copy_(convolution.weight)
            layer[1].weight.fill_((1 + layer[1].eps) ** 0.5)
            layer[1].bias.copy_(convolution.bias)
        pixels = found = torch.randn(2, 3, 224, 224)
        expected = []
        for module in original.features:
            found = module(found)
            if isinstance(module, nn.ReLU):
                expected.append(found)
        output = model(pixels, output_hidden_states=True)
        torch.testing.assert_close(output.hidden_states, tuple(expected), rtol=1e-4, atol=1e-5)
        assert torch.equal(output.last_hidden_state, output.hidden_states[-1])
        assert torch.equal(output.pooler_output, output.last_hidden_state.mean((2, 3), keepdim=True))
        assert [each.shape[-1] for each in expected] == [55, 27, 13, 13, 13]

    @pytest.mark.parametrize("stride", [1, 2, 4])
    def test_images_are_as_small_as_it_says_and_no_smaller(self, stride):
        model = self.model(stride=stride, hidden_sizes=[4] * 5)
        least = model.config.smallest_size
        assert model(torch.zeros(1, 3, least, least)).last_hidden_state.shape[-1] == 1
        with pytest.raises(ValueError, match=f"needs images of at least {least} px, found {least} x {least - 1}"):
            model(torch.zeros(1, 3, least, least - 1))
        with pytest.raises(RuntimeError):  # without that check
            model.config.stride = 0
            model(torch.zeros(1, 3, least, least - 1))

    @pytest.mark.parametrize("change", [{"stride": 0}, {"hidden_sizes": [4] * 4}, {"hidden_sizes": [0] * 5}])
    def test_sizes_that_make_no_network_are_refused(self, change):
        with pytest.raises(StrictDataclassError, match=f"{next(iter(change))} must be"):
            SSLAlexNetConfig(**change)

    @torch.no_grad()
    def test_a_release_loads_with_and_without_hf_ssl(self, tmp_path):
        model, pixels = self.model(stride=1, hidden_sizes=[4, 4, 4, 4, 8]), torch.randn(2, 3, 16, 16)
        assert check_backbone(model.config) == 8
        assert torch.equal(native_copy(model)(pixels).pooler_output, model(pixels).pooler_output)
        check_release(model, pixels, tmp_path, ["_alexnet.py"])
        classifier = AutoModelForImageClassification.from_pretrained(tmp_path / "release", num_labels=5).eval()
        assert type(classifier).__name__ == "SSLAlexNetForImageClassification"
        assert torch.equal(classifier.alexnet(pixels).pooler_output, model(pixels).pooler_output)
        output = classifier(pixels, labels=torch.tensor([4, 0]))
        expected = nn.functional.cross_entropy(output.logits, torch.tensor([4, 0]))
        assert output.logits.shape == (2, 5) and torch.equal(output.loss, expected)
