"""Every method, by its stem: `METHODS["mae"]` is the model class, `METHODS["mae"].config_class` its config."""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from .mae import MAEConfig, MAEForPreTraining

METHODS = {
    "mae": MAEForPreTraining,
}

for _model in METHODS.values():
    AutoConfig.register(_model.config_class.model_type, _model.config_class, exist_ok=True)
    AutoModel.register(_model.config_class, _model, exist_ok=True)
    AutoModelForPreTraining.register(_model.config_class, _model, exist_ok=True)

__all__ = ["METHODS", "MAEConfig", "MAEForPreTraining"]
