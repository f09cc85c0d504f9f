import itertools
import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from methods.tester import TINY_RESNET, TINY_VIT, MethodTester

from hf_ssl import JigsawConfig, JigsawForPreTraining
from hf_ssl.methods.jigsaw import distant_permutations

# of seed 3, everywhere: integers alone are compared
FIRST_FIVE = [
    [6, 1, 2, 0, 8, 5, 3, 4, 7], [0, 2, 1, 3, 4, 6, 5, 7, 8], [1, 0, 3, 2, 5, 4, 7, 8, 6], [2, 3, 0, 1, 6, 7, 8, 5, 4],
    [3, 4, 5, 6, 7, 8, 0, 1, 2],
]  # fmt: skip
SIZES = dict(tile_size=8, channel_shift=1, tile_features_size=16, head_hidden_size=64, permutations=10)


class TestJigsaw(MethodTester):
    model_class = JigsawForPreTraining
    config = dict(backbone_config=TINY_RESNET, **SIZES)
    chance_loss = math.log(10)
    tolerance = 2e-5

    def batch(self, seed=0):
        """Waves along both sides, whose phase tells the place."""
        generator = torch.Generator().manual_seed(seed)
        y, x = torch.meshgrid(torch.linspace(0, 3, 30), torch.linspace(0, 3, 30), indexing="ij")
        image = torch.stack([(3 * y).sin() + 0.3 * x, (4 * x).cos() + 0.3 * y, (y * x).sin()])
        images = image + 0.2 * torch.randn(8, 3, 30, 30, generator=generator)
        return {"pixel_values": images, "sample_seeds": torch.randint(2**62, (8,), generator=generator)}

    def inputs(self):
        return {"pixel_values": self.batch()["pixel_values"]}

    def plain(self, **changes):
        settings = dict(grey_probability=0.0, normalize_tiles=False, channel_shift=0)
        return JigsawForPreTraining(JigsawConfig(**self.config | settings | changes)).eval()

    @torch.no_grad()
    def test_the_picture_puts_tiles_back_as_the_model_says(self):
        model, images, seeds = self.plain(), torch.rand(40, 3, 30, 30), torch.arange(40)
        tiles, shuffled, solved = model.pretext_lines(images, None, seeds)
        assert tiles.images.shape == (40, 3, 26, 26)  # 8 + 1 + 8 + 1 + 8
        guesses = model.permutation_set[model(images, sample_seeds=seeds).logits.argmax(1)]
        orders = model.puzzles(images, seeds)[1]
        place = lambda picture, at: picture[:, at // 3 * 9 : at // 3 * 9 + 8, at % 3 * 9 : at % 3 * 9 + 8]  # noqa: E731
        for i in range(40):
            for slot in range(9):
                assert torch.equal(place(tiles.images[i], orders[i, slot]), place(shuffled.images[i], slot))
                assert torch.equal(place(solved.images[i], guesses[i, slot]), place(shuffled.images[i], slot))
            count = int((guesses[i] == orders[i]).sum())
            assert solved.captions[i] == f"{count} of 9" and solved.right[i] == (count == 9)
            assert solved.right[i] == torch.equal(solved.images[i], tiles.images[i])
        assert 0 < solved.right.sum() < 40

    def test_tiles_equal_slow_cuts(self):
        model, images = self.plain(), torch.randn(20, 3, 33, 30)
        tiles = model.tiles(images, torch.arange(20))
        offsets = set()
        for image, own in zip(images, tiles, strict=True):
            for cell, tile in enumerate(own):
                top, left = cell // 3 * 11, cell % 3 * 10
                at = [
                    (y, x)
                    for y, x in itertools.product(range(4), range(3))
                    if torch.equal(image[:, top + y : top + y + 8, left + x : left + x + 8], tile)
                ]
                assert len(at) == 1, "a tile that lies in its cell"
                offsets |= set(at)
        assert offsets == set(itertools.product(range(4), range(3)))

    def test_each_channel_is_shifted_by_itself(self):
        images = torch.arange(30.0).expand(20, 3, 30, 30)  # a pixel says in which column it is
        columns = self.plain(channel_shift=2).tiles(images, torch.arange(20))[..., 0, 0]  # (N, 9, C)
        apart = columns - columns[..., :1]
        assert set(apart.flatten().tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}
        assert (columns % 10).max() <= 2

    def test_slots_hold_the_tiles_that_the_label_says(self):
        """Slot s of a puzzle with label y has the tile of cell P[y][s]; the loss is -log p(y), one puzzle at a time."""
        model, batch = self.plain(), self.batch()
        output, cells = model(**batch), model.tiles(*batch.values())
        labels, losses = [], []
        with torch.no_grad():
            for puzzle, logits in zip(cells, output.logits, strict=True):
                own = []
                for permutation in model.permutation_set:
                    tiles = torch.stack([puzzle[cell] for cell in permutation])
                    described = torch.cat([model.tile_head(model.embed(tile[None])) for tile in tiles], dim=1)
                    own.append((model.head(described)[0] - logits).abs().max().item())
                labels.append(int(np.argmin(own)))
                assert min(own) < 1e-5
                scores = logits.double().numpy()
                losses.append(np.log(np.exp(scores).sum()) - scores[labels[-1]])
        assert len(set(labels)) > 2 and output.loss.item() == pytest.approx(np.mean(losses), abs=1e-5)
        guesses = output.logits.argmax(1)
        assert output.metrics["accuracy"].item() == pytest.approx((guesses == torch.tensor(labels)).float().mean())
        right = (model.permutation_set[guesses] == model.permutation_set[labels]).float().mean()
        assert output.metrics["tiles_right"].item() == pytest.approx(right.item())

    def test_grey_and_normalised(self):
        model = JigsawForPreTraining(JigsawConfig(**self.config | dict(grey_probability=0.3, channel_shift=0)))
        tiles, seeds = torch.rand(400, 9, 3, 8, 8), torch.arange(400)
        seen = model.as_seen(tiles, seeds)
        grey = (seen[:, :, 0] - seen[:, :, 1]).abs().amax((1, 2, 3)) < 1e-6
        assert 0.22 < grey.float().mean() < 0.38
        assert (grey == ((seen[:, :, 0] - seen[:, :, 2]).abs().amax((1, 2, 3)) < 1e-6)).all()
        torch.testing.assert_close(seen.mean((-2, -1)), torch.zeros(400, 9, 3), rtol=0, atol=1e-5)
        torch.testing.assert_close(seen.square().mean((-2, -1)), torch.ones(400, 9, 3), rtol=0, atol=1e-4)

    def test_permutations_are_far_from_each_other(self):
        """Each is the farthest of all 9! from those before it, by a slow formula; the first follows from the seed."""
        every = np.array(list(itertools.permutations(range(9))))
        for distance, of in (("mean", np.mean), ("minimum", np.min)):
            chosen = distant_permutations(5, distance, seed=3).numpy()
            for count in range(1, 5):
                worst = of([(every != each).sum(1) for each in chosen[:count]], axis=0)
                own = of([(chosen[count] != each).sum() for each in chosen[:count]])
                assert own == worst.max() and len(np.unique(chosen, axis=0)) == 5
        assert distant_permutations(5, seed=3).tolist() == FIRST_FIVE
        assert not torch.equal(distant_permutations(1, seed=4), distant_permutations(1, seed=3))

    def test_a_hundred_permutations(self):
        distances = (lambda p: (p[:, None] != p[None]).sum(-1)[~torch.eye(100, dtype=bool)].float())(
            distant_permutations(100)
        )
        farthest = distant_permutations(100, "minimum")
        assert distances.mean() >= 7.9
        assert (farthest[:, None] != farthest[None]).sum(-1)[~torch.eye(100, dtype=bool)].min() >= 6

    def test_damaged(self):
        """A tile is missing and all are grey; the losses are squared errors of what was there, at 4 x 4 pixels."""
        config = JigsawConfig(
            **self.config | dict(channel_shift=0), damaged=True, completed_size=4, completed_weight=0.5
        )
        model, batch = JigsawForPreTraining(config).eval(), self.batch()
        seen = {}
        model.backbone.register_forward_pre_hook(lambda _, args: seen.update(tiles=args[0]))
        output = model(**batch)
        tiles = seen["tiles"].unflatten(0, (8, 9))
        missing = tiles.abs().amax((2, 3, 4)) == 0
        assert (missing.sum(1) == 1).all() and (tiles[:, :, 0] == tiles[:, :, 1]).all()
        assert len(missing.int().argmax(1).unique()) > 2
        jigsaw = torch.nn.functional.cross_entropy(output.logits, self.labels(model, batch, tiles, missing))
        completed = output.metrics["completion"] + output.metrics["colours"]
        assert output.loss.item() == pytest.approx((jigsaw + 0.5 * completed).item(), abs=1e-5)
        model.train()(**batch).loss.backward()
        assert all(p.grad is not None for p in model.parameters())

    @staticmethod
    def labels(model, batch, tiles, missing):
        """Which permutation makes of the cells the tiles that were seen, but for the missing one."""
        cells = model.as_seen(model.tiles(*batch.values()), batch["sample_seeds"])
        fits = torch.stack([(cells[:, p] - tiles).abs().amax((2, 3, 4)) < 1e-5 for p in model.permutation_set], dim=1)
        return (fits | missing[:, None]).all(2).int().argmax(1)

    def test_vit(self):
        config = JigsawConfig(backbone_config=TINY_VIT | dict(image_size=32), **SIZES)
        model = JigsawForPreTraining(config).train()
        model(**self.batch()).loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        assert model.embed(torch.zeros(2, 3, 32, 32)).shape == (2, 32)

    def test_what_does_not_fit_is_refused(self):
        with pytest.raises(ValueError, match="channel_shift=1 need images of at least 27 px, found 24 x 30"):
            self.model()(torch.zeros(2, 3, 24, 30))
        grey = dict(backbone_config=TINY_RESNET | dict(num_channels=1), **SIZES)
        with pytest.raises(
            ValueError, match="grey_probability needs images of 3 channels, found 1: set grey_probability=0"
        ):
            JigsawForPreTraining(JigsawConfig(**grey))
        with pytest.raises(ValueError, match="damaged needs images of 3 channels, found 1: set damaged=false"):
            JigsawForPreTraining(JigsawConfig(**grey, grey_probability=0.0, damaged=True))
        with pytest.raises(StrictDataclassError, match="permutations must be at most 9! = 362880, found 400000"):
            JigsawConfig(permutations=400_000)
        with pytest.raises(
            StrictDataclassError, match="permutation_distance must be one of mean, minimum, found 'far'"
        ):
            JigsawConfig(permutation_distance="far")
