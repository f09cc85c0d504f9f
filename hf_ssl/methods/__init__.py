"""Every method, by its stem: `METHODS["mae"]` is the model class, `METHODS["mae"].config_class` its config."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)

from ._cpc_audio_model import CPCAudioModel, CPCAudioModelConfig
from ._cpc_text_model import CPCTextModel, CPCTextModelConfig
from ._resnet import SSLResNetBackbone, SSLResNetConfig, SSLResNetForImageClassification, SSLResNetModel
from ._word_vectors import Word2VecModel, WordVectorsConfig
from .bert import BERTConfig, BERTForPreTraining
from .clip import CLIPForPreTraining, SSLCLIPConfig
from .cpc_audio import CPCAudioConfig, CPCAudioForPreTraining
from .cpc_text import CPCTextConfig, CPCTextForPreTraining
from .mae import MAEConfig, MAEForPreTraining
from .moco import MoCoConfig, MoCoForPreTraining
from .simclr import SimCLRConfig, SimCLRForPreTraining
from .word2vec import Word2VecConfig, Word2VecForPreTraining

METHODS = {
    "bert": BERTForPreTraining,
    "clip": CLIPForPreTraining,
    "cpc_audio": CPCAudioForPreTraining,
    "cpc_text": CPCTextForPreTraining,
    "mae": MAEForPreTraining,
    "moco": MoCoForPreTraining,
    "simclr": SimCLRForPreTraining,
    "word2vec": Word2VecForPreTraining,
}

for _model in METHODS.values():
    AutoConfig.register(_model.config_class.model_type, _model.config_class, exist_ok=True)
    AutoModel.register(_model.config_class, _model, exist_ok=True)
    AutoModelForPreTraining.register(_model.config_class, _model, exist_ok=True)

AutoConfig.register(CPCAudioModelConfig.model_type, CPCAudioModelConfig, exist_ok=True)
AutoModel.register(CPCAudioModelConfig, CPCAudioModel, exist_ok=True)
AutoConfig.register(SSLResNetConfig.model_type, SSLResNetConfig, exist_ok=True)
AutoModel.register(SSLResNetConfig, SSLResNetModel, exist_ok=True)
AutoModelForImageClassification.register(SSLResNetConfig, SSLResNetForImageClassification, exist_ok=True)
AutoBackbone.register(SSLResNetConfig, SSLResNetBackbone, exist_ok=True)
AutoConfig.register(WordVectorsConfig.model_type, WordVectorsConfig, exist_ok=True)
AutoModel.register(WordVectorsConfig, Word2VecModel, exist_ok=True)
AutoConfig.register(CPCTextModelConfig.model_type, CPCTextModelConfig, exist_ok=True)
AutoModel.register(CPCTextModelConfig, CPCTextModel, exist_ok=True)

__all__ = [
    "METHODS",
    "BERTConfig",
    "BERTForPreTraining",
    "CLIPForPreTraining",
    "CPCAudioConfig",
    "CPCAudioForPreTraining",
    "CPCAudioModel",
    "CPCAudioModelConfig",
    "CPCTextConfig",
    "CPCTextForPreTraining",
    "CPCTextModel",
    "MAEConfig",
    "MAEForPreTraining",
    "MoCoConfig",
    "MoCoForPreTraining",
    "SSLCLIPConfig",
    "SSLResNetBackbone",
    "SSLResNetConfig",
    "SSLResNetForImageClassification",
    "SSLResNetModel",
    "CPCTextModelConfig",
    "SimCLRConfig",
    "SimCLRForPreTraining",
    "Word2VecConfig",
    "Word2VecForPreTraining",
    "Word2VecModel",
    "WordVectorsConfig",
]
