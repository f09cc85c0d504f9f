"""A part of the rows held out for a test: drawn at random, as large for each label, and by whole groups where they are told."""

import numpy as np
from datasets import Dataset

from .loading import LABEL_COLUMNS, DataError, column_names, find_column


def hold_out(data, fraction, seed=0, label_column=None, group_column=None):
    """(the rows that are left, those held out), each in the order of the data.

    label_column: None for the usual one, if there is one of classes. group_column: rows with one value in it stay together,
    those of a person for instance. Classes of one row or group are left whole. Raises DataError.
    """
    check_fraction(fraction, group_column, streaming=not isinstance(data, Dataset))
    labels = _codes(data, _label_column(data, label_column))
    groups = _codes(data, find_column(data, group_column, "group", ())) if group_column else np.arange(len(data))
    sizes = np.bincount(groups)
    strata = _commonest(groups, labels)
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(strata[order], kind="stable")]  # class by class, so that each gives its part
    held, seen, taken = np.zeros(len(sizes), bool), 0, 0
    several = np.bincount(strata)[strata] > 1
    if not several.any():  # labels that are no classes
        several = np.ones(len(sizes), bool)
    for group in order[several[order]]:
        seen += sizes[group]
        if fraction * seen - taken >= sizes[group] / 2:
            held[group], taken = True, taken + sizes[group]
    mask = held[groups]
    if not mask.any() or mask.all():
        units = f"{len(sizes)} groups of '{group_column}'" if group_column else f"{len(data)} rows"
        raise DataError(
            f"test_fraction {fraction} of {units} leaves nothing to {'train' if mask.all() else 'test'} on."
        )
    return data.select(np.flatnonzero(~mask)), data.select(np.flatnonzero(mask))


def check_fraction(fraction, group_column=None, streaming=False):
    """Raises DataError for a test_fraction that cannot be held out; None is none."""
    if fraction is None:
        if group_column:
            raise DataError(
                f"group_column '{group_column}' says what stays together in a test_fraction: give that too."
            )
        return
    if not 0 < fraction < 1:
        raise DataError(f"test_fraction must lie between 0 and 1, found {fraction}.")
    if streaming:
        raise DataError("test_fraction draws from rows, which a stream does not number: leave out streaming.")


def _label_column(data, name):
    """The column whose classes are to be spread alike, None if there is none."""
    usual = [column for column in LABEL_COLUMNS if column in column_names(data)]
    name = name or (usual[0] if usual else None)
    if name is None:
        return None
    kind = data.features[find_column(data, name, "label", ())]
    return (
        name if getattr(kind, "dtype", "float").startswith(("int", "uint", "string", "large_string", "bool")) else None
    )


def _codes(data, column):
    """A whole number for each distinct value, (N,); zeros without a column."""
    if column is None:
        return np.zeros(len(data), int)
    values = data.select_columns([column]).with_format("arrow")[:][column].combine_chunks()
    return values.dictionary_encode(null_encoding="encode").indices.to_numpy(zero_copy_only=False)


def _commonest(groups, labels):
    """The label that most rows of each group have."""
    pairs, counts = np.unique(np.stack([groups, labels]), axis=1, return_counts=True)
    order = np.argsort(counts, kind="stable")  # the last one written stays
    found = np.zeros(groups.max() + 1, int)
    found[pairs[0, order]] = pairs[1, order]
    return found


__all__ = ["check_fraction", "hold_out"]
