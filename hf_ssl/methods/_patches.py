"""Images as sequences of square patches, and where the patches lie."""

import torch


def patchify(pixel_values, patch_size):
    """(N, C, H, W) to (N, L, patch_size^2 C): patches row by row, pixels row by row, channel last."""
    n, c, h, w = pixel_values.shape
    rows, columns = h // patch_size, w // patch_size
    patches = pixel_values.reshape(n, c, rows, patch_size, columns, patch_size)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(n, rows * columns, patch_size**2 * c)


def unpatchify(patches, patch_size, rows):
    """The inverse of `patchify` for an image of `rows` rows of patches."""
    n, length, size = patches.shape
    columns, c = length // rows, size // patch_size**2
    pixels = patches.reshape(n, rows, columns, patch_size, patch_size, c)
    return pixels.permute(0, 5, 1, 3, 2, 4).reshape(n, c, rows * patch_size, columns * patch_size)


def sincos_positions(rows, columns, width, cls_token=True):
    """Fixed 2-D sine-cosine table, (1 + rows * columns, width): first half the column, second half the row.

    The paper's code names the halves the other way round; its published weights rely on this order. The cls row is 0.
    """
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))  # (width / 4,)
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [axis.flatten()[:, None] * omega for axis in (column, row)]  # each (rows * columns, width / 4)
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    if cls_token:
        table = torch.cat([torch.zeros(1, width, dtype=table.dtype), table])
    return table.float()
