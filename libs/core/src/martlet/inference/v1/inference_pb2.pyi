from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OpenAIRoute(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPEN_AI_ROUTE_UNSPECIFIED: _ClassVar[OpenAIRoute]
    OPEN_AI_ROUTE_CHAT_COMPLETIONS: _ClassVar[OpenAIRoute]
    OPEN_AI_ROUTE_COMPLETIONS: _ClassVar[OpenAIRoute]
    OPEN_AI_ROUTE_EMBEDDINGS: _ClassVar[OpenAIRoute]
    OPEN_AI_ROUTE_CLASSIFY: _ClassVar[OpenAIRoute]
    OPEN_AI_ROUTE_POOLING: _ClassVar[OpenAIRoute]
    OPEN_AI_ROUTE_SCORE: _ClassVar[OpenAIRoute]
    OPEN_AI_ROUTE_RERANK: _ClassVar[OpenAIRoute]

class ModelKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_KIND_UNSPECIFIED: _ClassVar[ModelKind]
    MODEL_KIND_WHOLE: _ClassVar[ModelKind]
    MODEL_KIND_ADAPTER: _ClassVar[ModelKind]

class ModelTask(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_TASK_UNSPECIFIED: _ClassVar[ModelTask]
    MODEL_TASK_CAUSAL_LM: _ClassVar[ModelTask]
    MODEL_TASK_SEQUENCE_CLASSIFICATION: _ClassVar[ModelTask]
    MODEL_TASK_TOKEN_CLASSIFICATION: _ClassVar[ModelTask]
    MODEL_TASK_EMBEDDING: _ClassVar[ModelTask]
    MODEL_TASK_RERANKER: _ClassVar[ModelTask]
    MODEL_TASK_REWARD: _ClassVar[ModelTask]

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_STATE_LOADING: _ClassVar[ModelState]
    MODEL_STATE_READY: _ClassVar[ModelState]
    MODEL_STATE_UNHEALTHY: _ClassVar[ModelState]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_ABORT: _ClassVar[FinishReason]
OPEN_AI_ROUTE_UNSPECIFIED: OpenAIRoute
OPEN_AI_ROUTE_CHAT_COMPLETIONS: OpenAIRoute
OPEN_AI_ROUTE_COMPLETIONS: OpenAIRoute
OPEN_AI_ROUTE_EMBEDDINGS: OpenAIRoute
OPEN_AI_ROUTE_CLASSIFY: OpenAIRoute
OPEN_AI_ROUTE_POOLING: OpenAIRoute
OPEN_AI_ROUTE_SCORE: OpenAIRoute
OPEN_AI_ROUTE_RERANK: OpenAIRoute
MODEL_KIND_UNSPECIFIED: ModelKind
MODEL_KIND_WHOLE: ModelKind
MODEL_KIND_ADAPTER: ModelKind
MODEL_TASK_UNSPECIFIED: ModelTask
MODEL_TASK_CAUSAL_LM: ModelTask
MODEL_TASK_SEQUENCE_CLASSIFICATION: ModelTask
MODEL_TASK_TOKEN_CLASSIFICATION: ModelTask
MODEL_TASK_EMBEDDING: ModelTask
MODEL_TASK_RERANKER: ModelTask
MODEL_TASK_REWARD: ModelTask
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_STATE_LOADING: ModelState
MODEL_STATE_READY: ModelState
MODEL_STATE_UNHEALTHY: ModelState
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_ABORT: FinishReason

class CallOpenAIRequest(_message.Message):
    __slots__ = ("route", "model", "stream", "body")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    route: OpenAIRoute
    model: str
    stream: bool
    body: bytes
    def __init__(self, route: _Optional[_Union[OpenAIRoute, str]] = ..., model: _Optional[str] = ..., stream: bool = ..., body: _Optional[bytes] = ...) -> None: ...

class CallOpenAIResponse(_message.Message):
    __slots__ = ("data", "http_status")
    DATA_FIELD_NUMBER: _ClassVar[int]
    HTTP_STATUS_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    http_status: int
    def __init__(self, data: _Optional[bytes] = ..., http_status: _Optional[int] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("model", "prompt", "conversation", "sampling")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    model: str
    prompt: str
    conversation: Conversation
    sampling: SamplingConfig
    def __init__(self, model: _Optional[str] = ..., prompt: _Optional[str] = ..., conversation: _Optional[_Union[Conversation, _Mapping]] = ..., sampling: _Optional[_Union[SamplingConfig, _Mapping]] = ...) -> None: ...

class Conversation(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class SamplingConfig(_message.Message):
    __slots__ = ("max_new_tokens", "temperature", "top_p", "seed", "stop")
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, max_new_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("text", "finish_reason", "usage")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    text: str
    finish_reason: FinishReason
    usage: TokenUsage
    def __init__(self, text: _Optional[str] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., usage: _Optional[_Union[TokenUsage, _Mapping]] = ...) -> None: ...

class TokenUsage(_message.Message):
    __slots__ = ("prompt_tokens", "completion_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    completion_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ...) -> None: ...

class ServedModel(_message.Message):
    __slots__ = ("name", "kind", "state", "base_model", "pinned", "active_requests", "context_length", "state_reason", "task")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    STATE_REASON_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: ModelKind
    state: ModelState
    base_model: str
    pinned: bool
    active_requests: int
    context_length: int
    state_reason: str
    task: ModelTask
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[ModelKind, str]] = ..., state: _Optional[_Union[ModelState, str]] = ..., base_model: _Optional[str] = ..., pinned: bool = ..., active_requests: _Optional[int] = ..., context_length: _Optional[int] = ..., state_reason: _Optional[str] = ..., task: _Optional[_Union[ModelTask, str]] = ...) -> None: ...

class ReplicaLoad(_message.Message):
    __slots__ = ("active_requests", "waiting_requests", "kv_cache_usage", "max_requests")
    ACTIVE_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    WAITING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_USAGE_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    active_requests: int
    waiting_requests: int
    kv_cache_usage: float
    max_requests: int
    def __init__(self, active_requests: _Optional[int] = ..., waiting_requests: _Optional[int] = ..., kv_cache_usage: _Optional[float] = ..., max_requests: _Optional[int] = ...) -> None: ...
