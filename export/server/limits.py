"""What a server takes on at once: bounds of requests, of the queue, of memory and of time."""

from dataclasses import dataclass

from compressor.schema.arguments import check_above_zero, check_whole

MIB = 1 << 20


@dataclass(frozen=True)
class ServerLimits:
    """Bounds of a server; beyond each a request is refused by name.

    Attributes:
        parallel: answers that are made at once.
        queue: requests that wait behind them.
        max_tokens: of an answer; what a request gets that names no number.
        max_images: pictures of a request.
        max_request_bytes: of a request's body, and of a picture's file.
        cache_bytes: of what is kept of pictures; 0: nothing is.
        client_seconds: that a client may take for its headers, for its body, and to read on.
        stop_seconds: that answers may take to end when the server stops.

    Raises:
        BackendError: a number is out of bounds.
    """

    parallel: int = 1
    queue: int = 16
    max_tokens: int = 1024
    max_images: int = 16
    max_request_bytes: int = 20 * MIB
    cache_bytes: int = 256 * MIB
    client_seconds: float = 30.0
    stop_seconds: float = 30.0

    def __post_init__(self) -> None:
        check_whole("parallel", self.parallel, 1, 64)
        check_whole("queue", self.queue, 0, 10_000)
        check_whole("max_tokens", self.max_tokens, 1)
        check_whole("max_images", self.max_images, 0, 1000)
        check_whole("max_request_bytes", self.max_request_bytes, 1024, 1 << 30)
        check_whole("cache_bytes", self.cache_bytes, 0)
        check_above_zero("client_seconds", self.client_seconds)
        check_above_zero("stop_seconds", self.stop_seconds)
