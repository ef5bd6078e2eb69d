"""Flat run configurations: a dataclass in the program, an object in config.json, and nothing in between."""

import dataclasses
import difflib
import enum
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from holdfast.runs.files import RunError, to_json

T = TypeVar("T")


class ConfigError(RunError):
    """A configuration does not fit its dataclass. The text names the field, the value seen and what is right."""


def config_to_json(config: Any) -> dict[str, Any]:
    """Every field of the dataclass instance `config`, in JSON's types.

    Raises:
        ConfigError: if `config` is no dataclass instance, or a field does not hold what its annotation says.
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise ConfigError(f"config is a {type(config).__name__}; pass an instance of a dataclass")
    data = {f.name: to_json(getattr(config, f.name), f.name) for f in dataclasses.fields(config)}
    config_from_json(type(config), data)
    return data


def config_from_json(cls: type[T], data: Mapping[str, Any], *, partial: bool = False) -> T:
    """The dataclass `cls` from `data`, every field checked against its annotation.

    Annotations may be bool, int, float, str, enums (by name), Literal, unions with None, and tuples of those.

    Args:
        partial: whether missing fields take their defaults. Off for what a run wrote itself: there a missing field
            means another version, whose default may have been another.

    Raises:
        ConfigError: unknown, missing or ill-typed field.
    """
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ConfigError(f"{cls!r} is not a dataclass")
    if not isinstance(data, Mapping):
        raise ConfigError(f"{cls.__name__}: the data is a {type(data).__name__}; it must be an object of named fields")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for name in data:
        if name not in fields:
            close = difflib.get_close_matches(str(name), fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the fields are: {', '.join(fields)}"
            raise ConfigError(f"{cls.__name__}.{name} = {data[name]!r}: there is no such field; {hint}")
    hints = typing.get_type_hints(cls)
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _convert(data[name], hints[name], f"{cls.__name__}.{name}")
            continue
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if not (partial and has_default):
            raise ConfigError(f"{cls.__name__}.{name} is missing; it must be {_words(hints[name])}")
    return cls(**values)


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for option in sorted(arguments, key=lambda option: not _is_exactly(value, option)):
            try:
                return _convert(value, option, where)
            except ConfigError:
                continue
        raise _wrong(value, hint, where)
    if origin is typing.Literal:
        for option in arguments:
            if type(option) is type(value) and option == value:
                return option
        raise _wrong(value, hint, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(value, hint, where)
        variable = len(arguments) == 2 and arguments[1] is Ellipsis
        inner = arguments[:1] * len(value) if variable else arguments
        if len(inner) != len(value):
            raise _wrong(value, hint, where)
        return tuple(_convert(v, h, f"{where}[{i}]") for i, (v, h) in enumerate(zip(value, inner)))
    if hint in (None, type(None)):
        if value is None:
            return None
        raise _wrong(value, hint, where)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        if isinstance(value, str) and value in hint.__members__:
            return hint[value]
        raise _wrong(value, hint, where)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is float and value in ("NaN", "Infinity", "-Infinity"):
        return float(value)
    if _is_exactly(value, hint):
        return value
    if hint in (bool, int, float, str):
        raise _wrong(value, hint, where)
    raise ConfigError(
        f"{where}: fields of type {_words(hint)} are not supported; use bool, int, float, str, an enum, Literal, "
        "a union with None, or a tuple of those"
    )


def _is_exactly(value: Any, hint: Any) -> bool:
    return hint in (bool, int, float, str) and type(value) is hint


def _wrong(value: Any, hint: Any, where: str) -> ConfigError:
    return ConfigError(f"{where} = {value!r} is a {type(value).__name__}; it must be {_words(hint)}")


def _words(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(option) for option in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(option) for option in arguments)
    if origin is tuple:
        return f"list of {', '.join('...' if a is Ellipsis else _words(a) for a in arguments)}"
    if hint in (None, type(None)):
        return "null"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(hint.__members__)
    return getattr(hint, "__name__", str(hint))
