import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from methods.tester import TINY_RESNET, TINY_VIT, MethodTester
from PIL import Image

from hf_ssl import RotationConfig, RotationForPreTraining
from hf_ssl.methods.rotation import rotate


class TestRotation(MethodTester):
    model_class = RotationForPreTraining
    config = dict(backbone_config=TINY_RESNET)
    chance_loss = math.log(4)
    tolerance = 5e-6

    def batch(self, seed=0):
        """Landscapes: bright above, dark below, of any colour."""
        generator = torch.Generator().manual_seed(seed)
        height = torch.linspace(1, -1, 16)[:, None].expand(8, 3, 16, 16)
        colour = torch.randn(8, 3, 1, 1, generator=generator)
        return {"pixel_values": height + colour + 0.3 * torch.randn(8, 3, 16, 16, generator=generator)}

    def test_labels_are_quarter_turns_counter_clockwise(self):
        image = torch.randint(0, 255, (1, 3, 5, 5), dtype=torch.uint8)
        picture = Image.fromarray(image[0].permute(1, 2, 0).numpy())
        for label, turned in enumerate(rotate(image, 4)):
            assert np.array_equal(turned.permute(1, 2, 0), picture.rotate(90 * label))  # PIL turns counter-clockwise
            assert np.array_equal(turned, np.rot90(image[0], label, axes=(1, 2)))
        assert torch.equal(rotate(image, 2)[1], rotate(image, 4)[2])

    def test_loss_and_accuracy_equal_a_slow_formula(self):
        """The mean of -log p(y | x turned by y x 90 degrees) over images and y, one at a time."""
        model, batch = self.model().eval(), self.batch()
        output = model(**batch)
        losses, hits = [], []
        for image in batch["pixel_values"].numpy():
            for label in range(4):
                turned = torch.from_numpy(np.rot90(image, label, axes=(1, 2)).copy())[None]
                with torch.no_grad():
                    features = model.embed(turned)[0].double().numpy()
                logits = model.head.weight.detach().double().numpy() @ features + model.head.bias.detach().numpy()
                losses.append(np.log(np.exp(logits).sum()) - logits[label])
                hits.append(logits.argmax() == label)
        assert output.loss.item() == pytest.approx(np.mean(losses), abs=1e-6)
        assert output.metrics["accuracy"].item() == np.mean(hits)

    def test_two_turns(self):
        model = RotationForPreTraining(RotationConfig(**self.config, rotations=2)).train()
        wide = torch.randn(4, 3, 12, 16)
        output = model(wide)
        assert output.logits.shape == (8, 2)
        assert output.loss.item() == pytest.approx(math.log(2), abs=0.5)

    def test_eight_turns(self):
        """Odd ones as PIL turns, interpolated linearly; within the circle that fits in."""
        y, x = torch.meshgrid(torch.linspace(0, 3, 32), torch.linspace(0, 3, 32), indexing="ij")
        image = ((y.sin() + x.cos()) * 60 + 100)[None, None].expand(1, 3, 32, 32).contiguous()
        turned = rotate(image, 8)
        inner = torch.meshgrid(torch.arange(32) - 15.5, torch.arange(32) - 15.5, indexing="ij")
        inner = inner[0].square() + inner[1].square() < 14.5**2
        for label, own in enumerate(turned):
            picture = Image.fromarray(image[0, 0].numpy()).rotate(45 * label, resample=Image.Resampling.BILINEAR)
            np.testing.assert_allclose(own[0][inner], np.asarray(picture)[inner], atol=0.05)
            assert (own[:, 0, 0] == 0).all()
        model = RotationForPreTraining(RotationConfig(**self.config, rotations=8)).train()
        output = model(**self.batch())
        assert output.logits.shape == (64, 8) and output.metrics["chance"].item() == 1 / 8

    @torch.no_grad()
    def test_the_picture_says_what_the_model_says(self):
        model, pixels = self.model().eval(), self.batch()["pixel_values"]
        lines = model.pretext_lines(pixels)
        assert [line.name for line in lines] == ["0°", "90°", "180°", "270°"]
        for label, line in enumerate(lines):
            assert torch.equal(line.images, torch.rot90(pixels, label, (-2, -1)))
            answers = model.head(model.embed(line.images)).argmax(1)
            assert line.captions == [f"{90 * answer}°" for answer in answers]
            assert torch.equal(line.right, answers == label)

    def test_two_processes_that_compute_activations_twice_equal_one(self):
        self.test_two_processes_equal_one(checkpointing=True)

    def test_vit(self):
        model = RotationForPreTraining(RotationConfig(backbone_config=TINY_VIT)).train()
        model(**self.batch()).loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)

    def test_what_cannot_be_turned_is_refused(self):
        with pytest.raises(ValueError, match="rotations=4 needs square images, found 12 x 16"):
            self.model()(torch.zeros(2, 3, 12, 16))
        for rotations in (0, 3, 16):
            with pytest.raises(StrictDataclassError, match=f"rotations must be 2, 4 or 8, found {rotations}"):
                RotationConfig(rotations=rotations)
