"""The system's words for what went wrong."""

import os
import re


def reason(error: BaseException) -> str:
    """What went wrong, in one line: the system's words for it, where the system refused something."""
    causes = [error]
    while (earlier := causes[-1].__cause__ or causes[-1].__context__) is not None and earlier not in causes:
        causes.append(earlier)
    system = next((cause for cause in causes if isinstance(cause, OSError) and cause.strerror), None)
    if system is not None:
        return str(system.strerror)
    # TensorStore, which writes Orbax's arrays, and safetensors have it in their text.
    number = re.search(r"os_error_code='(\d+)'|\(os error (\d+)\)", str(error))
    if number is not None:
        return os.strerror(int(number[1] or number[2]))
    return " ".join(str(error).split())[:200] or type(error).__name__
