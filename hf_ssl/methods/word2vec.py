"""word2vec: a word's vector is what predicts the words around it.

Mikolov et al. 2013, https://arxiv.org/abs/1301.3781 (CBOW and skip-gram) and https://arxiv.org/abs/1310.4546 (negative
sampling, subsampling). Official code: https://github.com/tmikolov/word2vec (word2vec.c).

Skip-gram lets each context word predict the word in the middle (word2vec.c's direction), CBOW their mean. `forward` is
the differentiable form, for study and tests: a step of plain SGD on the sum of its losses is word2vec.c's update.
`hf_ssl.training.word_loop` makes the same updates without autograd, hundreds of times as fast.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec

from ._base import SSLConfig, SSLModel, SSLOutput
from ._random import NEGATIVES_STREAM, fold_in, uniform
from ._word_vectors import Word2VecModel, WordVectorsConfig
from ._words import FORMULAS, huffman_paths, noise_distribution

ARCHITECTURES = ("skip_gram", "cbow")
OBJECTIVES = ("negative_sampling", "hierarchical_softmax", "softmax")


@strict
class Word2VecConfig(SSLConfig):
    """Defaults: word2vec.c's, with skip-gram.

    backbone_config: of the table of word vectors. architecture: skip_gram or cbow. objective: negative_sampling,
    hierarchical_softmax or softmax (over all words: for study). window: the most words on each side; each position
    draws its own from 1 to this. negatives: for each prediction. shared_negatives: how many a block of 16 words draws
    together, weighted to count as `negatives` (fast; skip-gram with negative sampling only); 0: each prediction draws
    its own. min_count: rarer words are dropped before anything else. subsampling: the threshold t, 0 for none, and
    subsampling_formula, code or paper. noise_exponent: of the counts, for drawing negatives.
    """

    model_type = "ssl_word2vec"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="ssl_word_vectors")}

    backbone_config: dict | PreTrainedConfig | None = None
    architecture: str = "skip_gram"
    objective: str = "negative_sampling"
    window: int = 5
    negatives: int = 5
    shared_negatives: int = 16
    min_count: int = 5
    subsampling: float = 1e-3
    subsampling_formula: str = "code"
    noise_exponent: float = 0.75

    def validate_choices(self):
        for name, known in (
            ("architecture", ARCHITECTURES),
            ("objective", OBJECTIVES),
            ("subsampling_formula", FORMULAS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, found '{getattr(self, name)}'.")
        self.check_least(window=1, negatives=1, shared_negatives=0, min_count=1)
        for name in ("subsampling", "noise_exponent"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}.")


class Word2VecForPreTraining(SSLModel):
    config: Word2VecConfig
    base_model_prefix = "words"
    main_input_name = "input_ids"
    input_modalities = ("text",)
    supports_gradient_checkpointing = False

    def __init__(self, config: Word2VecConfig):
        super().__init__(config)
        self.words = Word2VecModel(config.backbone_config)
        # a row for each word, or, with hierarchical softmax, for each inner node of the tree
        self.output_embeddings = nn.Embedding(config.backbone_config.vocab_size, config.backbone_config.hidden_size)
        # how often each word was seen; word 0, which stands for padding and unknown words, never
        self.register_buffer("counts", torch.ones(config.backbone_config.vocab_size, dtype=torch.int64))
        self.post_init()

    def forward(self, input_ids, labels, sample_seeds=None, negatives=None, **kwargs):
        """The mean over words of the summed losses of the predictions of each.

        input_ids: (N, C), the words around each of the words in the middle, labels, (N,); 0 where there are fewer.
        negatives: (N, I, K) with I = C for skip-gram and 1 for CBOW; drawn from `sample_seeds`, (N,) int64, if there
        are any, and afresh if not. One that equals the label does not count.
        """
        contexts = self.words.embeddings(input_ids)  # (N, C, D)
        present = input_ids != 0
        if self.config.architecture == "cbow":
            total, count = contexts.sum(1, keepdim=True), present.sum(1)[:, None, None].clamp(min=1)
            # the mean, but every context word gets the error undivided, as in word2vec.c and gensim; divided, nothing
            # is learnt at the usual rates
            contexts = total - (total - total / count).detach()  # (N, 1, D)
            present = present.any(1, keepdim=True)
        if self.config.objective == "softmax":
            logits = contexts @ self.output_embeddings.weight[1:].T  # (N, I, V - 1)
            targets = (labels[:, None] - 1).expand(logits.shape[:2])
            losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")  # (N, I)
        elif self.config.objective == "hierarchical_softmax":
            nodes, turns = self._paths(labels)  # (N, L) each
            logits = contexts @ self.output_embeddings(nodes).transpose(1, 2)  # (N, I, L)
            on_path = turns[:, None] >= 0
            losses = F.binary_cross_entropy_with_logits(
                logits, turns[:, None].clamp(min=0).expand_as(logits), weight=on_path.float(), reduction="none"
            ).sum(-1)
        else:
            if negatives is None:
                negatives = self._draw_negatives(*contexts.shape[:2], sample_seeds)
            candidates = torch.cat([labels[:, None, None].expand(*negatives.shape[:2], 1), negatives], 2)
            logits = torch.einsum("nid,nikd->nik", contexts, self.output_embeddings(candidates))  # (N, I, 1 + K)
            counts = candidates != labels[:, None, None]
            counts[..., 0] = True
            signs = torch.ones_like(logits)
            signs[..., 1:] = -1
            losses = -(F.logsigmoid(signs * logits) * counts).sum(-1)
        loss = (losses * present).sum() / len(labels)
        return SSLOutput(loss=loss, logits=logits, features=self.embed(input_ids))

    def _draw_negatives(self, count, inputs, sample_seeds):
        shape = (count, inputs, self.config.negatives)
        if sample_seeds is None:
            draws = torch.rand(shape, device=self.device)
        else:
            draws = uniform(fold_in(sample_seeds, NEGATIVES_STREAM), shape[1] * shape[2]).view(shape)
        bounds = noise_distribution(self.counts, self.config.noise_exponent).cumsum(0)
        return torch.searchsorted(bounds, draws.double(), right=True).clamp(max=len(bounds) - 1)

    def _paths(self, labels):
        """The inner nodes above each word and the turns taken there, 1 or 0, and -1 after the end: (N, L) each."""
        offsets, nodes, turns = (part.to(labels.device) for part in _tree(tuple(self.counts.tolist())))
        lengths = offsets[labels + 1] - offsets[labels]
        steps = torch.arange(int(lengths.max()), device=labels.device)
        place = (offsets[labels, None] + steps).clamp(max=len(nodes) - 1)  # (N, L)
        return nodes[place], torch.where(steps < lengths[:, None], turns[place], -1.0)

    def embed(self, input_ids, attention_mask=None):
        """The mean of the vectors of the known words, (N, D)."""
        return self.words(input_ids, attention_mask).pooler_output

    def resize_token_embeddings(self, *args, **kwargs):
        """As transformers'; a new word has been seen once, and its output vector is 0."""
        resized = super().resize_token_embeddings(*args, **kwargs)
        size, new = resized.num_embeddings, max(0, resized.num_embeddings - len(self.counts))
        self.counts = F.pad(self.counts, (0, new), value=1)[:size]
        weight = self.output_embeddings.weight
        self.output_embeddings = nn.Embedding.from_pretrained(
            F.pad(weight.detach(), (0, 0, 0, new))[:size].clone(), freeze=False
        )
        return resized

    def export_encoder(self) -> Word2VecModel:
        encoder = Word2VecModel(WordVectorsConfig.from_dict(self.config.backbone_config.to_dict()))
        encoder.load_state_dict(self.words.state_dict())
        return encoder.float().eval()

    @torch.no_grad()
    def _init_weights(self, module):
        """word2vec.c: input vectors as Word2VecModel says, all output vectors 0."""
        if module is self:
            init.ones_(self.counts)
        elif module is self.output_embeddings:
            init.zeros_(module.weight)
        else:
            self.words._init_weights(module)


@lru_cache(maxsize=1)
def _tree(counts):
    return huffman_paths(torch.tensor(counts))


__all__ = ["Word2VecConfig", "Word2VecForPreTraining"]
