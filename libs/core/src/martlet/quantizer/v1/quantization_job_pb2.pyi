from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from martlet.common.v1 import job_pb2 as _job_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class QuantizationJob(_message.Message):
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
    spec: QuantizationSpec
    state: _job_pb2.JobState
    error: _status_pb2.Status
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    labels: _containers.ScalarMap[str, str]
    attempt: int
    progress: _job_pb2.JobProgress
    result: QuantizationResult
    def __init__(self, name: _Optional[str] = ..., display_name: _Optional[str] = ..., spec: _Optional[_Union[QuantizationSpec, _Mapping]] = ..., state: _Optional[_Union[_job_pb2.JobState, str]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., create_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ..., attempt: _Optional[int] = ..., progress: _Optional[_Union[_job_pb2.JobProgress, _Mapping]] = ..., result: _Optional[_Union[QuantizationResult, _Mapping]] = ...) -> None: ...

class QuantizationSpec(_message.Message):
    __slots__ = ("model", "method", "calibration", "evaluation_dataset", "options", "max_perplexity_ratio", "sample_prompts", "suffix", "seed", "resources", "check_serving")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_DATASET_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_PERPLEXITY_RATIO_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_PROMPTS_FIELD_NUMBER: _ClassVar[int]
    SUFFIX_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    CHECK_SERVING_FIELD_NUMBER: _ClassVar[int]
    model: str
    method: str
    calibration: CalibrationSpec
    evaluation_dataset: str
    options: QuantizationOptions
    max_perplexity_ratio: float
    sample_prompts: _containers.RepeatedScalarFieldContainer[str]
    suffix: str
    seed: int
    resources: QuantizationResources
    check_serving: bool
    def __init__(self, model: _Optional[str] = ..., method: _Optional[str] = ..., calibration: _Optional[_Union[CalibrationSpec, _Mapping]] = ..., evaluation_dataset: _Optional[str] = ..., options: _Optional[_Union[QuantizationOptions, _Mapping]] = ..., max_perplexity_ratio: _Optional[float] = ..., sample_prompts: _Optional[_Iterable[str]] = ..., suffix: _Optional[str] = ..., seed: _Optional[int] = ..., resources: _Optional[_Union[QuantizationResources, _Mapping]] = ..., check_serving: bool = ...) -> None: ...

class CalibrationSpec(_message.Message):
    __slots__ = ("dataset", "builtin", "max_rows", "sequence_length")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    BUILTIN_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    builtin: str
    max_rows: int
    sequence_length: int
    def __init__(self, dataset: _Optional[str] = ..., builtin: _Optional[str] = ..., max_rows: _Optional[int] = ..., sequence_length: _Optional[int] = ...) -> None: ...

class QuantizationOptions(_message.Message):
    __slots__ = ("bits", "group_size", "symmetric", "ignore", "gguf_type", "double_quantization")
    BITS_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    SYMMETRIC_FIELD_NUMBER: _ClassVar[int]
    IGNORE_FIELD_NUMBER: _ClassVar[int]
    GGUF_TYPE_FIELD_NUMBER: _ClassVar[int]
    DOUBLE_QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    bits: int
    group_size: int
    symmetric: bool
    ignore: _containers.RepeatedScalarFieldContainer[str]
    gguf_type: str
    double_quantization: bool
    def __init__(self, bits: _Optional[int] = ..., group_size: _Optional[int] = ..., symmetric: bool = ..., ignore: _Optional[_Iterable[str]] = ..., gguf_type: _Optional[str] = ..., double_quantization: bool = ...) -> None: ...

class QuantizationResources(_message.Message):
    __slots__ = ("priority", "max_attempts")
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    MAX_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    priority: int
    max_attempts: int
    def __init__(self, priority: _Optional[int] = ..., max_attempts: _Optional[int] = ...) -> None: ...

class QuantizationResult(_message.Message):
    __slots__ = ("quantized_model", "model_artifact", "report_artifact", "method", "group_size", "size_bytes", "base_size_bytes", "size_ratio", "bits_per_weight", "quantize_seconds", "peak_memory_bytes", "perplexity", "base_perplexity", "perplexity_ratio", "top1_agreement", "positions", "calibration_rows_read", "calibration_rows_used", "calibration_rows_chopped", "engines")
    QUANTIZED_MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    REPORT_ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    BASE_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SIZE_RATIO_FIELD_NUMBER: _ClassVar[int]
    BITS_PER_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    QUANTIZE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PERPLEXITY_FIELD_NUMBER: _ClassVar[int]
    BASE_PERPLEXITY_FIELD_NUMBER: _ClassVar[int]
    PERPLEXITY_RATIO_FIELD_NUMBER: _ClassVar[int]
    TOP1_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_ROWS_READ_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_ROWS_USED_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_ROWS_CHOPPED_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    quantized_model: str
    model_artifact: str
    report_artifact: str
    method: str
    group_size: int
    size_bytes: int
    base_size_bytes: int
    size_ratio: float
    bits_per_weight: float
    quantize_seconds: float
    peak_memory_bytes: int
    perplexity: float
    base_perplexity: float
    perplexity_ratio: float
    top1_agreement: float
    positions: int
    calibration_rows_read: int
    calibration_rows_used: int
    calibration_rows_chopped: int
    engines: _containers.RepeatedCompositeFieldContainer[EngineCheck]
    def __init__(self, quantized_model: _Optional[str] = ..., model_artifact: _Optional[str] = ..., report_artifact: _Optional[str] = ..., method: _Optional[str] = ..., group_size: _Optional[int] = ..., size_bytes: _Optional[int] = ..., base_size_bytes: _Optional[int] = ..., size_ratio: _Optional[float] = ..., bits_per_weight: _Optional[float] = ..., quantize_seconds: _Optional[float] = ..., peak_memory_bytes: _Optional[int] = ..., perplexity: _Optional[float] = ..., base_perplexity: _Optional[float] = ..., perplexity_ratio: _Optional[float] = ..., top1_agreement: _Optional[float] = ..., positions: _Optional[int] = ..., calibration_rows_read: _Optional[int] = ..., calibration_rows_used: _Optional[int] = ..., calibration_rows_chopped: _Optional[int] = ..., engines: _Optional[_Iterable[_Union[EngineCheck, _Mapping]]] = ...) -> None: ...

class EngineCheck(_message.Message):
    __slots__ = ("engine", "loaded", "detail", "seconds")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    engine: str
    loaded: bool
    detail: str
    seconds: float
    def __init__(self, engine: _Optional[str] = ..., loaded: bool = ..., detail: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...
