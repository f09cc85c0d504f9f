"""Colorization: tell the colours of a grey image, which takes seeing what is in it: grass, a lion, the sky.

head="zhang": Zhang et al. 2016, https://arxiv.org/abs/1603.08511, official code https://github.com/richzhang/colorization.
Every fourth pixel's a and b (of Lab) are classes, shared out among the nearest of a grid; rare colours have larger gradients.
head="larsson": Larsson et al. 2016, https://arxiv.org/abs/1603.06668, official code https://github.com/gustavla/autocolorize.
At random pixels a hypercolumn tells histograms of hue and chroma around them; where there is little chroma, hue counts little.

The encoder sees grey as PIL makes it of red, green and blue, in three equal channels. In the release its first layer makes it,
so that any image processor's colour image goes in: the networks of the papers see L, or the mean of the three.

Deviations: any encoder with stages stands for the papers' VGG; both heads are Larsson's, one hidden layer on the maps between
whose cells they read, but Zhang's reads the last `stages` alone and has no dilated layers before it. Five neighbours share a
colour out, as the paper has it; the code takes ten. The prior is that of the colours this model has been trained on so far,
the code's that of ImageNet; a uniform one is mixed in over all bins, in the code over those that are not empty. Larsson: no
dropout; grey pixels, whose hue is undefined, have no part in a histogram of hue (in the code they are red); chroma counts the
same in the dark and in the bright, as the paper has it. Batch statistics are those of all processes.
"""

import copy
import math

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec

from ._backbone import build_backbone, check_backbone, native_copy, pooled
from ._base import PretextLine, SSLConfig, SSLModel, SSLOutput
from ._batch_norm import GlobalBatchNorm, replace_batch_norm
from ._colour_bins import annealed_mean, gamut_bins, rebalancing_weights, share_out, shared_cross_entropy
from ._colour_spaces import LUMA, hsv_to_rgb, lab_to_rgb, rgb_to_grey, rgb_to_hsv, rgb_to_lab
from ._distributed import gather
from ._initialization import draw_as_torch
from ._random import COLOUR_PLACE_STREAM, fold_in, uniform
from ._stages import StageHead, freeze_beside_map, pixel_places, read_grid, stage_widths

COLOURLESS = 5.0  # an image of which no a or b is farther from 0 teaches nothing (NonGrayMaskLayer)
HISTOGRAM_BINS = 32  # of hue, and of chroma
FADED = 0.03  # how far hues must agree for the full chroma (Larsson et al., section 4)


@strict
class ColorizationConfig(SSLConfig):
    """Defaults: Zhang et al., with a ResNet-50.

    backbone_config: of a convolutional encoder of transformers with a pooler_output and three channels. head: "zhang" or
    "larsson". stages: how many of the encoder's maps the head reads, the last ones; 0: all. head_hidden_size: of its hidden
    layer; 1024 in Larsson et al.

    zhang: stride, of the pixels whose colours are told; neighbours and sigma, by which a colour is shared out among the bins;
    uniform: the paper's lambda, the part of a uniform distribution in the prior by which colours are weighted; temperature:
    at which the mean of the colours is taken. larsson: places: of an image that are told in a step; window: the side in
    pixels of what a histogram counts; hue_weight: the paper's lambda_H.
    """

    model_type = "ssl_colorization"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="resnet")}

    backbone_config: dict | PreTrainedConfig | None = None
    head: str = "zhang"
    stages: int = 1
    head_hidden_size: int = 256
    stride: int = 4
    neighbours: int = 5
    sigma: float = 5.0
    uniform: float = 0.5
    temperature: float = 0.38
    places: int = 128
    window: int = 7
    hue_weight: float = 5.0

    def validate_ranges(self):
        self.check_least(stages=0, head_hidden_size=1, stride=1, neighbours=1, places=1, window=1, hue_weight=0)
        if self.head not in ("zhang", "larsson"):
            raise ValueError(f"head must be one of zhang, larsson, found '{self.head}'.")
        self.check_positive("sigma", "temperature")
        if not 0 <= self.uniform <= 1:
            raise ValueError(f"uniform must lie in [0, 1], found {self.uniform}.")
        if not self.window % 2:
            raise ValueError(f"window must be odd, with a pixel in its middle, found {self.window}.")
        if (found := getattr(self.backbone_config, "num_channels", 3)) != 3:
            raise ValueError(
                f"backbone_config.num_channels must be 3, red, green and blue, found {found}: images of one channel have no "
                "colours to tell."
            )


class ColorizationForPreTraining(SSLModel):
    config: ColorizationConfig
    input_modalities = ("image",)
    needs_colours = True

    def __init__(self, config: ColorizationConfig):
        super().__init__(config)
        check_backbone(config.backbone_config)
        widths = stage_widths(config.backbone_config)
        if config.stages > len(widths):
            raise ValueError(f"stages must be at most {len(widths)}, the maps of the backbone, found {config.stages}.")
        self.backbone = build_backbone(config.backbone_config)
        replace_batch_norm(self.backbone, GlobalBatchNorm)
        freeze_beside_map(self.backbone)
        bins = gamut_bins()
        outputs = len(bins) if config.head == "zhang" else 2 * HISTOGRAM_BINS
        self.head = StageHead(widths[-config.stages :], config.head_hidden_size, outputs)
        self.register_buffer("bins", torch.empty(len(bins), 2))  # (Q, 2), a and b
        self.register_buffer("colour_counts", torch.empty(len(bins), dtype=torch.long))  # pixels seen, by nearest bin
        self.post_init()

    def forward(self, pixel_values, sample_seeds=None, places=None, **kwargs):
        """pixel_values: (N, 3, H, W), in [0, 1]. places: (N, P, 2) in [0, 1), down and across, of the pixels whose colours
        head="larsson" tells; they follow from `sample_seeds`, (N,) int64, if not given, and are drawn afresh without those.
        `logits`: (N, H / stride, W / stride, Q), or (N, P, 64), of hue and chroma."""
        features, maps = self.features_and_maps(pixel_values)
        if self.config.head == "zhang":
            where = self.grid(pixel_values)
        else:
            pixels = self.draw_pixels(pixel_values, sample_seeds, places)
            sides = pixel_values.shape[-2:]
            where = (pixel_places(each, side) for each, side in zip(pixels, sides, strict=True))
        logits = self.head(maps, *where)
        with torch.autocast(pixel_values.device.type, enabled=False):
            rgb, told = pixel_values.float(), logits.float()
            loss, truth = (
                self.grid_loss(told, rgb) if self.config.head == "zhang" else self.loss_at(told, rgb, *pixels)
            )
            with torch.no_grad():
                if self.training:  # after the loss
                    self.count(truth[..., 1:])
                metrics = self.distances(self.decode(told, truth[..., 0]), truth)
        return SSLOutput(loss=loss, logits=logits, features=features, metrics=metrics)

    def features_and_maps(self, pixel_values):
        """(N, D), the pooled output, and [(N, C, h, w)], the maps that the head reads."""
        output = self.backbone(as_seen(pixel_values, self.backbone.dtype), output_hidden_states=True)
        return output.pooler_output.flatten(1), output.hidden_states[-self.config.stages :]

    def grid_loss(self, logits, rgb):
        """Zhang's loss of logits (N, R, S, Q), and the true Lab (N, R, S, 3) of every `stride`-th pixel."""
        config = self.config
        lab = rgb_to_lab(rgb)[..., :: config.stride, :: config.stride].permute(0, 2, 3, 1)
        indices, shares = share_out(lab[..., 1:], self.bins, config.neighbours, config.sigma)
        losses = shared_cross_entropy(logits, indices, shares)  # (N, R, S)
        weights = rebalancing_weights(self.colour_counts, self.bins, config.neighbours, config.sigma, config.uniform)
        coloured = (lab[..., 1:].abs() > COLOURLESS).flatten(1).any(1)
        weighted = losses * weights[indices[..., 0]] * coloured[:, None, None]
        # the weights act on the gradient: what is logged is the cross-entropy
        return (weighted + (losses - weighted).detach()).mean(), lab

    def draw_pixels(self, images, sample_seeds, places):
        """Larsson's rows and columns of random pixels, (N, P) both."""
        if places is None:
            if sample_seeds is None:
                sample_seeds = torch.randint(2**62, (len(images),), device=images.device)
            places = uniform(fold_in(sample_seeds, COLOUR_PLACE_STREAM), 2 * self.config.places).unflatten(1, (-1, 2))
        pixels = ((places[..., axis].float() * images.shape[2 + axis]).long() for axis in (0, 1))
        return [
            each.clamp(max=side - 1) for each, side in zip(pixels, images.shape[2:], strict=True)
        ]  # 1, rounded to bfloat16

    def loss_at(self, logits, rgb, rows, columns):
        """Larsson's loss of logits (N, P, 64), and the true Lab (N, P, 3) of pixels."""
        config = self.config
        hue, saturation, value = rgb_to_hsv(rgb).unbind(1)  # (N, H, W)
        chroma = saturation * value
        of_hue = local_histograms(hue, chroma > 0, rows, columns, config.window)
        of_chroma = local_histograms(chroma, torch.ones_like(chroma, dtype=torch.bool), rows, columns, config.window)
        hue_logits, chroma_logits = logits.chunk(2, dim=-1)
        image = torch.arange(len(rgb), device=rgb.device)[:, None]
        counts_for_hue = config.hue_weight * chroma[image, rows, columns]
        losses = divergence(chroma_logits, of_chroma) + counts_for_hue * divergence(hue_logits, of_hue)
        return losses.mean(), rgb_to_lab(rgb)[image, :, rows, columns]

    def grid(self, images):
        """Where every `stride`-th row and column of pixels lies, (R,) and (S,)."""
        stride = self.config.stride
        sides = (torch.arange(0, side, stride, device=images.device) for side in images.shape[-2:])
        return (pixel_places(pixels, side) for pixels, side in zip(sides, images.shape[-2:], strict=True))

    def decode(self, logits, lightness):
        """(..., 2), a and b that logits (..., K) tell of places of lightness L (...)."""
        if self.config.head == "zhang":
            return annealed_mean(logits, self.bins, self.config.temperature)
        hue, chroma = (each.softmax(-1) for each in logits.float().chunk(2, dim=-1))
        centres = (torch.arange(HISTOGRAM_BINS, device=logits.device) + 0.5) / HISTOGRAM_BINS
        angles = 2 * math.pi * centres
        across, up = (hue * angles.cos()).sum(-1), (hue * angles.sin()).sum(-1)
        median = centres[(chroma.cumsum(-1) < 0.5).sum(-1).clamp(max=HISTOGRAM_BINS - 1)]
        median = median * (torch.hypot(across, up) / FADED).clamp(
            max=1
        )  # hues that contradict each other are no colour
        turn = (torch.atan2(up, across) / (2 * math.pi)) % 1
        colour = torch.stack([turn, torch.ones_like(turn), median]).flatten(1)[None, ..., None]  # (1, 3, M, 1)
        colour = hsv_to_rgb(colour)
        grey = lab_to_rgb(F.pad(lightness.float().flatten()[None, None, :, None], (0, 0, 0, 0, 0, 2)))
        colour = (colour + grey - rgb_to_grey(colour)).clamp(0, 1)
        return rgb_to_lab(colour)[0, 1:, :, 0].T.reshape(*lightness.shape, 2)

    def distances(self, ab, truth):
        """How far a and b, (..., 2), are from those of Lab (..., 3), in the mean; beside grey and the commonest colour so far."""
        commonest = self.bins[self.colour_counts.argmax()].float()
        guesses = {"ab_distance": ab, "ab_distance_of_grey": 0.0, "ab_distance_of_commonest": commonest}
        return {name: (guess - truth[..., 1:]).norm(dim=-1).mean() for name, guess in guesses.items()}

    def count(self, ab):
        """Add the colours of all processes, (..., 2), to those that have been seen."""
        nearest = share_out(ab, self.bins, 1, 1.0)[0].flatten()
        counts = torch.zeros_like(self.colour_counts).scatter_add(0, nearest, torch.ones_like(nearest))
        self.colour_counts += gather(counts[None]).sum(0)

    @torch.no_grad()
    def colorize(self, images):
        """(N, 3, H, W) or grey (N, 1, H, W), in [0, 1], to RGB (N, 3, H, W), in [0, 1]: the colours that the model tells, with
        the lightness of the images. In eval mode it does not matter what else is in the batch."""
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images must be (N, 3, H, W) or (N, 1, H, W), found {tuple(images.shape)}.")
        rgb, stride = images.to(self.device).expand(-1, 3, -1, -1).float(), self.config.stride
        logits = self.head(self.features_and_maps(rgb)[1], *self.grid(rgb))  # (N, R, S, K)
        lightness = rgb_to_lab(rgb)[:, :1]
        ab = self.decode(logits, lightness[:, 0, ::stride, ::stride])  # (N, R, S, 2)
        pixels = (torch.arange(side, device=rgb.device) / stride for side in rgb.shape[2:])
        between = (pixel_places(at, size) for at, size in zip(pixels, ab.shape[1:3], strict=True))
        return lab_to_rgb(torch.cat([lightness, read_grid(ab, *between).permute(0, 3, 1, 2)], dim=1))

    def embed(self, pixel_values):
        return pooled(self.backbone, as_seen(pixel_values, self.backbone.dtype))

    @torch.no_grad()
    def export_encoder(self):
        """The encoder, whose first layer makes grey of red, green and blue: its weights for each are those for grey by the part
        that it has in grey."""
        encoder = native_copy(self.backbone)
        config = copy.deepcopy(encoder.config)
        config.num_channels = 1
        with torch.device("meta"):
            of_grey = type(encoder)(config).state_dict()
        for name, weight in encoder.state_dict().items():
            if weight.shape != of_grey[name].shape:  # (D, 3, ...), the only one that sees the channels
                parts = weight.new_tensor(LUMA).view(1, 3, *[1] * (weight.ndim - 2))
                weight.copy_(weight.sum(1, keepdim=True) * parts)
        return encoder

    @torch.no_grad()
    def pretext_lines(self, pixel_values, sample_indices=None, sample_seeds=None):
        """The images in grey, as the model colours them, and as they are; below, how far colours are from the true ones, with a
        green frame where they are nearer than grey."""
        coloured = self.colorize(pixel_values)
        truth, found = (rgb_to_lab(each.float()).permute(0, 2, 3, 1)[..., 1:] for each in (pixel_values, coloured))
        distance, of_grey = ((guess - truth).norm(dim=-1).mean((1, 2)) for guess in (found, 0.0))
        return [
            PretextLine("grey", rgb_to_grey(pixel_values).expand_as(pixel_values), None, ranges(of_grey)),
            PretextLine("coloured", coloured, distance < of_grey, ranges(distance)),
            PretextLine("image", pixel_values),
        ]

    @torch.no_grad()
    def _init_weights(self, module):
        if module is self:
            init.copy_(self.bins, gamut_bins().to(self.bins))
            init.ones_(self.colour_counts)  # all colours alike, as long as none has been seen
        elif isinstance(module, StageHead):
            module.reset_output()
        else:
            draw_as_torch(module)


def as_seen(rgb, dtype):
    """Grey, in three equal channels."""
    return rgb_to_grey(rgb.float()).expand(-1, 3, -1, -1).to(dtype)


def local_histograms(values, counted, rows, columns, window):
    """(N, P, 32), the distribution of values (N, H, W) in [0, 1] over a square of `window` pixels around each of P pixels, as
    far as it lies in the image and its pixels are `counted`, (N, H, W); evenly where none is."""
    (count, height, width), half = values.shape, window // 2
    reach = torch.arange(-half, half + 1, device=values.device)
    y, x = (
        (rows[..., None] + reach)[..., None],
        (columns[..., None] + reach)[:, :, None],
    )  # (N, P, window, 1), (N, P, 1, window)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    image = torch.arange(count, device=values.device)[:, None, None, None]
    at = image, y.clamp(0, height - 1), x.clamp(0, width - 1)
    bins = (values[at] * HISTOGRAM_BINS).long().clamp(max=HISTOGRAM_BINS - 1)
    found = (inside & counted[at]).float()
    histograms = found.new_zeros(*rows.shape, HISTOGRAM_BINS).scatter_add(2, bins.flatten(2), found.flatten(2))
    total = histograms.sum(2, keepdim=True)
    return torch.where(total > 0, histograms / total.clamp(min=1), 1 / HISTOGRAM_BINS)


def divergence(logits, targets):
    """(...), the Kullback-Leibler divergence of the softmax of logits (..., K) from distributions (..., K)."""
    return (torch.xlogy(targets, targets) - targets * logits.log_softmax(-1)).sum(-1)


def ranges(distances):
    return [f"{distance:.1f}" for distance in distances.tolist()]


__all__ = ["ColorizationConfig", "ColorizationForPreTraining"]
