"""Evaluate an image encoder: a release of ours or anybody's checkpoint, beside raw pixels and random initialisation.

python scripts/evaluate.py outputs/mae --protocols knn,linear_probe,neighbours,tsne
python scripts/evaluate.py facebook/dinov2-small --dataset_name uoft-cs/cifar10 --protocols knn,linear_probe
torchrun --nproc_per_node 2 scripts/evaluate.py outputs/mae        # on CPUs with ACCELERATE_USE_CPU=true before it
"""

import argparse
from pathlib import Path

from hf_ssl.checkpoints import RUN_FILE
from hf_ssl.cli import set_up_logging
from hf_ssl.errors import run_script
from hf_ssl.evaluation import PROTOCOLS, evaluate_images, results_table
from hf_ssl.evaluation.fine_tune import FRACTIONS
from hf_ssl.evaluation.processes import process_state


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name_or_path", help="Folder or Hub id.")
    parser.add_argument("--dataset_name", help="Hub id, folder or glob of files; none: the embedded images.")
    parser.add_argument("--dataset_config_name", dest="config_name", help="Configuration of the data set.")
    parser.add_argument("--protocols", default="knn,linear_probe", help=f"Some of {','.join(PROTOCOLS)}.")
    parser.add_argument("--train_split", default="train", help="Also a part, such as 'train[:80%%]'.")
    parser.add_argument("--test_split", default="test", help="If there is no 'test', 'validation' is taken.")
    parser.add_argument("--image_column", help="Column of images; found by type or name.")
    parser.add_argument("--label_column", help="Column of labels; found by type or name.")
    parser.add_argument("--streaming", action="store_true", help="Read without downloading first.")
    parser.add_argument("--max_samples", type=int, help="Draw so many rows from each split.")
    parser.add_argument("--fine_tune_epochs", type=int, help="Epochs of the fine-tuning protocol.")
    fractions = "Parts of the training labels that are fine-tuned on; default: 0.01 0.1 1."
    parser.add_argument("--fine_tune_fractions", type=float, nargs="+", default=FRACTIONS, help=fractions)
    parser.add_argument("--no_baselines", dest="baselines", action="store_false", help="Only the encoder itself.")
    parser.add_argument("--revision", help="Branch, tag or commit on the Hub.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", help="Default: the folder if it is a release of ours, else ./eval_<name>.")
    args = vars(parser.parse_args())
    state = process_state()
    set_up_logging()

    folder = Path(args["name_or_path"])
    is_release = (folder / RUN_FILE).is_file()
    args["output_dir"] = args["output_dir"] or str(folder if is_release else Path(f"eval_{folder.name}"))
    args["protocols"] = args["protocols"].split(",")
    results = evaluate_images(**args)
    if state.is_main_process:
        print(results_table(results))
        if is_release:
            from hf_ssl.hub import write_card

            write_card(folder)
    state.destroy_process_group()


if __name__ == "__main__":
    run_script(main)
