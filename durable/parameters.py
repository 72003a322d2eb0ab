"""A function's parameters and result: bound where the call is written, encoded where it counts.

Rules:

- What is stored of the arguments is what the caller wrote, by parameter name; defaults belong to
  the code.
- Annotations are resolved when the function is decorated, or, when they name what is defined later,
  at the first call.
- A missing annotation, or ``object``, means ``Any``.
"""

from __future__ import annotations

import inspect
import sys
import typing
from contextlib import suppress
from functools import partial
from types import NoneType, SimpleNamespace
from typing import TYPE_CHECKING, Any, final

import msgspec
from msgspec import UNSET

from durable.core.codec import DecodeError, EncodeError, Shape, encode_canonical
from durable.core.errors import ArgumentError, PayloadTooLarge, ReturnTypeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FrameType

_EMPTY = inspect.Parameter.empty
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@final
class Parameters:
    """The parameters of ``fn`` that callers see, and its result.

    Args:
        fn: The user's function.
        what: Its name, for messages.
        injected: What the first parameter is called, by convention, if callers do not see it.
        frame: Where it is being decorated, to resolve annotations that name local classes.

    Attributes:
        annotations: Those of the parameters, and of the result; resolved, as soon as they can be.

    Raises:
        TypeError: The function lacks the injected parameters, or an annotation has no JSON form.
    """

    def __init__(
        self,
        fn: Callable[..., object],
        what: str,
        *,
        injected: str | None,
        frame: FrameType | None,
    ) -> None:
        self._fn = fn
        self._what = what
        signature = inspect.signature(fn)
        parameters = list(signature.parameters.values())
        if injected is not None and (not parameters or parameters[0].kind not in _POSITIONAL):
            name = getattr(fn, "__name__", "body")
            msg = (
                f"{what} needs `{injected}` as its first parameter: "
                f"`async def {name}({injected}, ...)`"
            )
            raise TypeError(msg)
        self._parameters = parameters if injected is None else parameters[1:]
        self._signature = inspect.Signature(self._parameters)
        self.annotations: dict[str, Any] = {
            p.name: p.annotation for p in self._parameters if p.annotation is not _EMPTY
        }
        if signature.return_annotation is not _EMPTY:
            self.annotations["return"] = signature.return_annotation
        self._places = {p.name: place for place, p in enumerate(self._parameters)}
        self._plain_names = _plain_names(self._parameters)
        self._required_count = sum(p.default is _EMPTY for p in self._parameters)
        self._locals: Mapping[str, Any] = {}
        if frame is not None and frame.f_locals is not frame.f_globals:
            self._locals = dict(frame.f_locals)
        self._own_types: dict[str, type | None] = {}
        self._args: Shape[Any] | None = None
        self._result: Shape[Any] | None = None
        try:
            self._resolve()
        except NameError:
            pass  # Something defined further down: resolved at the first call.
        else:
            self._locals = {}

    def signature(self) -> inspect.Signature:
        """Return what callers see, with its annotations resolved, if they can be by now."""
        with suppress(TypeError):
            self._resolved()
        shown = self.annotations
        return inspect.Signature(
            [p.replace(annotation=shown.get(p.name, _EMPTY)) for p in self._parameters],
            return_annotation=shown.get("return", _EMPTY),
        )

    # --- binding ---------------------------------------------------------------------------------

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments by parameter name.

        Raises:
            TypeError: They do not fit the signature.
        """
        names = self._plain_names
        if names is not None and not kwargs and self._required_count <= len(args) <= len(names):
            return dict(zip(names, args))  # noqa: B905  the longer ones have defaults
        try:
            return self._signature.bind(*args, **kwargs).arguments
        except TypeError as exc:
            msg = f"{self._what}: {exc}"
            raise TypeError(msg) from None

    def as_call(self, arguments: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return arguments by name as positional and keyword arguments."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for parameter in self._parameters:
            if parameter.name not in arguments:
                continue
            value = arguments[parameter.name]
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                args += value
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                kwargs |= value
            elif parameter.kind in _POSITIONAL and len(args) == self._places[parameter.name]:
                args.append(value)
            else:
                kwargs[parameter.name] = value
        return args, kwargs

    def encode(self, arguments: dict[str, Any], payload_max: int) -> str:
        """Check the arguments against their annotations and return their canonical JSON.

        Raises:
            ArgumentError: One does not fit, or has no JSON form.
            PayloadTooLarge: They are larger than ``payload_max`` bytes.
        """
        shape = self._args or self._resolved()[0]
        own_types = self._own_types
        try:
            for name, value in arguments.items():
                if type(value) is not own_types[name]:
                    text, _ = shape.round_trip(arguments, canonical=True)
                    break
            else:
                text = encode_canonical(arguments)
        except (EncodeError, DecodeError) as exc:
            msg = f"{self._what}: {exc}"
            raise ArgumentError(msg) from exc
        if len(text) * 4 > payload_max:
            check_size(text, payload_max, f"the arguments of {self._what}")
        return text

    def encode_unchecked(self, arguments: dict[str, Any]) -> str:
        """Return the canonical JSON of arguments that were checked when they were recorded.

        Raises:
            ArgumentError: One has no JSON form.
        """
        shape = self._args or self._resolved()[0]
        try:
            return encode_canonical(arguments, sorts_sets=shape.sorts_sets)
        except EncodeError as exc:
            msg = f"{self._what}: {exc}"
            raise ArgumentError(msg) from exc

    def decode(self, text: str) -> tuple[list[Any], dict[str, Any]]:
        """Return recorded arguments as positional and keyword arguments.

        Raises:
            DecodeError: They do not fit the annotations.
        """
        values = (self._args or self._resolved()[0]).decode(text)
        if self._plain_names is not None:
            in_order = msgspec.structs.astuple(values)
            if UNSET not in in_order:
                return list(in_order), {}
        given = ((p.name, getattr(values, p.name)) for p in self._parameters)
        return self.as_call({name: value for name, value in given if value is not UNSET})

    # --- results ---------------------------------------------------------------------------------

    def encode_result(self, result: object, payload_max: int) -> tuple[str, Any]:
        """Check a result against its annotation; return its JSON, and what that decodes to.

        Raises:
            ReturnTypeError: It does not fit, or has no JSON form.
            PayloadTooLarge: It is larger than ``payload_max`` bytes.
        """
        shape = self._result or self._resolved()[1]
        try:
            text, value = shape.round_trip(result)
        except (EncodeError, DecodeError) as exc:
            if inspect.iscoroutine(result):
                result.close()
            msg = f"the result of {self._what}: {exc}"
            raise ReturnTypeError(msg) from exc
        if len(text) * 4 > payload_max:
            check_size(text, payload_max, f"the result of {self._what}")
        return text, value

    def decode_result(self, text: str) -> Any:  # noqa: ANN401
        """Return a recorded result.

        Raises:
            DecodeError: It does not fit the annotation.
        """
        return self._resolved()[1].decode(text)

    # --- annotations -----------------------------------------------------------------------------

    def _resolved(self) -> tuple[Shape[Any], Shape[Any]]:
        if self._args is None or self._result is None:
            try:
                self._resolve()
            except NameError as exc:
                msg = (
                    f"an annotation of {self._what} cannot be resolved: {exc}. Import the name at "
                    "run time, not only under TYPE_CHECKING."
                )
                raise TypeError(msg) from exc
        assert self._args is not None
        assert self._result is not None
        return self._args, self._result

    def _resolve(self) -> None:
        hints = typing.get_type_hints(
            SimpleNamespace(__annotations__=self.annotations),
            globalns=globals_of(self._fn),
            localns=dict(self._locals),
            include_extras=True,
        )
        fields = [(p.name, self._field_type(p, hints), UNSET) for p in self._parameters]
        struct = msgspec.defstruct("Arguments", fields, forbid_unknown_fields=True)
        self._args = Shape(struct)
        self._own_types = {name: Shape(hint).own_type for name, hint, _ in fields}
        self._result = self._shape(hints.get("return", Any), "the result")
        self._locals = {}
        self.annotations.update({name: _as_written(hint) for name, hint in hints.items()})

    def _field_type(self, parameter: inspect.Parameter, hints: dict[str, Any]) -> Any:  # noqa: ANN401
        hint = hints.get(parameter.name, Any)
        hint = Any if hint is object else hint
        self._shape(hint, f"parameter {parameter.name!r}")
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            return list.__class_getitem__(hint)
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            return dict.__class_getitem__((str, hint))
        return hint

    def _shape(self, hint: Any, of: str) -> Shape[Any]:  # noqa: ANN401
        try:
            return Shape(hint)
        except TypeError as exc:
            msg = f"the annotation of {of} of {self._what} has no JSON form: {exc}"
            raise TypeError(msg) from exc


def _as_written(hint: Any) -> Any:  # noqa: ANN401  any annotation
    return None if hint is NoneType else hint


def check_size(text: str, payload_max: int, what: str) -> None:
    """Raise ``PayloadTooLarge`` when JSON text is larger than allowed.

    To be asked where four bytes a character would be too large.
    """
    if len(text.encode()) > payload_max:
        msg = (
            f"{what}: {len(text.encode()):,} bytes are more than Engine(max_payload="
            f"{payload_max:,}). Store large values elsewhere and pass a reference."
        )
        raise PayloadTooLarge(msg)


def _plain_names(parameters: list[inspect.Parameter]) -> list[str] | None:
    """Return the names, when all can be given by position: then binding is a zip."""
    if all(p.kind in _POSITIONAL for p in parameters):
        return [p.name for p in parameters]
    return None


def callers_frame() -> FrameType | None:
    """Return the frame of the code that called into the calling module."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001
    assert frame is not None
    inside = frame.f_globals
    while frame is not None and frame.f_globals is inside:
        frame = frame.f_back
    return frame


def globals_of(fn: Callable[..., object]) -> dict[str, Any]:
    """Return what the module of a function names, past partials and decorators."""
    fn = inspect.unwrap(fn)
    if isinstance(fn, partial):
        return globals_of(fn.func)
    if not hasattr(fn, "__globals__") and not inspect.isroutine(fn):
        fn = type(fn).__call__
    return getattr(fn, "__globals__", {})
