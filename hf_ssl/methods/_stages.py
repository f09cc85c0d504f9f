"""The maps of a convolutional encoder: of all stages, read at places of the image, hypercolumns (Hariharan et al. 2015,
https://arxiv.org/abs/1411.5752), and the last one. Colorization, split-brain autoencoders, context encoder.

Where a map is read between its cells it is interpolated by products of matrices, whose gradients are the same in each run;
those of torch's `interpolate` and `grid_sample` are not, on GPUs.
"""

import copy

import torch
from torch import nn
from transformers import AutoModel
from transformers import initialization as init


def stage_widths(config):
    """[C] of the maps among a network's hidden_states, the stem's first. Raises ValueError if there are none."""
    with torch.device("meta"):  # shapes only
        network, pixels = AutoModel.from_config(config).eval(), torch.zeros(1, config.num_channels, 224, 224)
        try:
            hidden = network(pixels, output_hidden_states=True).get("hidden_states") or ()
        except (AttributeError, RuntimeError, TypeError, ValueError):  # such as of patches, which images do not fit
            hidden = ()
    if not hidden or any(each.ndim != 4 for each in hidden):
        raise ValueError(
            f"backbone_config of model_type '{config.model_type}' has no stages with maps to read: choose one such as resnet "
            "or convnext."
        )
    return [each.shape[1] for each in hidden]


def freeze_beside_map(network, size=224):
    """The (C, h, w) of the network's last_hidden_state for images of `size`. Parameters on which it does not depend, such as of a
    norm behind the pooling, wait for no gradient any more. Raises ValueError if it is no map."""
    config = network.config
    with torch.device("meta"), torch.enable_grad():  # shapes only
        twin = AutoModel.from_config(copy.deepcopy(config)).eval()
        try:
            last = twin(torch.zeros(1, config.num_channels, size, size)).last_hidden_state
        except ValueError as error:
            raise ValueError(f"backbone_config does not fit image_size={size}: {error}") from error
        if last.ndim != 4:
            raise ValueError(
                f"backbone_config of model_type '{config.model_type}' gives no map: choose a network with stages, such as resnet."
            )
        names, weights = zip(*twin.named_parameters(), strict=True)
        gradients = torch.autograd.grad(last.sum(), weights, allow_unused=True)
    for name, gradient in zip(names, gradients, strict=True):
        if gradient is None:
            network.get_parameter(name).requires_grad_(False)
    return last.shape[1:]


class StageHead(nn.Module):
    """A hidden layer and a linear one on the hypercolumns of an image's places. widths: of the maps that it reads."""

    def __init__(self, widths, hidden, outputs):
        super().__init__()
        # one linear layer on all maps side by side, which may come before or behind the reading, where there are fewer rows
        self.stages = nn.ModuleList(nn.Linear(width, hidden, bias=number == 0) for number, width in enumerate(widths))
        self.output = nn.Linear(hidden, outputs)

    def forward(self, maps, rows, columns):
        """maps: [(N, C, h, w)]. Of (N, P) rows and columns, where places lie between 0 and 1: (N, P, outputs). Of (R,) and (S,):
        those of a grid, (N, R, S, outputs)."""
        read = read_grid if rows.ndim == 1 else read_places
        places = len(rows) * len(columns) if rows.ndim == 1 else rows.shape[1]
        hidden = 0
        for stage, each in zip(self.stages, maps, strict=True):
            values = each.movedim(1, -1)  # (N, h, w, C)
            if values.shape[1] * values.shape[2] > places:
                hidden = hidden + stage(read(values, rows, columns))
            else:
                hidden = hidden + read(stage(values), rows, columns)
        return self.output(hidden.relu())

    @torch.no_grad()
    def reset_output(self):
        """No bias at first: nothing is likelier than anything else."""
        init.zeros_(self.output.bias)


def read_grid(values, rows, columns):
    """(N, h, w, D) at the places of a grid, (R,) and (S,): (N, R, S, D)."""
    height, width = values.shape[1:3]
    down, across = (between_cells(each, size).to(values.dtype) for each, size in ((rows, height), (columns, width)))
    return torch.einsum("sw,nrwd->nrsd", across, torch.einsum("rh,nhwd->nrwd", down, values))


def read_places(values, rows, columns):
    """(N, h, w, D) at places of each image, (N, P) both: (N, P, D)."""
    height, width = values.shape[1:3]
    weights = between_cells(rows, height)[..., None] * between_cells(columns, width)[:, :, None]  # (N, P, h, w)
    return weights.flatten(2).to(values.dtype) @ values.flatten(1, 2)


def between_cells(places, cells):
    """(..., cells), the shares of equally wide cells in what lies at `places`, between 0 and 1: of the two whose centres are the
    nearest, by distance; of one between border and its centre."""
    at = (places * cells - 0.5).clamp(0, cells - 1)
    return (1 - (at[..., None] - torch.arange(cells, device=places.device)).abs()).clamp(min=0)


def pixel_places(pixels, size):
    """Where the centres of pixels lie between 0 and 1."""
    return (pixels + 0.5) / size
