"""What serves requests once a worker has become an instance."""

from stoker_runtime.engines.handler_context import HandlerContext

__all__ = ["HandlerContext"]
