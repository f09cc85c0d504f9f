import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from methods.tester import MethodTester

from hf_ssl import CPCTextConfig, CPCTextForPreTraining, CPCTextModel, CPCTextModelConfig

TINY = dict(model_type="ssl_cpc_text_model", vocab_size=25, embedding_size=8, hidden_size=16)


class TestCPCText(MethodTester):
    model_class = CPCTextForPreTraining
    config = dict(backbone_config=TINY, context_size=12, prediction_steps=2)
    chance_loss = math.log(8 * 5)
    tolerance = 1e-5
    has_blocks = False
    has_hidden_states = False
    brings_its_code = True

    def batch(self, seed=0):
        """Documents of one of four topics, of three to five sentences; the words of a topic are six of their own."""
        generator = torch.Generator().manual_seed(seed)
        topics = torch.randint(0, 4, (8, 1, 1), generator=generator)
        input_ids = 1 + 6 * topics + torch.randint(0, 6, (8, 5, 7), generator=generator)
        lengths = torch.randint(2, 8, (8, 5, 1), generator=generator)
        counts = torch.randint(3, 6, (8, 1, 1), generator=generator)
        kept = (torch.arange(7) < lengths) & (torch.arange(5)[:, None] < counts)
        return dict(input_ids=input_ids * kept)

    def inputs(self):
        return dict(input_ids=self.batch()["input_ids"][:, 0])

    def test_loss_equals_a_slow_loop(self):
        """Equation 4 of the paper, one prediction at a time, over all sentences that there are; the positive once."""
        model, ids = self.model().eval(), self.batch()["input_ids"]
        output = model(ids)
        with torch.no_grad():
            z = {(n, s): model.embed(ids[n, s, ids[n, s] > 0][None])[0].double() for n in range(8) for s in range(5)
                 if ids[n, s].any()}  # fmt: skip
        gru, w = model.context.double(), model.predictor.linear.weight.double().view(2, 16, 12)
        losses = {1: [], 2: []}
        for n in range(8):
            for t in range(3):
                for k in (1, 2):
                    if (n, t + k) in z:
                        c = gru(torch.stack([z[n, s] for s in range(t + 1)])[None])[0][0, -1]
                        scores = {place: float(other @ w[k - 1] @ c) for place, other in z.items()}
                        own = scores.pop((n, t + k))
                        assert len(scores) == len(z) - 1
                        everything = math.exp(own) + sum(math.exp(score) for score in scores.values())
                        losses[k].append(math.log(everything) - own)
        assert len(losses[2]) < 8 * 3, "the batch must have a document that is shorter than the window"
        means = torch.tensor([sum(losses[k]) / len(losses[k]) for k in (1, 2)])
        assert output.loss.item() == pytest.approx(means.mean().item(), abs=1e-5)
        torch.testing.assert_close(output.metrics["nats"], math.log(len(z)) - means, rtol=0, atol=1e-5)
        assert output.metrics["most_nats"].item() == pytest.approx(math.log(len(z)))

    def test_targets_are_the_sentences_ahead(self):
        """Each prediction's target is the sentence k steps on, once among all candidates, and missing ones are nobody's."""
        model, ids = self.model().eval(), self.batch()["input_ids"]
        present = ids.ne(0).any(-1)
        targets, logits = model.targets(present), model(ids).logits
        assert logits.shape == (8, 3, 2, 40)
        for n in range(8):
            for t in range(3):
                for k in (1, 2):
                    assert targets[n, t, k - 1] == (n * 5 + t + k if present[n, t + k] else -100)
        assert torch.equal(logits.isinf().any((0, 1, 2)), ~present.flatten())

    def test_context_does_not_see_the_future(self):
        model, ids = self.model().eval(), self.batch()["input_ids"]
        changed = ids.clone()
        changed[:, 3:] = ids[:, 3:].flip(0)
        (_, before), (_, after) = model.encode(ids), model.encode(changed)
        assert torch.equal(before[:, :3], after[:, :3]) and not torch.allclose(before[:, 3:], after[:, 3:])

    def test_windows_that_are_too_short_are_refused(self):
        with pytest.raises(ValueError, match="prediction_steps 2 needs windows of more sentences, found 2"):
            self.model()(self.batch()["input_ids"][:, :2])

    @pytest.mark.parametrize("change", [{"context_size": 0}, {"prediction_steps": 0}])
    def test_impossible_configs_are_refused(self, change):
        with pytest.raises(StrictDataclassError, match=next(iter(change))):
            CPCTextConfig(**self.config | change)


def test_the_encoder_is_a_convolution_over_the_words():
    """That of torch, with padding and unknown words 0, its mean over the known words."""
    model = CPCTextModel(CPCTextModelConfig(**TINY)).eval()
    ids = torch.randint(1, 25, (4, 9))
    ids[0, 5:], ids[1, 3], ids[2] = 0, 0, 0
    weight = model.convolution.weight.view(16, 3, 8).transpose(1, 2)
    words = torch.conv1d(model.embeddings(ids).mT, weight, model.convolution.bias, padding=1).relu().mT
    words = words * ids.ne(0)[..., None]
    output = model(ids)
    torch.testing.assert_close(output.last_hidden_state, words)
    torch.testing.assert_close(output.pooler_output, words.sum(1) / ids.ne(0).sum(1).clamp(min=1)[:, None])
    assert not output.pooler_output[2].any()
    mask = (torch.arange(9) < 6).long().expand(4, -1)
    torch.testing.assert_close(model(ids, mask).pooler_output, model(ids[:, :6]).pooler_output)
    with pytest.raises(StrictDataclassError, match="kernel_size must be odd, found 2"):
        CPCTextModelConfig(kernel_size=2)
