from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from martlet.common.v1 import job_pb2 as _job_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OnBadRows(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ON_BAD_ROWS_UNSPECIFIED: _ClassVar[OnBadRows]
    ON_BAD_ROWS_FAIL: _ClassVar[OnBadRows]
    ON_BAD_ROWS_SKIP: _ClassVar[OnBadRows]

class OnLongRows(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ON_LONG_ROWS_UNSPECIFIED: _ClassVar[OnLongRows]
    ON_LONG_ROWS_TRUNCATE: _ClassVar[OnLongRows]
    ON_LONG_ROWS_REFUSE: _ClassVar[OnLongRows]

class Device(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEVICE_UNSPECIFIED: _ClassVar[Device]
    DEVICE_AUTO: _ClassVar[Device]
    DEVICE_CPU: _ClassVar[Device]
    DEVICE_CUDA: _ClassVar[Device]
ON_BAD_ROWS_UNSPECIFIED: OnBadRows
ON_BAD_ROWS_FAIL: OnBadRows
ON_BAD_ROWS_SKIP: OnBadRows
ON_LONG_ROWS_UNSPECIFIED: OnLongRows
ON_LONG_ROWS_TRUNCATE: OnLongRows
ON_LONG_ROWS_REFUSE: OnLongRows
DEVICE_UNSPECIFIED: Device
DEVICE_AUTO: Device
DEVICE_CPU: Device
DEVICE_CUDA: Device

class TrainingJob(_message.Message):
    __slots__ = ("name", "display_name", "spec", "state", "error", "create_time", "start_time", "end_time", "update_time", "labels", "attempt", "progress", "result")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    name: str
    display_name: str
    spec: TrainingSpec
    state: _job_pb2.JobState
    error: _status_pb2.Status
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    labels: _containers.ScalarMap[str, str]
    attempt: int
    progress: _job_pb2.JobProgress
    result: TrainingResult
    def __init__(self, name: _Optional[str] = ..., display_name: _Optional[str] = ..., spec: _Optional[_Union[TrainingSpec, _Mapping]] = ..., state: _Optional[_Union[_job_pb2.JobState, str]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., create_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ..., attempt: _Optional[int] = ..., progress: _Optional[_Union[_job_pb2.JobProgress, _Mapping]] = ..., result: _Optional[_Union[TrainingResult, _Mapping]] = ...) -> None: ...

class TrainingSpec(_message.Message):
    __slots__ = ("base_model", "training_dataset", "validation_dataset", "recipe", "tuner", "hyperparameters", "data", "resources", "checkpoints", "suffix", "recipe_options", "seed", "trackers", "training_datasets")
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    TRAINING_DATASET_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_DATASET_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    TUNER_FIELD_NUMBER: _ClassVar[int]
    HYPERPARAMETERS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    SUFFIX_FIELD_NUMBER: _ClassVar[int]
    RECIPE_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TRACKERS_FIELD_NUMBER: _ClassVar[int]
    TRAINING_DATASETS_FIELD_NUMBER: _ClassVar[int]
    base_model: str
    training_dataset: str
    validation_dataset: str
    recipe: str
    tuner: TunerConfig
    hyperparameters: Hyperparameters
    data: DataConfig
    resources: ResourceConfig
    checkpoints: CheckpointConfig
    suffix: str
    recipe_options: _struct_pb2.Struct
    seed: int
    trackers: _containers.RepeatedCompositeFieldContainer[TrackerConfig]
    training_datasets: _containers.RepeatedCompositeFieldContainer[DatasetSample]
    def __init__(self, base_model: _Optional[str] = ..., training_dataset: _Optional[str] = ..., validation_dataset: _Optional[str] = ..., recipe: _Optional[str] = ..., tuner: _Optional[_Union[TunerConfig, _Mapping]] = ..., hyperparameters: _Optional[_Union[Hyperparameters, _Mapping]] = ..., data: _Optional[_Union[DataConfig, _Mapping]] = ..., resources: _Optional[_Union[ResourceConfig, _Mapping]] = ..., checkpoints: _Optional[_Union[CheckpointConfig, _Mapping]] = ..., suffix: _Optional[str] = ..., recipe_options: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., seed: _Optional[int] = ..., trackers: _Optional[_Iterable[_Union[TrackerConfig, _Mapping]]] = ..., training_datasets: _Optional[_Iterable[_Union[DatasetSample, _Mapping]]] = ...) -> None: ...

class TrackerConfig(_message.Message):
    __slots__ = ("kind", "project", "run_name", "entity", "tags")
    KIND_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    RUN_NAME_FIELD_NUMBER: _ClassVar[int]
    ENTITY_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    project: str
    run_name: str
    entity: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, kind: _Optional[str] = ..., project: _Optional[str] = ..., run_name: _Optional[str] = ..., entity: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ...) -> None: ...

class DatasetSample(_message.Message):
    __slots__ = ("dataset", "count", "share", "name")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    count: int
    share: float
    name: str
    def __init__(self, dataset: _Optional[str] = ..., count: _Optional[int] = ..., share: _Optional[float] = ..., name: _Optional[str] = ...) -> None: ...

class TunerConfig(_message.Message):
    __slots__ = ("kind", "lora_rank", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "use_rslora", "use_dora", "quantization", "options", "init_weights", "target_regex")
    KIND_FIELD_NUMBER: _ClassVar[int]
    LORA_RANK_FIELD_NUMBER: _ClassVar[int]
    LORA_ALPHA_FIELD_NUMBER: _ClassVar[int]
    LORA_DROPOUT_FIELD_NUMBER: _ClassVar[int]
    TARGET_MODULES_FIELD_NUMBER: _ClassVar[int]
    MODULES_TO_SAVE_FIELD_NUMBER: _ClassVar[int]
    USE_RSLORA_FIELD_NUMBER: _ClassVar[int]
    USE_DORA_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    INIT_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    TARGET_REGEX_FIELD_NUMBER: _ClassVar[int]
    kind: str
    lora_rank: int
    lora_alpha: float
    lora_dropout: float
    target_modules: _containers.RepeatedScalarFieldContainer[str]
    modules_to_save: _containers.RepeatedScalarFieldContainer[str]
    use_rslora: bool
    use_dora: bool
    quantization: str
    options: _struct_pb2.Struct
    init_weights: str
    target_regex: str
    def __init__(self, kind: _Optional[str] = ..., lora_rank: _Optional[int] = ..., lora_alpha: _Optional[float] = ..., lora_dropout: _Optional[float] = ..., target_modules: _Optional[_Iterable[str]] = ..., modules_to_save: _Optional[_Iterable[str]] = ..., use_rslora: bool = ..., use_dora: bool = ..., quantization: _Optional[str] = ..., options: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., init_weights: _Optional[str] = ..., target_regex: _Optional[str] = ...) -> None: ...

class Hyperparameters(_message.Message):
    __slots__ = ("epoch_count", "max_steps", "per_device_batch_size", "gradient_accumulation_steps", "learning_rate", "learning_rate_multiplier", "learning_rate_schedule", "warmup_ratio", "weight_decay", "max_grad_norm", "eval_steps", "early_stopping_patience", "optimizer", "precision", "gradient_checkpointing", "lora_plus_ratio", "neftune_noise_alpha", "projection_rank", "projection_interval", "projection_scale", "use_liger_kernel")
    EPOCH_COUNT_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    PER_DEVICE_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_ACCUMULATION_STEPS_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_MULTIPLIER_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    WARMUP_RATIO_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    MAX_GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    EVAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    EARLY_STOPPING_PATIENCE_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_CHECKPOINTING_FIELD_NUMBER: _ClassVar[int]
    LORA_PLUS_RATIO_FIELD_NUMBER: _ClassVar[int]
    NEFTUNE_NOISE_ALPHA_FIELD_NUMBER: _ClassVar[int]
    PROJECTION_RANK_FIELD_NUMBER: _ClassVar[int]
    PROJECTION_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    PROJECTION_SCALE_FIELD_NUMBER: _ClassVar[int]
    USE_LIGER_KERNEL_FIELD_NUMBER: _ClassVar[int]
    epoch_count: float
    max_steps: int
    per_device_batch_size: int
    gradient_accumulation_steps: int
    learning_rate: float
    learning_rate_multiplier: float
    learning_rate_schedule: str
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    eval_steps: int
    early_stopping_patience: int
    optimizer: str
    precision: str
    gradient_checkpointing: bool
    lora_plus_ratio: float
    neftune_noise_alpha: float
    projection_rank: int
    projection_interval: int
    projection_scale: float
    use_liger_kernel: bool
    def __init__(self, epoch_count: _Optional[float] = ..., max_steps: _Optional[int] = ..., per_device_batch_size: _Optional[int] = ..., gradient_accumulation_steps: _Optional[int] = ..., learning_rate: _Optional[float] = ..., learning_rate_multiplier: _Optional[float] = ..., learning_rate_schedule: _Optional[str] = ..., warmup_ratio: _Optional[float] = ..., weight_decay: _Optional[float] = ..., max_grad_norm: _Optional[float] = ..., eval_steps: _Optional[int] = ..., early_stopping_patience: _Optional[int] = ..., optimizer: _Optional[str] = ..., precision: _Optional[str] = ..., gradient_checkpointing: bool = ..., lora_plus_ratio: _Optional[float] = ..., neftune_noise_alpha: _Optional[float] = ..., projection_rank: _Optional[int] = ..., projection_interval: _Optional[int] = ..., projection_scale: _Optional[float] = ..., use_liger_kernel: bool = ...) -> None: ...

class DataConfig(_message.Message):
    __slots__ = ("max_length", "packing", "on_bad_rows", "on_long_rows", "validation_split", "assistant_only_loss", "system", "last_round_only")
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    PACKING_FIELD_NUMBER: _ClassVar[int]
    ON_BAD_ROWS_FIELD_NUMBER: _ClassVar[int]
    ON_LONG_ROWS_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_SPLIT_FIELD_NUMBER: _ClassVar[int]
    ASSISTANT_ONLY_LOSS_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_FIELD_NUMBER: _ClassVar[int]
    LAST_ROUND_ONLY_FIELD_NUMBER: _ClassVar[int]
    max_length: int
    packing: bool
    on_bad_rows: OnBadRows
    on_long_rows: OnLongRows
    validation_split: float
    assistant_only_loss: bool
    system: str
    last_round_only: bool
    def __init__(self, max_length: _Optional[int] = ..., packing: bool = ..., on_bad_rows: _Optional[_Union[OnBadRows, str]] = ..., on_long_rows: _Optional[_Union[OnLongRows, str]] = ..., validation_split: _Optional[float] = ..., assistant_only_loss: bool = ..., system: _Optional[str] = ..., last_round_only: bool = ...) -> None: ...

class ResourceConfig(_message.Message):
    __slots__ = ("device", "device_count", "priority", "max_attempts", "sharding")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_COUNT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    MAX_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    SHARDING_FIELD_NUMBER: _ClassVar[int]
    device: Device
    device_count: int
    priority: int
    max_attempts: int
    sharding: str
    def __init__(self, device: _Optional[_Union[Device, str]] = ..., device_count: _Optional[int] = ..., priority: _Optional[int] = ..., max_attempts: _Optional[int] = ..., sharding: _Optional[str] = ...) -> None: ...

class CheckpointConfig(_message.Message):
    __slots__ = ("interval_steps", "interval_seconds")
    INTERVAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    interval_steps: int
    interval_seconds: float
    def __init__(self, interval_steps: _Optional[int] = ..., interval_seconds: _Optional[float] = ...) -> None: ...

class TrainingResult(_message.Message):
    __slots__ = ("fine_tuned_model", "model_artifact", "metrics_artifact", "trained_tokens", "training_data", "validation_data", "metrics", "resolved_config", "peak_memory_bytes", "train_seconds", "device")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    FINE_TUNED_MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    METRICS_ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    TRAINED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRAINING_DATA_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_DATA_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    RESOLVED_CONFIG_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRAIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    fine_tuned_model: str
    model_artifact: str
    metrics_artifact: str
    trained_tokens: int
    training_data: DataReport
    validation_data: DataReport
    metrics: _containers.ScalarMap[str, float]
    resolved_config: _struct_pb2.Struct
    peak_memory_bytes: int
    train_seconds: float
    device: str
    def __init__(self, fine_tuned_model: _Optional[str] = ..., model_artifact: _Optional[str] = ..., metrics_artifact: _Optional[str] = ..., trained_tokens: _Optional[int] = ..., training_data: _Optional[_Union[DataReport, _Mapping]] = ..., validation_data: _Optional[_Union[DataReport, _Mapping]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., resolved_config: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., peak_memory_bytes: _Optional[int] = ..., train_seconds: _Optional[float] = ..., device: _Optional[str] = ...) -> None: ...

class DataReport(_message.Message):
    __slots__ = ("rows_read", "rows_used", "rows_truncated", "rows_refused", "tokens", "loss_tokens", "issues", "format", "sources")
    ROWS_READ_FIELD_NUMBER: _ClassVar[int]
    ROWS_USED_FIELD_NUMBER: _ClassVar[int]
    ROWS_TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    ROWS_REFUSED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOSS_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ISSUES_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    rows_read: int
    rows_used: int
    rows_truncated: int
    rows_refused: int
    tokens: int
    loss_tokens: int
    issues: _containers.RepeatedCompositeFieldContainer[RowIssue]
    format: str
    sources: _containers.RepeatedCompositeFieldContainer[DatasetCount]
    def __init__(self, rows_read: _Optional[int] = ..., rows_used: _Optional[int] = ..., rows_truncated: _Optional[int] = ..., rows_refused: _Optional[int] = ..., tokens: _Optional[int] = ..., loss_tokens: _Optional[int] = ..., issues: _Optional[_Iterable[_Union[RowIssue, _Mapping]]] = ..., format: _Optional[str] = ..., sources: _Optional[_Iterable[_Union[DatasetCount, _Mapping]]] = ...) -> None: ...

class DatasetCount(_message.Message):
    __slots__ = ("name", "dataset", "rows_used", "rows_drawn", "tokens")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    ROWS_USED_FIELD_NUMBER: _ClassVar[int]
    ROWS_DRAWN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    name: str
    dataset: str
    rows_used: int
    rows_drawn: int
    tokens: int
    def __init__(self, name: _Optional[str] = ..., dataset: _Optional[str] = ..., rows_used: _Optional[int] = ..., rows_drawn: _Optional[int] = ..., tokens: _Optional[int] = ...) -> None: ...

class RowIssue(_message.Message):
    __slots__ = ("line", "field", "message", "refused")
    LINE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    line: int
    field: str
    message: str
    refused: bool
    def __init__(self, line: _Optional[int] = ..., field: _Optional[str] = ..., message: _Optional[str] = ..., refused: bool = ...) -> None: ...

class TrainingCheckpoint(_message.Message):
    __slots__ = ("artifact", "step", "create_time", "metrics", "fine_tuned_model")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    FINE_TUNED_MODEL_FIELD_NUMBER: _ClassVar[int]
    artifact: str
    step: int
    create_time: _timestamp_pb2.Timestamp
    metrics: _containers.ScalarMap[str, float]
    fine_tuned_model: str
    def __init__(self, artifact: _Optional[str] = ..., step: _Optional[int] = ..., create_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., fine_tuned_model: _Optional[str] = ...) -> None: ...
