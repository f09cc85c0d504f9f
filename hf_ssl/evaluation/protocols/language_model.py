"""How well a BERT guesses hidden words and next sentences of documents that it has not seen.

For our releases and for anybody's masked language model. Masks and pairs follow from the seed and the text, so that models
with one tokenizer are asked the same.
"""

import math
from itertools import islice

import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, BertForPreTraining

from ...data.segments import FEATURES, RowMaker, TokenBatches
from ...data.text import sentences, text_rows
from ...errors import InputError
from ...methods._masking import mask_tokens
from ..encoders.loading import load_weights
from ..processes import process_state
from ..results import Metric

SETTINGS = {
    "hidden": "15% of the tokens, as in training",
    "documents": "of the test split, at most max_samples",
    "pairs": "as many true as random ones",
}
METRICS = {
    "mlm_loss": Metric("loss at hidden tokens", "loss", "nats", 3, "fill-mask"),
    "mlm_perplexity": Metric("pseudo-perplexity at hidden tokens", "perplexity", "", 1, "fill-mask"),
    "mlm_accuracy": Metric("accuracy at hidden tokens", task="fill-mask"),
    "nsp_accuracy": Metric("next-sentence accuracy", task="fill-mask"),
    "nsp_pairs": Metric("pairs of segments", "count", "", 0, "fill-mask"),
    "nsp_p_value": Metric("probability that chance does as well", "p-value", "", 4, "fill-mask"),
}


def run(encoders, source, output_dir):
    """The protocol `language_model`, as run.py describes; it needs no labels."""
    state = process_state()
    if not state.is_main_process:
        return {}
    encoder = encoders["pretrained"]
    model, tokenizer = load_language_model(encoder.name, encoder.revision)
    rows, column = text_rows(source.test_rows(), *source.columns)
    documents = [row[column] for row in islice(rows, source.max_samples)]
    models = {"pretrained": model}
    if "random_initialisation" in encoders:
        models["random_initialisation"] = random_language_model(model, source.seed)
    found = {
        row: evaluate_language_model(each.to(state.device), tokenizer, documents, encoder.max_length, source.seed)
        for row, each in models.items()
    }
    numbers = {row: {key: value for key, value in scores.items() if key in METRICS} for row, scores in found.items()}
    return {"unigrams": {"mlm_loss": found["pretrained"]["unigram_loss"]}} | numbers


def load_language_model(name_or_path, revision=None):
    """(model in eval mode and float32, tokenizer) of a release of ours or of any masked language model; a BERT with its
    next-sentence head, if it has one."""
    try:
        config = AutoConfig.from_pretrained(name_or_path, revision=revision)
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, revision=revision)
        whole = "BertForPreTraining" in (config.architectures or [])
    except (OSError, ValueError) as error:
        raise InputError(f"'{name_or_path}' is not a folder or Hub id of a masked language model.") from error
    model_class = BertForPreTraining if whole else AutoModelForMaskedLM
    model, missing = load_weights(model_class, name_or_path, revision=revision, dtype=torch.float32)
    if missing := sorted(key for key in missing if "pooler" not in key):
        raise InputError(f"'{name_or_path}' has no head that guesses hidden words: it lacks '{missing[0]}'.")
    return model.eval(), tokenizer


def random_language_model(model, seed=0):
    """The same architecture at random initialisation."""
    torch.manual_seed(seed)
    return type(model)(model.config).eval()


@torch.inference_mode()
def evaluate_language_model(model, tokenizer, documents, max_seq_length=None, seed=0, batch_size=32):
    """What `model` scores on `documents`, texts with one sentence a line or running prose: {name: value}.

    max_seq_length: of a row; none: the tokenizer's, at most 128.

    mlm_loss: the mean cross-entropy in nats at mlm_tokens hidden tokens, 15% as in training; mlm_perplexity, its exponential;
    mlm_accuracy in %. unigram_loss: what the frequencies of the tokens in these very documents would score there.
    Of a model with a next-sentence head also nsp_accuracy in %, on nsp_pairs, as many true as random ones, so that 50 is
    chance, and nsp_p_value, the probability that a coin does as well (binomial test, one-sided).
    Raises InputError if there is no sentence in the documents.
    """
    max_seq_length = max_seq_length or min(tokenizer.model_max_length, 128)
    pairs = isinstance(model, BertForPreTraining)
    maker = RowMaker(tokenizer, max_seq_length, pairs, seed=seed)
    documents = [sentences(document or "") for document in documents]
    blocks = [documents] if pairs else [[document] for document in documents]  # rows of one text each
    rows = [dict(zip(FEATURES, row, strict=True)) for block in blocks for row in maker.rows(block)]
    if not rows:
        raise InputError(f"There is nothing to evaluate on: found no sentence in {len(documents)} documents.")
    collate = TokenBatches(tokenizer.pad_token_id, pairs, static_masks=True).collate

    frequencies = torch.zeros(model.config.vocab_size)
    targets, losses, right, follows = [], [], [], []
    for start in range(0, len(rows), batch_size):
        batch = {k: v.to(model.device) for k, v in collate(rows[start : start + batch_size], None).items()}
        if not pairs:
            batch["attention_mask"] = batch.pop("document_ids").sign()
        labels, seeds = batch.pop("next_sentence_label", None), batch.pop("sample_seeds")
        input_ids, attention_mask = batch.pop("input_ids"), batch["attention_mask"]
        special = torch.tensor([tokenizer.cls_token_id, tokenizer.sep_token_id], device=model.device)
        maskable = attention_mask.bool() & ~torch.isin(input_ids, special)
        frequencies += input_ids[maskable].bincount(minlength=len(frequencies)).cpu()
        hidden, positions, originals, used = mask_tokens(
            input_ids, maskable, attention_mask.sum(1), seeds, probability=0.15, most=max_seq_length,
            mask_id=tokenizer.mask_token_id, vocab_size=len(tokenizer),
        )  # fmt: skip
        output = model(hidden, **batch)
        logits = (output.prediction_logits if pairs else output.logits).float()
        logits = logits.gather(1, positions[..., None].expand(-1, -1, logits.shape[-1]))[used]
        target = originals[used]
        losses.append(F.cross_entropy(logits, target, reduction="none").cpu())
        right.append((logits.argmax(1) == target).cpu())
        targets.append(target.cpu())
        if pairs:
            answers = output.seq_relationship_logits.argmax(1)
            follows += zip(labels.tolist(), (answers == labels).tolist(), strict=True)

    targets, losses, right = (torch.cat(parts) for parts in (targets, losses, right))
    loss, unigram = losses.double().mean().item(), -(frequencies / frequencies.sum())[targets].double().log().mean()
    results = {
        "mlm_loss": loss,
        "mlm_perplexity": math.exp(loss),
        "mlm_accuracy": 100 * right.double().mean().item(),
        "mlm_tokens": len(targets),
        "unigram_loss": unigram.item(),
    }
    if pairs:
        true, random = ([ok for label, ok in follows if label == kind] for kind in (0, 1))
        each = min(len(true), len(random))
        known = sum(true[:each]) + sum(random[:each])
        results |= {"nsp_accuracy": 100 * known / max(2 * each, 1), "nsp_pairs": 2 * each}
        results["nsp_p_value"] = float(binomtest(known, 2 * each, alternative="greater").pvalue) if each else 1.0
    return results


__all__ = ["METRICS", "SETTINGS", "evaluate_language_model", "load_language_model", "random_language_model", "run"]
