"""Objects that are nothing but their constructor's arguments: solvers and gradient strategies."""

import inspect


class Configured:
    """Prints as the call that makes it, so that a log line says what really runs."""

    def __repr__(self) -> str:
        names = (name for name in inspect.signature(type(self)).parameters if hasattr(self, name))
        arguments = (f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__name__}({', '.join(arguments)})"
