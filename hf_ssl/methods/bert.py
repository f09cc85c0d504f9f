"""BERT: guess hidden words from both sides, and whether one text follows another.

Devlin et al. 2018, https://arxiv.org/abs/1810.04805. Official code: https://github.com/google-research/bert.
Encoder and heads are transformers' BERT under its own names. Differences from the official code: GELU is exact, not its
tanh approximation; the loss is divided by the number of masked tokens without the official 1e-5.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, BertConfig, BertForPreTraining, BertModel, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.bert.modeling_bert import BertLMPredictionHead, BertPreTrainingHeads

from ._backbone import load_parts
from ._base import SSLConfig, SSLModel, SSLOutput
from ._distributed import gather, world_size
from ._masking import mask_tokens


@strict
class BERTConfig(SSLConfig):
    """Defaults: BERT-base and create_pretraining_data.py.

    backbone_config: a BertConfig, the model that is released. mask_probability: part of a row's tokens, [CLS] and [SEP]
    counted, that is hidden, at most max_predictions_per_seq (the official 20 are for 128 tokens, 77 for 512).
    masked_fraction, random_fraction: of these, what becomes [MASK], and what any word; the rest stays as it is.
    next_sentence_prediction: whether rows are pairs of segments. mask_token_id, special_token_ids: of the tokenizer, the
    latter never hidden ([CLS] and [SEP]; padding never is).
    """

    model_type = "ssl_bert"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="bert")}

    backbone_config: dict | PreTrainedConfig | None = None
    mask_probability: float = 0.15
    max_predictions_per_seq: int = 20
    masked_fraction: float = 0.8
    random_fraction: float = 0.1
    next_sentence_prediction: bool = True
    mask_token_id: int = 103
    special_token_ids: list[int] | tuple[int, ...] = (101, 102)

    @property
    def tie_word_embeddings(self) -> bool:
        """Of the backbone, so that the release has it too."""
        return self.backbone_config.tie_word_embeddings

    @tie_word_embeddings.setter
    def tie_word_embeddings(self, value):
        self.backbone_config.tie_word_embeddings = value

    def validate_masking(self):
        if not isinstance(self.backbone_config, BertConfig):
            found = self.backbone_config.model_type
            raise ValueError(f"backbone_config must be of model_type 'bert' for BERT, found '{found}'.")
        for name in ("mask_probability", "masked_fraction", "random_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], found {getattr(self, name)}.")
        if self.masked_fraction + self.random_fraction > 1:
            total = f"{self.masked_fraction} + {self.random_fraction}"
            raise ValueError(f"masked_fraction and random_fraction must add up to at most 1, found {total}.")
        self.check_least(max_predictions_per_seq=1)
        vocabulary = self.backbone_config.vocab_size
        if not 0 <= self.mask_token_id < vocabulary:
            raise ValueError(f"mask_token_id must lie in the vocabulary of {vocabulary}, found {self.mask_token_id}.")


class BERTForPreTraining(SSLModel):
    config: BERTConfig
    base_model_prefix = "bert"
    main_input_name = "input_ids"
    input_modalities = ("text",)
    encoder_class = BertForPreTraining
    _no_split_modules = ["BertEmbeddings", "BertLayer"]
    _tied_weights_keys = BertForPreTraining._tied_weights_keys
    get_output_embeddings = BertForPreTraining.get_output_embeddings
    set_output_embeddings = BertForPreTraining.set_output_embeddings

    def __init__(self, config: BERTConfig):
        super().__init__(config)
        self.bert = BertModel(config.backbone_config)
        self.cls = BertPreTrainingHeads(config.backbone_config)
        self.post_init()
        if not config.next_sentence_prediction:  # what is not trained should not be noise either
            self.bert.pooler.requires_grad_(False)
            self.cls.seq_relationship.requires_grad_(False)

    def forward(
        self,
        input_ids,
        attention_mask=None,
        token_type_ids=None,
        next_sentence_label=None,
        document_ids=None,
        labels=None,
        sample_seeds=None,
        **kwargs,
    ):
        """input_ids: (N, L). next_sentence_label: (N,), 0 where the second segment follows the first, 1 where it is random.
        document_ids: (N, L), of rows that hold several texts, numbered from 1, 0 for padding; texts do not see each other.

        What is hidden follows from `sample_seeds`, (N,) int64, and is drawn afresh without them. With `labels`, (N, L), it
        has been hidden before: the tokens to guess, and -100 where there is nothing to guess. In eval mode the loss is of the
        words alone where there is no `next_sentence_label`.
        """
        if self.training and self.config.next_sentence_prediction and next_sentence_label is None:
            raise ValueError(
                "next_sentence_prediction needs next_sentence_label: found none; set it to False for words only."
            )
        if document_ids is not None:
            attention_mask = document_ids.ne(0)
        elif attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if labels is None:
            input_ids, chosen, targets = self.mask(input_ids, attention_mask, sample_seeds)
        else:
            chosen = labels.flatten().ne(-100).nonzero()[:, 0]  # waits for the device
            targets = labels.flatten()[chosen]
        encoded = self.encode(input_ids, attention_mask, token_type_ids, document_ids)
        tokens = encoded.last_hidden_state  # (N, L, D)

        # the widest product of the model, made for the hidden tokens alone
        logits = self.cls.predictions(tokens.flatten(0, 1).index_select(0, chosen))  # (N P, vocabulary)
        # the mean over the hidden tokens of all processes, which need not have as many
        everyones = gather(targets.ne(-100).sum()[None]).sum().clamp(min=1)
        loss = F.cross_entropy(logits.float(), targets, reduction="sum") * world_size() / everyones
        if self.config.next_sentence_prediction and next_sentence_label is not None:
            follows = self.cls.seq_relationship(encoded.pooler_output)  # (N, 2)
            loss = loss + F.cross_entropy(follows.float(), next_sentence_label)
        hidden = torch.zeros_like(input_ids).flatten().scatter(0, chosen, targets.ne(-100).long())
        features = _mean(tokens.detach(), attention_mask)
        return SSLOutput(loss=loss, logits=logits, features=features, mask=hidden.view_as(input_ids))

    def mask(self, input_ids, attention_mask, sample_seeds=None):
        """(corrupted input_ids; of N P slots where they are in the flat batch, and the tokens to guess, -100 if unused)."""
        config, (rows, length) = self.config, input_ids.shape
        if sample_seeds is None:
            sample_seeds = torch.randint(2**62, (rows,), device=input_ids.device)
        maskable = attention_mask.bool()
        for token in config.special_token_ids:
            maskable = maskable & input_ids.ne(token)
        input_ids, positions, originals, used = mask_tokens(
            input_ids, maskable, attention_mask.sum(1), sample_seeds, probability=config.mask_probability,
            most=config.max_predictions_per_seq, mask_id=config.mask_token_id, masked=config.masked_fraction,
            random=config.random_fraction, vocab_size=config.backbone_config.vocab_size,
        )  # fmt: skip
        first = length * torch.arange(rows, device=input_ids.device)[:, None]
        return input_ids, (first + positions).flatten(), originals.masked_fill(~used, -100).flatten()

    def encode(self, input_ids, attention_mask, token_type_ids=None, document_ids=None):
        """The output of BertModel; texts that share a row count their positions and attend by themselves."""
        position_ids = None
        if document_ids is not None:
            if self.bert.config._attn_implementation not in ("eager", "sdpa", "flex_attention"):
                found = self.bert.config._attn_implementation
                raise ValueError(
                    f"Packed texts need attn_implementation sdpa, eager or flex_attention, found '{found}'."
                )
            index = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
            begins = document_ids.diff(dim=1, prepend=document_ids[:, :1] - 1).ne(0)
            position_ids = index - index.where(begins, 0).cummax(1).values
            attention_mask = create_bidirectional_mask(
                self.bert.config,
                self.bert.embeddings.word_embeddings.weight.new_empty(*input_ids.shape, 0),  # its shape and type
                attention_mask=None,  # padding sees padding, as document 0
                and_mask_function=lambda row, head, query, key: document_ids[row, query] == document_ids[row, key],
            )
        return self.bert(input_ids, attention_mask, token_type_ids, position_ids)

    def embed(self, input_ids, attention_mask=None, token_type_ids=None):
        """The mean over a row's tokens of the last hidden state, (N, D)."""
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return _mean(self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state, attention_mask)

    def export_encoder(self) -> BertForPreTraining:
        """A plain BertForPreTraining with both heads."""
        native = BertForPreTraining(BertConfig.from_dict(self.config.backbone_config.to_dict()))
        native.load_state_dict(self.state_dict())
        return native.float().eval()

    def load_encoder(self, encoder: BertForPreTraining, missing=()):
        """Both heads too."""
        load_parts(self, encoder, missing)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self and not self.config.next_sentence_prediction:
            init.eye_(self.bert.pooler.dense.weight)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=self.config.backbone_config.initializer_range)
        elif isinstance(module, BertLMPredictionHead):
            init.zeros_(module.bias)


def _mean(tokens, attention_mask):
    """(N, L, D) to (N, D)."""
    weights = attention_mask.to(tokens.dtype)[..., None]
    return (tokens * weights).sum(1) / weights.sum(1)


__all__ = ["BERTConfig", "BERTForPreTraining"]
