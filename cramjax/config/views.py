"""Types of a configuration's sections, for code that takes a configuration apart.

At run time a configuration is an `ml_collections.ConfigDict`. Recipes change it; `resolve` returns
it frozen, and an assignment raises then. These protocols name its keys and their types for readers
and type checkers. `schema.py` and `families.py` say what each key means, and a test holds the
files together.
"""

from __future__ import annotations

from collections.abc import ItemsView, Mapping
from typing import Any, Protocol


class Section(Protocol):
    """A part of a configuration."""

    def __getitem__(self, key: str) -> Any:
        """Returns the value of `key`; raises KeyError for an unknown key."""
        ...

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the value of `key`, or `default` for an unknown key."""
        ...

    def items(self) -> ItemsView[str, Any]:
        """Returns the pairs of keys and values."""
        ...

    def update(self, values: Mapping[str, Any] = ..., /, **more: Any) -> None:
        """Sets keys, in a recipe."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Returns a nested dict of plain values."""
        ...


class BudgetConfig(Section, Protocol):
    """The limits of a run; the first one reached ends it."""

    hours: float | None
    steps: int | None
    tokens: float | None
    flops: float | None


class DataConfig(Section, Protocol):
    """The text, its tokenizer and the sequences made of it.

    In a resolved configuration no key is "auto". `max_mb` may be "budget" until a run replaces it
    (`training/text_amount`): from then on, and in every configuration on disk, it is a number or
    None.
    """

    source: str | list[Any] | tuple[Any, ...]
    heldout: str | None
    mixture_limit: int | None
    mixture_temperature: float
    cache_dir: str
    seq_len: int
    target_len: int | None
    vocab_size: int
    language: str | None
    tokenizer: str
    tokenizer_sample_mb: float
    lowercase: bool
    ascii_only: bool
    text_field: str
    source_field: str | None
    target_field: str | None
    source_prefix: str
    long_pairs: str
    keep: str | None
    max_mb: float | None
    normalize: bool
    min_chars: int
    max_chars: int | None
    compressibility: float | None
    dedup_exact: bool
    dedup_near: float | None
    heldout_fraction: float
    order: str
    cls_token: bool
    document_end: bool
    loader: str
    verify: str
    extra_ids: int
    allow_build: bool
    allow_loss: bool
    allow_change: bool
    max_shard_tokens: int


class ModelConfig(Section, Protocol):
    """The keys that every family of networks has."""

    family: str
    n_layers: int
    d_model: int
    n_heads: int
    d_ff: int
    ffn: str
    ffn_rank: int
    norm_eps: float
    dropout: float
    attention_dropout: float
    vocab_multiple: int
    attention: str
    unroll: str | int | bool
    remat: str


class EncoderModelConfig(ModelConfig, Protocol):
    """An encoder (BERT)."""

    norm_position: str
    norm: str
    norm_bias: bool
    first_norm: bool
    embedding_norm: bool
    final_norm: bool
    linear_bias: bool
    positions: str
    max_positions: int
    rotary_base: float
    local_window: int
    global_every: int
    local_rotary_base: float
    token_types: int
    head_transform: bool
    head_bias: bool
    decoder_bias: bool
    init_std: float
    document_attention: bool


class T5ModelConfig(ModelConfig, Protocol):
    """An encoder-decoder (T5)."""

    n_decoder_layers: int | None
    head_dim: int | None
    relative_buckets: int
    relative_max_distance: int
    tie_embeddings: bool


class OptimizerConfig(Section, Protocol):
    """The update rule and its numbers."""

    name: str
    lr: float
    b1: float
    b2: float
    eps: float
    weight_decay: float
    parameter_scale: str
    relative_step: bool
    momentum: float
    momentum_warmup: int
    embedding_lr: float
    scalar_lr: float
    cautious: bool
    average: int
    clip_norm: float | None
    max_skipped: int


class ScheduleConfig(Section, Protocol):
    """Learning rate, batch ramp and early end over the share of the budget that is spent."""

    name: str
    span_steps: int | None
    warmup: float
    warmup_from: float
    plateau: float
    cooldown: float
    final: float
    batch_ramp: float
    ramp_start: int | None
    stop_loss: float | None
    stop_after: float


class ObjectiveConfig(Section, Protocol):
    """The training objective."""

    name: str
    noise_density: float
    mean_span: float
    mask_rate: float
    mask_share: float
    random_share: float
    hard_masks: float
    mask_special: bool
    causal: bool
    generator_width: float
    generator_layers: int | None
    label_smoothing: float
    z_loss: float
    pool: int


class MeshConfig(Section, Protocol):
    """Devices along each axis of the mesh."""

    data: int
    fsdp: int
    tensor: int


class CheckpointConfig(Section, Protocol):
    """When a checkpoint is saved, and which are kept."""

    every_minutes: float
    every_steps: int | None
    keep: int
    at_hours: list[float] | tuple[float, ...] | None


class EvalConfig(Section, Protocol):
    """When and on how much held-out text the model is evaluated, and which answers are scored."""

    every_fraction: float
    batches: int
    batch_size: int
    bleu: bool
    bleu_source: str | None
    bleu_every_fraction: float
    bleu_pairs: int
    beams: int
    length_penalty: float


class LogConfig(Section, Protocol):
    """The records that a run writes of itself."""

    every_steps: int
    noise_scale: bool
    tensorboard: bool
    wandb: str | None
    trackio: str | None
    samples: int
    fill_masks: int


class GrowthConfig(Section, Protocol):
    """Progressive training: `stages.of` reads `stages`."""

    stages: list[Any] | tuple[Any, ...] | None
    until: str
    depth: str
    noise: float
    moments: str
    rewarm: float
    control: str | None


class Config(Section, Protocol):
    """A whole configuration, as `get_config` returns it."""

    name: str
    seed: int
    init_from: str | None
    init_embeddings: str
    budget: BudgetConfig
    data: DataConfig
    batch_size: int
    microbatch_size: int | None
    model: ModelConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    objective: ObjectiveConfig
    precision: str
    mesh: MeshConfig
    checkpoint: CheckpointConfig
    eval: EvalConfig
    log: LogConfig
    growth: GrowthConfig
