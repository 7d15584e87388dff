"""JSON that other people wrote: objects without duplicate keys, and files whose faults become a sentence."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any, NoReturn

from modelscope_app.api.errors import BadInput

LARGEST_BYTES = 100_000_000
"""Size above which no header, index or config is read. The format's reference implementation has the same limit on headers."""


def unique_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`, UTF-8, every key of every object once. Raises ValueError that says what is wrong with it."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    value = _decoded(text)
    if type(value) is not dict:
        raise ValueError("not a JSON object")
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except (UnicodeEncodeError, RecursionError):
            raise ValueError("a string in it is not valid Unicode") from None
    return value


def object_in_file(path: Path) -> dict[str, Any]:
    """The JSON object in a config file. NaN, infinities and repeated keys are let through, as the libraries that write them do.

    Raises BadInput naming the file.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadInput(f"{path} is not a regular file")
        if status.st_size > LARGEST_BYTES:
            raise BadInput(f"{path} is larger than {LARGEST_BYTES:,} bytes, which no such file should be; not read")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}") from None
    except RecursionError:
        raise BadInput(f"{path} is nested too deeply to be read") from None
    except ValueError as error:
        raise BadInput(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path} should hold a JSON object and holds {type(value).__name__}")
    return value


def _decoded(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos})") from None
    except _Fault:
        raise
    except ValueError:
        raise ValueError("a number in it is thousands of digits long") from None


class _Fault(ValueError):
    """What a hook of the decoder objects to."""


def _no_constant(constant: str) -> NoReturn:
    raise _Fault(f"not JSON ({constant} is not a JSON number)")


def _pairs_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Fault(f"the key {key[:200]} appears twice")
            seen.add(key)
    return value


_DECODER = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_pairs_once)
