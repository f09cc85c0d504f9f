"""Random numbers that belong to a sample: the same for a given (seed, epoch, sample), whatever the batch around it,
the worker that decoded it, the process that holds it and the device that draws it.

Counter-based (SplitMix64, Steele, Lea and Flood 2014, https://doi.org/10.1145/2660193.2660195): no state, so there is
none to save, and a thousand samples are drawn by one tensor expression.
"""

import torch

# Streams: what `fold_in` separates the draws of one sample by. One list for the package, no two alike; a new draw takes
# a new number here. The numbers are part of every run's result, so none is ever changed.
MASK_STREAM = 1  # MAE: which patches are hidden
SHUFFLE_STREAM = 2  # MoCo: the order in which keys are encoded
NEGATIVES_STREAM = 4  # word2vec: the noise words
GRID_STREAM = 5  # relative position: where the grid of patches lies
PATCH_STREAM = 6  # relative position: each patch's own draws
JITTERED_PATCH_STREAM = 7  # relative position: by how much each patch is shifted
RESAMPLED_STREAM = 8  # relative position: which patches are shrunk and enlarged, and how much
DROPPED_COLOUR_STREAM = 9  # relative position: which channel stays
PATCH_NOISE_STREAM = 10  # relative position: what stands in the place of the others
PERMUTATION_STREAM = 11  # jigsaw: which permutation
TILE_STREAM = 12  # jigsaw, PIRL: where the tiles lie in their cells
TILE_CHANNEL_STREAM = 13  # jigsaw: how far each channel is shifted
GREY_PUZZLE_STREAM = 14  # jigsaw: which puzzles lose their colour
MISSING_TILE_STREAM = 15  # jigsaw: which tile of a damaged puzzle is missing
EXEMPLAR_PATCH_STREAM = 16  # exemplar: where the patch of a row lies
EXEMPLAR_PLACE_STREAM = 17  # exemplar: how a patch is moved, scaled and turned
EXEMPLAR_COLOUR_STREAM = 18  # exemplar: how its colours change
NOISE_ROWS_STREAM = 30  # instance discrimination, PIRL, CMC: the rows of the bank that are noise
PRIOR_STREAM = 31  # deep infomax: the adversary's examples of the prior
TILE_ORDER_STREAM = 32  # PIRL: in which order the tiles lie
SOURCE_PLACE_STREAM = 33  # amdim: the place of a coarse map that looks for the other view's
VAT_STREAM = 34  # vat: where the search for the adversarial direction begins
MIXUP_STREAM = 35  # mixmatch: how much of each of two images
MIXUP_PARTNER_STREAM = 36  # mixmatch: which two images
COLOUR_PLACE_STREAM = 40  # colorization: the places of an image whose colours are told
HOLE_STREAM = 41  # context encoder: where an image's holes lie
CORRUPTION_STREAM = 42  # autoencoder: the noise
LATENT_STREAM = 43  # bigan: what images are made of
CROP_STREAM = 101  # views: the box
FLIP_STREAM = 102  # views: whether it is mirrored
JITTER_STREAM = 103  # views: colour factors and their order
GREY_STREAM = 104  # views: whether colour is taken away
BLUR_STREAM = 105  # views: whether it is blurred, and how much
SOLARIZE_STREAM = 106  # views: whether bright pixels are inverted
MOVE_STREAM = 107  # views: by how much it is moved
RAND_AUGMENT_STREAM = 108  # views: which operations of RandAugment, and how strong
CUTOUT_STREAM = 109  # views: which square is cut out
CAPTION_STREAM = 111  # image-text pairs: which caption, in which words
COMPANION_STREAM = 112  # semi-supervised batches: which labelled row accompanies a sample
VIEW_STREAM = 201  # the first of several views; the others have the next numbers, up to 299
# Rows of tokens, which are never images, so that these may be numbers of image methods too
HIDDEN_POSITIONS_STREAM, HIDDEN_ACTIONS_STREAM, HIDDEN_WORDS_STREAM = 1, 2, 3  # which tokens, and what replaces them

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(bits, places):
    return (bits >> places) & ((1 << (64 - places)) - 1)  # >> alone keeps the sign of an int64


def fold_in(seeds, value):
    """Derive another seed from each of `seeds` (int64 tensor) and `value` (int or int64 tensor that broadcasts)."""
    step = _signed((value + 1) * _GOLDEN) if isinstance(value, int) else (value + 1) * _GOLDEN
    bits = seeds + step
    bits = (bits ^ _shift_right(bits, 30)) * _MIX_1
    bits = (bits ^ _shift_right(bits, 27)) * _MIX_2
    return bits ^ _shift_right(bits, 31)


def uniform(seeds, count):
    """`count` numbers in [0, 1) for each of N seeds: (N,) int64 to (N, count) float32, in steps of 2^-24."""
    bits = fold_in(seeds[:, None], torch.arange(count, device=seeds.device))  # (N, count)
    return _shift_right(bits, 40).float() * 2.0**-24


def normal(seeds, count):
    """`count` numbers of the standard normal distribution for each of N seeds: (N,) int64 to (N, count) float32."""
    # in float64, where neither 0 nor 1 comes out, of which the values would be infinite
    return torch.special.ndtri(uniform(seeds, count).double() + 2.0**-25).float()


def seed_from(*numbers):
    """One signed 64-bit seed from several integers: `fold_in` one after the other from 0, in plain Python."""
    bits = 0
    for number in numbers:
        bits = (bits + (number + 1) * _GOLDEN) % 2**64
        bits = (bits ^ bits >> 30) * _MIX_1 % 2**64
        bits = (bits ^ bits >> 27) * _MIX_2 % 2**64
        bits ^= bits >> 31
    return _signed(bits)


def _signed(bits):
    return (bits + 2**63) % 2**64 - 2**63
