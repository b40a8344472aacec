"""Training of the learned prior by Gaussian denoising of simulated tubes, at the fixed point of the denoiser."""

from bigdeconv.training.config import TrainingConfig, config_names, load_config
from bigdeconv.training.evaluation import evaluate
from bigdeconv.training.exporting import export
from bigdeconv.training.loop import Progress, train

__all__ = ["Progress", "TrainingConfig", "config_names", "evaluate", "export", "load_config", "train"]
