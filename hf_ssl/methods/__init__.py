"""Every method, by its stem: `METHODS["mae"]` is the model class, `METHODS["mae"].config_class` its config."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)

from ._alexnet import SSLAlexNetConfig, SSLAlexNetForImageClassification, SSLAlexNetModel
from ._cpc_audio_model import CPCAudioModel, CPCAudioModelConfig
from ._cpc_text_model import CPCTextModel, CPCTextModelConfig
from ._resnet import SSLResNetBackbone, SSLResNetConfig, SSLResNetForImageClassification, SSLResNetModel
from ._sobel import SSLSobelConfig, SSLSobelModel
from ._two_halves import SSLTwoHalvesConfig, SSLTwoHalvesModel
from ._word_vectors import Word2VecModel, WordVectorsConfig
from .amdim import AMDIMConfig, AMDIMForPreTraining
from .autoencoder import AutoencoderConfig, AutoencoderForPreTraining
from .barlow_twins import BarlowTwinsConfig, BarlowTwinsForPreTraining
from .bert import BERTConfig, BERTForPreTraining
from .bigan import BiGANConfig, BiGANForPreTraining
from .clip import CLIPForPreTraining, SSLCLIPConfig
from .cmc import CMCConfig, CMCForPreTraining
from .colorization import ColorizationConfig, ColorizationForPreTraining
from .context_encoder import ContextEncoderConfig, ContextEncoderForPreTraining
from .cpc_audio import CPCAudioConfig, CPCAudioForPreTraining
from .cpc_text import CPCTextConfig, CPCTextForPreTraining
from .deep_cluster import DeepClusterConfig, DeepClusterForPreTraining
from .deep_infomax import DeepInfoMaxConfig, DeepInfoMaxForPreTraining
from .entropy_minimization import EntropyMinimizationConfig, EntropyMinimizationForPreTraining
from .exemplar import ExemplarConfig, ExemplarForPreTraining
from .fixmatch import FixMatchConfig, FixMatchForPreTraining
from .instance_discrimination import InstanceDiscriminationConfig, InstanceDiscriminationForPreTraining
from .jigsaw import JigsawConfig, JigsawForPreTraining
from .mae import MAEConfig, MAEForPreTraining
from .mean_teacher import MeanTeacherConfig, MeanTeacherForPreTraining
from .mixmatch import MixMatchConfig, MixMatchForPreTraining
from .moco import MoCoConfig, MoCoForPreTraining
from .nat import NATConfig, NATForPreTraining
from .pi_model import PiModelConfig, PiModelForPreTraining
from .pirl import PIRLConfig, PIRLForPreTraining
from .pseudo_label import PseudoLabelConfig, PseudoLabelForPreTraining
from .relative_position import RelativePositionConfig, RelativePositionForPreTraining
from .rotation import RotationConfig, RotationForPreTraining
from .s4l import S4LConfig, S4LForPreTraining
from .simclr import SimCLRConfig, SimCLRForPreTraining
from .split_brain import SplitBrainConfig, SplitBrainForPreTraining
from .temporal_ensembling import TemporalEnsemblingConfig, TemporalEnsemblingForPreTraining
from .uda import UDAConfig, UDAForPreTraining
from .vat import VATConfig, VATForPreTraining
from .word2vec import Word2VecConfig, Word2VecForPreTraining

METHODS = {
    "amdim": AMDIMForPreTraining,
    "autoencoder": AutoencoderForPreTraining,
    "barlow_twins": BarlowTwinsForPreTraining,
    "bert": BERTForPreTraining,
    "bigan": BiGANForPreTraining,
    "clip": CLIPForPreTraining,
    "cmc": CMCForPreTraining,
    "colorization": ColorizationForPreTraining,
    "context_encoder": ContextEncoderForPreTraining,
    "cpc_audio": CPCAudioForPreTraining,
    "cpc_text": CPCTextForPreTraining,
    "deep_cluster": DeepClusterForPreTraining,
    "deep_infomax": DeepInfoMaxForPreTraining,
    "entropy_minimization": EntropyMinimizationForPreTraining,
    "exemplar": ExemplarForPreTraining,
    "fixmatch": FixMatchForPreTraining,
    "instance_discrimination": InstanceDiscriminationForPreTraining,
    "jigsaw": JigsawForPreTraining,
    "mae": MAEForPreTraining,
    "mean_teacher": MeanTeacherForPreTraining,
    "mixmatch": MixMatchForPreTraining,
    "moco": MoCoForPreTraining,
    "nat": NATForPreTraining,
    "pi_model": PiModelForPreTraining,
    "pirl": PIRLForPreTraining,
    "pseudo_label": PseudoLabelForPreTraining,
    "relative_position": RelativePositionForPreTraining,
    "rotation": RotationForPreTraining,
    "s4l": S4LForPreTraining,
    "simclr": SimCLRForPreTraining,
    "split_brain": SplitBrainForPreTraining,
    "temporal_ensembling": TemporalEnsemblingForPreTraining,
    "uda": UDAForPreTraining,
    "vat": VATForPreTraining,
    "word2vec": Word2VecForPreTraining,
}

_ARCHITECTURES = (  # what they release where transformers has no such network
    (AutoModel, CPCAudioModel),
    (AutoModel, CPCTextModel),
    (AutoModel, SSLAlexNetModel),
    (AutoModelForImageClassification, SSLAlexNetForImageClassification),
    (AutoModel, SSLResNetModel),
    (AutoModelForImageClassification, SSLResNetForImageClassification),
    (AutoBackbone, SSLResNetBackbone),
    (AutoModel, SSLSobelModel),
    (AutoModel, SSLTwoHalvesModel),
    (AutoModel, Word2VecModel),
)

for _auto, _model in (
    *_ARCHITECTURES,
    *((auto, model) for model in METHODS.values() for auto in (AutoModel, AutoModelForPreTraining)),
):
    AutoConfig.register(_model.config_class.model_type, _model.config_class, exist_ok=True)
    _auto.register(_model.config_class, _model, exist_ok=True)

__all__ = [
    "METHODS",
    "AMDIMConfig",
    "AMDIMForPreTraining",
    "AutoencoderConfig",
    "AutoencoderForPreTraining",
    "BarlowTwinsConfig",
    "BarlowTwinsForPreTraining",
    "BERTConfig",
    "BERTForPreTraining",
    "BiGANConfig",
    "BiGANForPreTraining",
    "CLIPForPreTraining",
    "CMCConfig",
    "CMCForPreTraining",
    "ColorizationConfig",
    "ColorizationForPreTraining",
    "ContextEncoderConfig",
    "ContextEncoderForPreTraining",
    "CPCAudioConfig",
    "CPCAudioForPreTraining",
    "CPCAudioModel",
    "CPCAudioModelConfig",
    "CPCTextConfig",
    "CPCTextForPreTraining",
    "CPCTextModel",
    "CPCTextModelConfig",
    "DeepClusterConfig",
    "DeepClusterForPreTraining",
    "DeepInfoMaxConfig",
    "DeepInfoMaxForPreTraining",
    "EntropyMinimizationConfig",
    "EntropyMinimizationForPreTraining",
    "ExemplarConfig",
    "ExemplarForPreTraining",
    "FixMatchConfig",
    "FixMatchForPreTraining",
    "InstanceDiscriminationConfig",
    "InstanceDiscriminationForPreTraining",
    "JigsawConfig",
    "JigsawForPreTraining",
    "MAEConfig",
    "MAEForPreTraining",
    "MeanTeacherConfig",
    "MeanTeacherForPreTraining",
    "MixMatchConfig",
    "MixMatchForPreTraining",
    "MoCoConfig",
    "MoCoForPreTraining",
    "NATConfig",
    "NATForPreTraining",
    "PiModelConfig",
    "PiModelForPreTraining",
    "PIRLConfig",
    "PIRLForPreTraining",
    "PseudoLabelConfig",
    "PseudoLabelForPreTraining",
    "RelativePositionConfig",
    "RelativePositionForPreTraining",
    "RotationConfig",
    "RotationForPreTraining",
    "S4LConfig",
    "S4LForPreTraining",
    "SimCLRConfig",
    "SimCLRForPreTraining",
    "SplitBrainConfig",
    "SplitBrainForPreTraining",
    "SSLAlexNetConfig",
    "SSLAlexNetForImageClassification",
    "SSLAlexNetModel",
    "SSLCLIPConfig",
    "SSLResNetBackbone",
    "SSLResNetConfig",
    "SSLResNetForImageClassification",
    "SSLResNetModel",
    "SSLSobelConfig",
    "SSLSobelModel",
    "SSLTwoHalvesConfig",
    "SSLTwoHalvesModel",
    "TemporalEnsemblingConfig",
    "TemporalEnsemblingForPreTraining",
    "UDAConfig",
    "UDAForPreTraining",
    "VATConfig",
    "VATForPreTraining",
    "Word2VecConfig",
    "Word2VecForPreTraining",
    "Word2VecModel",
    "WordVectorsConfig",
]
