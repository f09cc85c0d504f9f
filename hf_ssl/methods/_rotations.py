"""Rotated images."""

import torch
import torch.nn.functional as F


def rotate(images, rotations):
    """(N, C, H, W) to (R N, C, H, W): first all as they are, then all turned counter-clockwise by 360 / R degrees, and so
    on. With 2 and 4 pixels change their places and nothing else: an interpolation would tell that the image was turned."""
    height, width = images.shape[-2:]
    if rotations > 2 and height != width:
        raise ValueError(
            f"rotations={rotations} needs square images, found {height} x {width}: crop them, or set rotations=2."
        )
    if rotations == 8:
        along = (2 * torch.arange(height, device=images.device) + 1) / height - 1  # of pixels, the border at -1 and 1
        rows, columns = torch.meshgrid(along, along, indexing="ij")
        inside = rows.square() + columns.square() <= 1
        places = (
            torch.stack([columns - rows, rows + columns], dim=-1) / 2**0.5
        )  # of what a turn by 45 degrees brings there
        eighth = F.grid_sample(images, places.expand(len(images), -1, -1, -1).to(images.dtype), align_corners=False)
        turned = [torch.rot90(x * inside, turn, (-2, -1)) for turn in range(4) for x in (images, eighth)]
        return torch.cat(turned)
    return torch.cat([torch.rot90(images, turn * 4 // rotations, dims=(-2, -1)) for turn in range(rotations)])
