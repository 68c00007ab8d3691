"""aiokafka's errors, translated once: what they mean for the caller."""

from __future__ import annotations

from aiokafka import errors as kafka

from deimos_async.errors import BrokerError, BrokerUnavailableError, CommitError

__all__ = ["describe", "is_refusal", "is_too_large", "translate", "translate_commit"]

_AWAY = (
    kafka.KafkaConnectionError,
    kafka.KafkaTimeoutError,
    kafka.NoBrokersAvailable,
    kafka.NodeNotReadyError,
    kafka.RequestTimedOutError,
    TimeoutError,
    OSError,
)

_LOST = (
    kafka.CommitFailedError,
    kafka.IllegalStateError,
    kafka.UnknownMemberIdError,
    kafka.IllegalGenerationError,
    kafka.RebalanceInProgressError,
)

# A broker answers a whole batch with these before it stores anything.
_REFUSALS = (
    kafka.MessageSizeTooLargeError,
    kafka.RecordListTooLargeError,
    kafka.CorruptRecordException,
    kafka.InvalidTopicError,
    kafka.InvalidTimestampError,
    kafka.InvalidRequiredAcksError,
    kafka.TopicAuthorizationFailedError,
    kafka.ClusterAuthorizationFailedError,
    kafka.UnsupportedForMessageFormatError,
    kafka.PolicyViolationError,
    kafka.UnknownTopicOrPartitionError,
)

_OF_TOPIC = (
    kafka.InvalidTopicError,
    kafka.TopicAuthorizationFailedError,
    kafka.ClusterAuthorizationFailedError,
    kafka.UnknownTopicOrPartitionError,
)


def describe(error: BaseException) -> str:
    """The error in words, with its class; Kafka's errors often have no text."""
    name, text = type(error).__name__, str(error).removesuffix(f"{type(error).__name__}: ")
    if text.startswith(name):
        return text  # Kafka's own errors begin with their name
    return f"{name}: {text}" if text else name


def translate(error: BaseException, doing: str) -> BrokerError:
    """The error of ours that says the same; raise it `from` the original. `doing` begins the sentence."""
    if isinstance(error, BrokerError):
        return error
    text = f"{doing}: {describe(error)}"
    if isinstance(error, kafka.UnsupportedCodecError):
        text += "; to read compressed records install the library: pip install 'deimos-async[compression]'"
    if isinstance(error, _AWAY):
        return BrokerUnavailableError(text)
    translated = BrokerError(text)
    translated.retriable = bool(getattr(error, "retriable", False))
    return translated


def translate_commit(error: BaseException, group: str) -> CommitError:
    """Why a commit failed: lost membership, brokers that are away for now, or a refusal."""
    if isinstance(error, _LOST):
        return CommitError(
            f"group {group!r}: partitions to commit belong to another member by now ({describe(error)})", lost=True
        )
    retriable = isinstance(error, _AWAY) or bool(getattr(error, "retriable", False))
    return CommitError(f"group {group!r}: offsets could not be committed: {describe(error)}", retriable=retriable)


def is_refusal(error: BaseException) -> bool:
    """Whether a failed batch is certainly not stored."""
    return isinstance(error, _REFUSALS)


def is_of_topic(error: BaseException) -> bool:
    """Whether a refusal is one of the topic, whatever is sent to it."""
    return isinstance(error, _OF_TOPIC)


def is_too_large(error: BaseException) -> bool:
    """Whether a smaller batch may be accepted."""
    return isinstance(error, kafka.MessageSizeTooLargeError | kafka.RecordListTooLargeError)
