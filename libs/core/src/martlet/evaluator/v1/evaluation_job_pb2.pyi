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

class TargetEngine(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TARGET_ENGINE_UNSPECIFIED: _ClassVar[TargetEngine]
    TARGET_ENGINE_GATEWAY: _ClassVar[TargetEngine]
    TARGET_ENGINE_TRANSFORMERS: _ClassVar[TargetEngine]
    TARGET_ENGINE_EXTERNAL: _ClassVar[TargetEngine]
TARGET_ENGINE_UNSPECIFIED: TargetEngine
TARGET_ENGINE_GATEWAY: TargetEngine
TARGET_ENGINE_TRANSFORMERS: TargetEngine
TARGET_ENGINE_EXTERNAL: TargetEngine

class EvaluationJob(_message.Message):
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
    spec: EvaluationSpec
    state: _job_pb2.JobState
    error: _status_pb2.Status
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    labels: _containers.ScalarMap[str, str]
    attempt: int
    progress: _job_pb2.JobProgress
    result: EvaluationResult
    def __init__(self, name: _Optional[str] = ..., display_name: _Optional[str] = ..., spec: _Optional[_Union[EvaluationSpec, _Mapping]] = ..., state: _Optional[_Union[_job_pb2.JobState, str]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., create_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ..., attempt: _Optional[int] = ..., progress: _Optional[_Union[_job_pb2.JobProgress, _Mapping]] = ..., result: _Optional[_Union[EvaluationResult, _Mapping]] = ...) -> None: ...

class EvaluationSpec(_message.Message):
    __slots__ = ("targets", "dataset", "suites", "max_rows", "concurrency", "max_failed_rows", "sampling", "baseline", "category_field", "seed", "resources")
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    SUITES_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    MAX_FAILED_ROWS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    BASELINE_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    targets: _containers.RepeatedCompositeFieldContainer[EvaluationTarget]
    dataset: str
    suites: _containers.RepeatedCompositeFieldContainer[SuiteSpec]
    max_rows: int
    concurrency: int
    max_failed_rows: int
    sampling: SamplingSpec
    baseline: str
    category_field: str
    seed: int
    resources: EvaluationResources
    def __init__(self, targets: _Optional[_Iterable[_Union[EvaluationTarget, _Mapping]]] = ..., dataset: _Optional[str] = ..., suites: _Optional[_Iterable[_Union[SuiteSpec, _Mapping]]] = ..., max_rows: _Optional[int] = ..., concurrency: _Optional[int] = ..., max_failed_rows: _Optional[int] = ..., sampling: _Optional[_Union[SamplingSpec, _Mapping]] = ..., baseline: _Optional[str] = ..., category_field: _Optional[str] = ..., seed: _Optional[int] = ..., resources: _Optional[_Union[EvaluationResources, _Mapping]] = ...) -> None: ...

class EvaluationTarget(_message.Message):
    __slots__ = ("name", "model", "engine", "base_url", "api_key_env")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    BASE_URL_FIELD_NUMBER: _ClassVar[int]
    API_KEY_ENV_FIELD_NUMBER: _ClassVar[int]
    name: str
    model: str
    engine: TargetEngine
    base_url: str
    api_key_env: str
    def __init__(self, name: _Optional[str] = ..., model: _Optional[str] = ..., engine: _Optional[_Union[TargetEngine, str]] = ..., base_url: _Optional[str] = ..., api_key_env: _Optional[str] = ...) -> None: ...

class SuiteSpec(_message.Message):
    __slots__ = ("suite", "options")
    SUITE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    suite: str
    options: _struct_pb2.Struct
    def __init__(self, suite: _Optional[str] = ..., options: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class SamplingSpec(_message.Message):
    __slots__ = ("max_tokens", "temperature", "seed")
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    temperature: float
    seed: int
    def __init__(self, max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class EvaluationResources(_message.Message):
    __slots__ = ("priority", "max_attempts")
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    MAX_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    priority: int
    max_attempts: int
    def __init__(self, priority: _Optional[int] = ..., max_attempts: _Optional[int] = ...) -> None: ...

class EvaluationResult(_message.Message):
    __slots__ = ("report_artifact", "records_artifact", "rows_read", "rows_used", "rows_failed", "targets", "comparisons")
    REPORT_ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    RECORDS_ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    ROWS_READ_FIELD_NUMBER: _ClassVar[int]
    ROWS_USED_FIELD_NUMBER: _ClassVar[int]
    ROWS_FAILED_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    COMPARISONS_FIELD_NUMBER: _ClassVar[int]
    report_artifact: str
    records_artifact: str
    rows_read: int
    rows_used: int
    rows_failed: int
    targets: _containers.RepeatedCompositeFieldContainer[TargetMetrics]
    comparisons: _containers.RepeatedCompositeFieldContainer[Comparison]
    def __init__(self, report_artifact: _Optional[str] = ..., records_artifact: _Optional[str] = ..., rows_read: _Optional[int] = ..., rows_used: _Optional[int] = ..., rows_failed: _Optional[int] = ..., targets: _Optional[_Iterable[_Union[TargetMetrics, _Mapping]]] = ..., comparisons: _Optional[_Iterable[_Union[Comparison, _Mapping]]] = ...) -> None: ...

class TargetMetrics(_message.Message):
    __slots__ = ("name", "model", "metrics")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Metric
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Metric, _Mapping]] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    name: str
    model: str
    metrics: _containers.MessageMap[str, Metric]
    def __init__(self, name: _Optional[str] = ..., model: _Optional[str] = ..., metrics: _Optional[_Mapping[str, Metric]] = ...) -> None: ...

class Metric(_message.Message):
    __slots__ = ("value", "low", "high")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    value: float
    low: float
    high: float
    def __init__(self, value: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class Comparison(_message.Message):
    __slots__ = ("target", "baseline", "metric", "difference", "low", "high", "p_value", "flips_gained", "flips_lost")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    BASELINE_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_FIELD_NUMBER: _ClassVar[int]
    FLIPS_GAINED_FIELD_NUMBER: _ClassVar[int]
    FLIPS_LOST_FIELD_NUMBER: _ClassVar[int]
    target: str
    baseline: str
    metric: str
    difference: float
    low: float
    high: float
    p_value: float
    flips_gained: int
    flips_lost: int
    def __init__(self, target: _Optional[str] = ..., baseline: _Optional[str] = ..., metric: _Optional[str] = ..., difference: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., p_value: _Optional[float] = ..., flips_gained: _Optional[int] = ..., flips_lost: _Optional[int] = ...) -> None: ...
