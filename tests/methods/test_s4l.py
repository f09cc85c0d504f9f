import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from methods.few_labels import CLASSIFIER, FewLabelsTester, cross_entropy, logits_of, statistics
from transformers import AutoConfig

from hf_ssl import S4LConfig, S4LForPreTraining


class TestUpright(FewLabelsTester):
    """With labelled images as they are."""

    model_class = S4LForPreTraining
    config = dict(backbone_config=CLASSIFIER, rotate_labelled=False)


class TestS4L(FewLabelsTester):
    model_class = S4LForPreTraining

    @pytest.mark.parametrize("rotate_labelled", [True, False])
    def test_loss_equals_a_slow_formula(self, rotate_labelled):
        """Classes of the labelled images in all turns; turns of both kinds, a mean each, and the mean of the two. Or classes of
        the labelled images as they are, and turns of the others."""
        model, batch = self.decided_model(rotation_weight=0.7, rotate_labelled=rotate_labelled), self.batch()
        classes, turns = [], []
        for name in ("labelled_pixel_values", "pixel_values"):
            losses = []
            for image_number, image in enumerate(batch[name].numpy()):
                for turn in range(4):
                    turned = torch.from_numpy(np.rot90(image, turn, axes=(1, 2)).copy())
                    with torch.no_grad():
                        logits = model.turn_head(model.embed(turned[None])).double().numpy()
                    losses.append(cross_entropy(logits, [turn]))
                    if name == "labelled_pixel_values" and (rotate_labelled or turn == 0):
                        label = batch["labels"][image_number].item()
                        classes.append(cross_entropy(logits_of(model.backbone, turned[None]), [label]))
            turns.append(np.mean(losses))
        turns = turns if rotate_labelled else turns[1:]
        output = model(**batch)
        assert output.metrics["rotation"].item() == pytest.approx(np.mean(turns), rel=1e-5)
        assert output.loss.item() == pytest.approx(np.mean(classes) + 0.7 * np.mean(turns), rel=1e-5)
        assert output.logits.shape == (8, 4)

    def test_labelled_images_that_are_not_turned_alone_move_running_statistics(self):
        model, batch = self.model().train(), self.batch()
        model.config.rotate_labelled = False
        alone = model.export_encoder().train()
        alone(batch["labelled_pixel_values"])
        model(**batch)
        for name, value in statistics(alone).items():
            torch.testing.assert_close(model.backbone.get_buffer(name), value)

    def test_what_cannot_be_is_refused(self):
        with pytest.raises(StrictDataclassError, match="rotation_weight must be at least 0, found -1.0"):
            S4LConfig(backbone_config=CLASSIFIER, rotation_weight=-1.0)
        with pytest.raises(ValueError, match="^S4L turns images by 90 degrees: expected square ones, found 8 x 16"):
            self.model()(**{name: x[..., :8, :] if x.ndim == 4 else x for name, x in self.batch().items()})
        config = AutoConfig.for_model("textnet", num_labels=4)
        with pytest.raises(ValueError, match="^backbone_config of model_type 'textnet' gives a head without a linear"):
            S4LForPreTraining(S4LConfig(backbone_config=config.to_dict()))
