"""Tables of semi-supervised methods: how many labels, how many wrong ones, what MixMatch and FixMatch need, VAT's epsilon."""

from pathlib import Path

from hf_ssl import METHODS as SSL_METHODS

from .runs import check_flags, finish, print_table, read_results

OWN_FLAGS = ("--config_overrides", "--output_dir", "--labels", "--label_fraction", "--label_noise")
TITLES = {"the labels alone": "labels_alone", "with unlabelled images": "pretrained", "all labels": "all_labels"}
ABLATIONS = {  # table 4 of https://arxiv.org/abs/1905.02249
    "MixMatch": dict(align_classes=True),  # ReMixMatch's part of the default recipe
    "one guess (K = 1)": dict(guesses=1),
    "no sharpening (T = 1)": dict(temperature=1.0),
    "no average of weights": dict(momentum=0.0),
    "no MixUp": dict(mixed="none"),
    "MixUp of labelled images alone": dict(mixed="labelled"),
    "MixUp of unlabelled images alone": dict(mixed="unlabelled"),
    "MixUp within both": dict(mixed="separate"),
    "guesses not aligned": dict(align_classes=False),
}
NEEDS = {
    "FixMatch": dict(align_classes=True, separate_statistics=True),
    "guesses not aligned": dict(align_classes=False, separate_statistics=True),
    "statistics of all images": dict(align_classes=True, separate_statistics=False),
    "neither": dict(align_classes=False, separate_statistics=False),
}


def counts(method):
    return {f"{count} labels": (method, {}, ["--labels", str(count)]) for count in (50, 100, 250, 500, 1000, 2500)}


# each label 128 times, enough to learn wrong ones by heart
BY_HEART = (
    "--labels 1000 --views weak --max_steps 4000 --weight_decay 0 --learning_rate 8e-3 --per_device_train_batch_size 64 "
    "--unlabelled_per_label 2"
).split()


def noise(method):
    """Some of the labels random: the tolerance of section 3.4 of https://arxiv.org/abs/1610.02242."""
    defaults, names = SSL_METHODS[method].config_class, ("consistency_weight", "align_classes", "temperature")
    original = {name: getattr(defaults, name) for name in names if hasattr(defaults, name)}  # not the small recipe's
    return {
        f"{part:.0%} random labels": (method, original, [*BY_HEART, "--label_noise", str(part)])
        for part in (0.0, 0.2, 0.5, 0.8)
    }


def mixmatch(method):
    return {row: ("mixmatch", settings, []) for row, settings in ABLATIONS.items()}


def fixmatch(method):
    return {row: ("fixmatch", settings, []) for row, settings in NEEDS.items()}


def epsilon(method):
    return {f"epsilon = {value}": ("vat", dict(epsilon=value), []) for value in (0.35, 0.7, 1.4, 2.8, 5.6)}


PARTS = {"labels": counts, "noise": noise, "mixmatch": mixmatch, "fixmatch": fixmatch, "epsilon": epsilon}
METHODS = {"labels": "mixmatch", "noise": "mean_teacher"}  # unless another is named


def compare(part, method, output_dir, flags):
    """flags: of the scripts, for all runs. Runs that have ended in `output_dir` are not made again."""
    check_flags(flags, OWN_FLAGS)
    method, rows = method or METHODS.get(part, part), {}
    for row, (script, settings, own) in PARTS[part](method).items():
        name = "".join(letter if letter.isalnum() or letter == "." else "_" for letter in row.lower())
        folder = Path(output_dir) / part / f"{script}_{name}"
        finish(script, folder, settings, [*own, *flags])
        rows[row] = {
            key: numbers["accuracy"] for key, numbers in read_results(folder).items() if "accuracy" in numbers
        }
    print_table("accuracy in percent", TITLES, rows)
