"""Evaluate an encoder of images, texts, both, or speech: a release or any checkpoint, beside raw features and random weights.

hf-ssl evaluate outputs/mae --protocols knn,linear_probe,neighbours,tsne
hf-ssl evaluate facebook/dinov2-small --dataset_name uoft-cs/cifar10 --protocols knn,linear_probe
hf-ssl evaluate outputs/simclr --protocols layer_probe,patch_neighbours --compare_with outputs/mae
hf-ssl evaluate google-bert/bert-base-uncased --dataset_name stanfordnlp/imdb --max_samples 2000
hf-ssl evaluate google-bert/bert-base-uncased --dataset_name nyu-mll/glue --dataset_config_name mrpc \\
    --test_split validation --protocols fine_tune
hf-ssl evaluate facebook/wav2vec2-base --protocols phones,phones_hidden,linear_probe,tsne
hf-ssl evaluate openai/clip-vit-base-patch32 --dataset_name uoft-cs/cifar10 --protocols zero_shot,linear_probe
torchrun --nproc_per_node 2 -m hf_ssl evaluate outputs/mae      # on CPUs with ACCELERATE_USE_CPU=true before it
"""

import argparse
import inspect
import logging
from pathlib import Path

from hf_ssl.cli import set_up_logging
from hf_ssl.errors import InputError, run_script
from hf_ssl.evaluation import EVALUATIONS, PROTOCOLS, find_modality, results_table
from hf_ssl.evaluation.processes import process_state
from hf_ssl.training.checkpoints import RUN_FILE


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name_or_path", help="Folder or Hub id.")
    parser.add_argument("--dataset_name", help="Hub id, folder or glob of files; none: the embedded sample.")
    parser.add_argument("--dataset_config_name", dest="config_name", help="Configuration of the data set.")
    others = "of speech linear_probe,phones, of images and texts zero_shot,retrieval"
    known = dict.fromkeys(name for names in PROTOCOLS.values() for name in names)
    protocols = f"Some of {','.join(known)}; none: knn,linear_probe, {others}."
    parser.add_argument("--protocols", type=lambda names: names.split(","), help=protocols)
    parser.add_argument("--train_split", default="train", help="The split that is trained on.")
    parser.add_argument("--test_split", default="test", help="If there is no 'test', 'validation' is taken.")
    held_out = "Test on this part of train_split instead, drawn at random, as large for each label."
    parser.add_argument("--test_fraction", type=float, help=held_out)
    grouped = "Rows with one value here, a person's for instance, stay together in test_fraction."
    parser.add_argument("--group_column", help=grouped)
    parser.add_argument("--label_column", help="Column of labels; found by type or name.")
    parser.add_argument("--streaming", action="store_true", help="Read without downloading first.")
    parser.add_argument("--max_samples", type=int, help="Draw so many rows from each split.")
    parser.add_argument("--fine_tune_epochs", type=int, help="Epochs of the protocols fine_tune and supervised.")
    fractions = "Parts of the training labels that are fine-tuned on; default: 0.01 0.1 1."
    parser.add_argument("--fine_tune_fractions", type=float, nargs="+", help=fractions)
    parser.add_argument("--no_baselines", dest="baselines", action="store_false", help="Only the encoder itself.")
    parser.add_argument("--revision", help="Branch, tag or commit on the Hub.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", help="Default: the folder if it is a release of ours, else ./eval_<name>.")
    images = parser.add_argument_group("images")
    images.add_argument("--image_column", help="Column of images; found by type or name.")
    other = "Folder or Hub id of another image encoder, which patch_neighbours shows too."
    images.add_argument("--compare_with", help=other)
    texts = parser.add_argument_group("texts")
    texts.add_argument("--text_column", help="Column of texts, of retrieval too; found by name, GLUE's pairs too.")
    texts.add_argument("--text_column_2", help="Column of the second text of a pair.")
    texts.add_argument(
        "--max_length", type=int, help="Tokens that are read of a text; none: 128, or what the model has."
    )
    cut = "Cut documents into passages of about max_length; none: only the embedded documents."
    texts.add_argument("--cut_passages", action=argparse.BooleanOptionalAction, help=cut)
    texts.add_argument("--feature", help="mean, pooler or cls; none: mean, but of our own architectures pooler.")
    texts.add_argument("--task", help="GLUE task, which chooses the scores of fine-tuning; none: the config's name.")
    texts.add_argument(
        "--fine_tune_learning_rate", type=float, help="None: 5e-5, for BERT-base; small models want more."
    )
    texts.add_argument("--word_files", nargs="+", help="Similarity judgements and analogies, for the protocol words.")
    audio = parser.add_argument_group("speech")
    audio.add_argument("--audio_column", help="Column of recordings; found by type or name.")
    audio.add_argument("--segments_column", help="Column of {start, end, phone} lists, in seconds; found by type.")
    pairs = parser.add_argument_group("images and texts")
    prompts = "For zero_shot: texts with {} for the name of the class, or a file of them; none: 'a photo of a {}.'"
    pairs.add_argument("--prompts", nargs="+", help=prompts)
    described = "For zero_shot: column of training texts that describe the classes, instead of their names."
    pairs.add_argument("--class_texts", metavar="COLUMN", help=described)
    args = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    state = process_state()
    set_up_logging()

    folder = Path(args["name_or_path"])
    is_release = (folder / RUN_FILE).is_file()
    args.setdefault("output_dir", str(folder if is_release else Path(f"eval_{folder.name}")))
    modality = find_modality(args["name_or_path"], args.get("revision"))
    if modality not in EVALUATIONS:
        raise InputError(f"'{folder}' reads {modality}: expected an encoder of one of {', '.join(EVALUATIONS)}.")
    output_dir = Path(args["output_dir"])
    if (output_dir / RUN_FILE).is_file() and output_dir.resolve() != folder.resolve():
        raise InputError(
            f"output_dir '{output_dir}' is a release, whose card tells its own results: choose another folder."
        )
    evaluate = EVALUATIONS[modality]
    known = inspect.signature(evaluate).parameters
    if foreign := [name for name in args if name not in known]:
        raise InputError(f"The argument --{foreign[0]} is not for an encoder of {modality}s, which '{folder}' is.")
    results = evaluate(**args)
    if state.is_main_process:
        if results["results"]:  # pictures alone have no numbers
            print(results_table(results))
        if is_release:
            from hf_ssl.hub.card import write_card

            write_card(folder)
        logging.getLogger("hf_ssl").info("The results are in %s", args["output_dir"])
    state.destroy_process_group()


if __name__ == "__main__":
    run_script(main)
