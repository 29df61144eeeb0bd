"""Every field that a user can set, declared once: its type, default, help text and range.

A config is a YAML file over these defaults, with dotted flags over both (`--task.num-train 200`).
A folder of the method imports its own section only; what reads, checks and prints configs is
`reading`.
"""

from malt_jax.config.data import DataConfig
from malt_jax.config.evaluation import CANNOT_CHANGE_RESULTS, Ablation, EvalConfig, SystemConfig
from malt_jax.config.export import ExportConfig
from malt_jax.config.lora import LoraConfig
from malt_jax.config.mesh import MeshConfig
from malt_jax.config.model import ModelConfig
from malt_jax.config.pipeline import PipelineConfig, RoleConfig
from malt_jax.config.run import QUICKSTART, Config, from_dict, load, with_defaults
from malt_jax.config.sampler import SamplerConfig
from malt_jax.config.search import SearchConfig
from malt_jax.config.task import TaskConfig
from malt_jax.config.training import DpoConfig, LoopConfig, OptimConfig, SftConfig, TrainConfig

__all__ = [
    "CANNOT_CHANGE_RESULTS",
    "QUICKSTART",
    "Ablation",
    "Config",
    "DataConfig",
    "DpoConfig",
    "EvalConfig",
    "ExportConfig",
    "LoopConfig",
    "LoraConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimConfig",
    "PipelineConfig",
    "RoleConfig",
    "SamplerConfig",
    "SearchConfig",
    "SftConfig",
    "SystemConfig",
    "TaskConfig",
    "TrainConfig",
    "from_dict",
    "load",
    "with_defaults",
]
