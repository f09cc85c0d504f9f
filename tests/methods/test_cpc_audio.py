import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from methods.tester import MethodTester
from torch import nn

from hf_ssl import CPCAudioConfig, CPCAudioForPreTraining, CPCAudioModel, CPCAudioModelConfig
from hf_ssl.methods._cpc_audio_model import FrameConv1d
from hf_ssl.methods._futures import FuturePredictor, draw_negatives, future_info_nce, futures
from hf_ssl.methods._information import information_bound
from hf_ssl.methods.cpc_audio import POLICIES

TINY = dict(
    model_type="ssl_cpc_audio_model",
    conv_size=16,
    hidden_size=12,
    kernel_sizes=[10, 4],
    strides=[5, 2],
    paddings=[3, 1],
)


class TestCPCAudio(MethodTester):
    model_class = CPCAudioForPreTraining
    config = dict(backbone_config=TINY, prediction_steps=3, negatives=8)
    chance_loss = math.log(9)
    tolerance = 1e-5
    has_blocks = False
    brings_its_code = True

    def batch(self, seed=0):
        """Tones that glide, two voices."""
        generator = torch.Generator().manual_seed(seed)
        start, slope = torch.rand(2, 8, 1, generator=generator)
        time = torch.arange(400) / 400
        waves = torch.sin(2 * math.pi * (5 + 40 * start + 40 * slope * time) * time)
        seeds = torch.randint(2**62, (8,), generator=generator)
        return dict(input_values=waves, speaker_ids=torch.arange(8) % 2, sample_seeds=seeds)

    def test_loss_equals_a_slow_loop(self):
        """Equation 4 of the paper, one prediction at a time, over frames of the whole batch but the positive."""
        model = self.model().eval()
        batch = self.batch()
        negatives = torch.randint(0, 8 * 40, (8, 8), generator=torch.Generator().manual_seed(0))
        negatives[0, 0] = 10  # the positive of some predictions of the first window
        output = model(**batch, negatives=negatives)
        with torch.no_grad():
            encoded = model.backbone(batch["input_values"])
        z, c = encoded.extract_features.double().numpy(), encoded.last_hidden_state.double().numpy()
        w = model.predictor.linear.weight.detach().double().numpy().reshape(3, 16, 12)
        losses = []
        for n in range(8):
            for t in range(40 - 3):
                for k in (1, 2, 3):
                    scores = [z[n, t + k] @ w[k - 1] @ c[n, t]]
                    for place in negatives[n].tolist():
                        if place != n * 40 + t + k:
                            scores.append(z[place // 40, place % 40] @ w[k - 1] @ c[n, t])
                    losses.append(np.log(np.exp(scores).sum()) - scores[0])
        assert output.loss.item() == pytest.approx(np.mean(losses), abs=1e-5)

    def test_context_does_not_see_the_future(self):
        model = self.model().eval()
        batch = self.batch()
        changed = batch["input_values"].clone()
        changed[:, 200:] += 1.0
        before, after = (model.backbone(x).last_hidden_state for x in (batch["input_values"], changed))
        frame = 200 // 10 - 1  # the first frame whose convolutions reach sample 200
        assert torch.equal(before[:, :frame], after[:, :frame])
        assert not torch.allclose(before[:, frame + 1 :], after[:, frame + 1 :])

    def test_logged_bound(self):
        output = self.model().eval()(**self.batch())
        assert output.metrics["nats"].shape == (3,)
        assert output.metrics["nats"].mean().item() == pytest.approx(math.log(9) - output.loss.item(), abs=1e-5)
        assert output.metrics["most_nats"].item() == pytest.approx(math.log(9))

    def test_features_do_not_depend_on_padding(self):
        model = CPCAudioModel(CPCAudioModelConfig(**TINY)).eval()
        waves = torch.randn(2, 400)
        mask = (torch.arange(400) < torch.tensor([[237], [400]])).long()
        together, alone = model(waves * mask, mask), model(waves[:1, :237])
        frames = alone.last_hidden_state.shape[1]
        torch.testing.assert_close(together.last_hidden_state[:1, :frames], alone.last_hidden_state)
        torch.testing.assert_close(together.pooler_output[:1], alone.pooler_output)

    def test_state_is_carried(self):
        model = CPCAudioModel(CPCAudioModelConfig(**TINY, recurrent="lstm")).eval()
        frames = torch.randn(2, 30, 16)
        whole, _ = model.recurrent(frames)
        _, state = model.recurrent(frames[:, :20])
        torch.testing.assert_close(model.recurrent(frames[:, 20:], state)[0], whole[:, 20:])
        wave = torch.randn(2, 400)
        first = model(wave)
        assert not torch.allclose(model(wave, state=first.state).last_hidden_state, first.last_hidden_state)

    def test_windows_that_are_too_short_are_refused(self):
        with pytest.raises(ValueError, match="prediction_steps 3 needs windows of more frames, found 3"):
            self.model()(torch.randn(2, 30))

    def test_speakers_are_asked_for(self):
        model = CPCAudioForPreTraining(CPCAudioConfig(**self.config | dict(negative_policy="same_speaker")))
        with pytest.raises(ValueError, match="needs speaker_ids"):
            model(torch.randn(2, 400))
        model = CPCAudioForPreTraining(CPCAudioConfig(**self.config | dict(negative_policy="mixed_excluding_current")))
        with pytest.raises(ValueError, match="the batch of all processes is 1"):
            model.check_batch(1, 1)

    @pytest.mark.parametrize("change", [{"negative_policy": "none"}, {"prediction_steps": 0}, {"negatives": 0}])
    def test_impossible_configs_are_refused(self, change):
        with pytest.raises(StrictDataclassError, match=next(iter(change))):
            CPCAudioConfig(**self.config | change)


class SameSpeaker(TestCPCAudio):
    config = TestCPCAudio.config | dict(negative_policy="same_speaker_excluding_current")


def test_two_processes_draw_the_negatives_of_one():
    SameSpeaker().test_two_processes_equal_one()


def test_alignment():
    """All K futures of a time stand beside its prediction, and only times that have all of them predict."""
    z = torch.arange(10.0)[None, :, None]
    aligned = futures(z, 3)
    assert aligned.shape == (1, 7, 3, 1)
    assert all(aligned[0, t, k - 1] == t + k for t in range(7) for k in (1, 2, 3))
    predictor = FuturePredictor(4, 1, 3)
    contexts = torch.randn(2, 10, 4)
    assert predictor(contexts).shape == (2, 7, 3, 1)
    torch.testing.assert_close(predictor(contexts)[1, 6, 2, 0], contexts[1, 6] @ predictor.linear.weight[2])


def test_allowed_windows():
    """What each policy draws from, and what a window takes whose speaker is alone."""
    speakers = torch.tensor([0, 0, 1])
    expected = {
        "mixed": [[1, 1, 1], [1, 1, 1], [1, 1, 1]],
        "same_speaker": [[1, 1, 0], [1, 1, 0], [0, 0, 1]],
        "mixed_excluding_current": [[0, 1, 1], [1, 0, 1], [1, 1, 0]],
        "same_speaker_excluding_current": [[0, 1, 0], [1, 0, 0], [1, 1, 0]],
        "current": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    }
    for policy in POLICIES:
        model = CPCAudioForPreTraining(CPCAudioConfig(backbone_config=TINY, negative_policy=policy))
        allowed = model._allowed(3, speakers, speakers.device)
        assert allowed.int().tolist() == expected[policy], policy
        drawn = draw_negatives(allowed, 5, 4000, torch.arange(3)) // 5
        for row, windows in zip(allowed, drawn, strict=True):
            share = torch.bincount(windows, minlength=3) / len(windows)
            assert (share - row / row.sum()).abs().max() < 0.04, policy


def test_the_positive_is_never_a_negative_and_perfect_predictions_reach_the_bound():
    z = F.normalize(torch.randn(2, 20, 64), dim=2)
    negatives = torch.arange(40).repeat(2, 1)  # every frame of both, the positives too
    losses, hits, logits = future_info_nce(100 * futures(z, 4), z, negatives)
    assert (logits.isinf().sum(-1) == 1).all(), "exactly the positive itself is left out"
    assert (hits == 1).all() and (losses < 1e-3).all()
    bound = information_bound(losses, 41)
    torch.testing.assert_close(bound["nats"], torch.full((4,), math.log(41)), atol=1e-3, rtol=0)
    assert (bound["nats"] <= bound["most_nats"]).all()


@pytest.mark.parametrize("length", [400, 403, 237])
def test_a_convolution_as_a_matrix_product(length):
    """What bfloat16 on a CPU computes is the convolution, whatever is left over at the end."""
    convolution = FrameConv1d(3, 8, 8, 4, 2)
    frames = torch.randn(2, length, 3)
    expected = nn.functional.conv1d(frames.transpose(1, 2), convolution.weight, convolution.bias, 4, 2).transpose(1, 2)
    torch.testing.assert_close(convolution(frames), expected)
    assert expected.shape[1] == convolution.output_lengths(length)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(convolution(frames).float(), expected, atol=0.05, rtol=0.05)
