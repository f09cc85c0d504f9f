"""What the tests of semi-supervised methods share: images of four classes, some with labels, and formulas in NumPy."""

import math

import numpy as np
import torch
from methods.tester import TINY_RESNET, TINY_VIT, MethodTester, train_two_steps
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

CLASSIFIER = TINY_RESNET | dict(num_labels=4)


class FewLabelsTester(MethodTester):
    """Eight images with labels beside eight without, in the middle of the run."""

    config = dict(backbone_config=CLASSIFIER)
    chance_loss = math.log(4)  # of the labelled images alone, as other terms weigh nothing at first
    tolerance = 5e-6
    released_heads = ("classifier.",)
    size = 8
    noise = 0.3, 0.3  # of the first and the second view

    def model(self, seed=0):
        model = super().model(seed)
        if hasattr(model, "progress"):
            model.progress.fill_(0.5)
        return model

    def batch(self, seed=0):
        """Waves whose direction and colour are those of the class, with a phase of their own; rows of 16, of class row % 4."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(16, generator=generator)[: self.size]
        labels = torch.randperm(self.size, generator=generator) % 4
        waves, labelled = (class_waves(classes, generator) for classes in (rows % 4, labels))
        noises = torch.randn(3, *waves.shape, generator=generator)
        return {
            "pixel_values": waves + self.noise[0] * noises[0],
            "pixel_values_2": waves + self.noise[1] * noises[1],
            "labelled_pixel_values": labelled + 0.3 * noises[2],
            "labels": labels,
            "sample_indices": rows,
            "sample_seeds": torch.arange(self.size) + self.size * seed,
        }

    def decided_model(self, **changes):
        """One in eval mode whose predictions differ much between images, some of them confident."""
        model = self.model()
        for name, value in changes.items():
            setattr(model.config, name, value)
        with torch.no_grad():
            for head in (module.classifier[1] for module in model.modules() if hasattr(module, "classifier")):
                head.weight *= 10
        return model.eval()

    def released_network(self, model):
        return model.get_submodule(next(iter(self.teachers), "backbone"))

    def test_what_is_released_is_a_classifier(self, tmp_path):
        """Of the averaged weights where there are any, with the names of the classes."""
        model = train_two_steps(self, self.model().train()).eval()
        network = self.released_network(model)
        network.config.id2label = {0: "boot", 1: "bag", 2: "coat", 3: "shirt"}
        model.export_encoder().save_pretrained(tmp_path)
        loaded, report = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values()), report
        assert type(loaded).__module__.startswith("transformers.models.") and loaded.config.id2label[3] == "shirt"
        pixels = self.batch()["pixel_values"]
        logits = loaded(pixels).logits
        torch.testing.assert_close(logits, network(pixels).logits)
        assert bool(self.teachers) != torch.allclose(logits, model.backbone(pixels).logits, atol=1e-6)

    def test_begins_as_an_encoder_or_as_a_classifier(self):
        """Of an encoder the head stays as it was drawn; averages begin as the network."""
        for auto_class in (AutoModel, AutoModelForImageClassification):
            torch.manual_seed(7)
            other, model = auto_class.from_config(AutoConfig.for_model(**CLASSIFIER)), self.model()
            head = model.backbone.classifier[1].weight.clone()
            model.load_encoder(other)
            for network in (model.backbone, self.released_network(model)):
                weights = dict(network.base_model.state_dict())
                for name, tensor in getattr(other, other.base_model_prefix, other).state_dict().items():
                    assert torch.equal(weights[name], tensor), name
                expected = head if auto_class is AutoModel else other.classifier[1].weight
                assert torch.equal(network.classifier[1].weight, expected)

    def test_a_vit_is_a_backbone_too(self):
        """Each weight that is trained gets a gradient, and what is released says what `embed` was read from."""
        config = self.config | dict(backbone_config=TINY_VIT | dict(num_labels=4))
        model = self.model_class(self.model_class.config_class(**config)).train()
        model(**self.batch()).loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        pixels, released = self.batch()["pixel_values"], model.eval().export_encoder()
        torch.testing.assert_close(released.classifier(model.embed(pixels)), released(pixels).logits)

    def test_half_precision_is_finite(self):
        model = self.model().train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**self.batch()).loss
        loss.backward()
        assert loss.dtype == torch.float32
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def class_waves(classes, generator):
    along = torch.linspace(0, 6, 16)
    angle = classes.view(-1, 1, 1, 1) * math.pi / 4
    phase = torch.rand(len(classes), 1, 1, 1, generator=generator) * 2
    waves = (angle.cos() * along[:, None] + angle.sin() * along + phase).sin()
    return waves + torch.stack([angle.cos(), angle.sin(), -angle.cos()], dim=1).flatten(2)[..., None]


@torch.no_grad()
def logits_of(network, images):
    """(N, K) in float64, one image at a time."""
    return np.concatenate([network(image[None]).logits.double().numpy() for image in images])


def uneven(model):
    """Give the alignment of a model in eval mode uneven frequencies. Returns what it then adds to logits, (K,): as it normalises,
    factors of probabilities are terms of logits."""
    of_labels, of_guesses = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.1, 0.2, 0.3, 0.4])
    model.alignment.frequencies.copy_(torch.tensor(np.stack([of_labels, of_guesses])))
    return np.log((of_labels + 1e-6) / (of_guesses + 1e-6))


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def cross_entropy(logits, targets):
    """The mean over (N, K) with classes (N,) or probabilities (N, K) as targets."""
    log_p = np.log(softmax(logits))
    targets = np.asarray(targets)
    targets = np.eye(logits.shape[1])[targets] if targets.ndim == 1 else targets
    return -np.mean([(target * row).sum() for target, row in zip(targets, log_p, strict=True)])


def gradients(loss, model):
    """Of the weights that are trained, by name."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), retain_graph=True)
    return dict(zip(named, found, strict=True))


def assert_same_gradients(one, other):
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(
            gradient, other[name], rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def statistics(network):
    """Running means and variances, and how often they were moved."""
    return {name: buffer.clone() for name, buffer in network.named_buffers()}
