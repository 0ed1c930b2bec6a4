"""The sandbox in which a model maker's chat template runs: Jinja's, in transformers' dialect, with a budget of work.

Jinja's own sandbox bounds `range` alone: two nested loops run for hours, and `'a' * 3000000000` takes the memory. Here
a template is charged, before it is done, for everything whose cost can grow: each pass through the body of a loop,
macro or block by the size of the body, each operation by the size of what it reads or makes. What is not on the short
lists of filters, tests, functions and methods below is refused when the template is compiled, or when it is called.
"""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from contextvars import ContextVar
from typing import Any

import jinja2
from jinja2 import nodes, runtime, sandbox
from transformers.utils import chat_template_utils

_STEP = 16  # what one node of a template costs, in characters
_MAX_BITS = 4096
_MAX_DEPTH = 32
_FORMAT = re.compile(r"%(?:%|[-+ #0]{0,5}\d{0,2}(?:\.\d{1,2})?[sdiuoxXeEfFgGcra])")
_FORMAT_WIDTH = 99
_INDENT = 16

_left: ContextVar[int] = ContextVar("left")


class TooCostly(jinja2.TemplateRuntimeError):
    """The template would do more work than its budget allows."""


def render(template: jinja2.Template, variables: Mapping[str, Any], *, budget: int, limit: int) -> str:
    """Return what `template`, one of `environment()`, renders; a character read or made costs 1 of the `budget`.

    Raises `TooCostly` beyond the budget or `limit` characters of text, and what templates raise.
    """
    context = _left.set(budget)
    try:
        pieces: list[str] = []
        for piece in template.generate(variables):
            limit -= len(piece)
            if limit < 0:
                raise TooCostly("the text is too long")
            pieces.append(piece)
        return "".join(pieces)
    finally:
        _left.reset(context)


@functools.cache
def environment() -> jinja2.Environment:
    """Return the environment that compiles chat templates."""
    return _Environment()


def _charge(cost: int) -> None:
    left = _left.get() - cost
    if left < 0:
        raise TooCostly("the template does too much")
    _left.set(left)


def _weigh(value: object, depth: int = _MAX_DEPTH) -> int:
    """Charge for reading all of `value`, and return how many values it holds."""
    if isinstance(value, str):
        _charge(len(value))
        return 1
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        _charge(_STEP * len(value))
        if not depth:
            raise TooCostly("the template nests too deeply")
        return 1 + sum(_weigh(item, depth - 1) for item in value)
    if isinstance(value, range):
        _charge(_STEP * len(value))
        return 1 + len(value)
    if isinstance(value, int):
        if value.bit_length() > _MAX_BITS:
            raise TooCostly("the template uses too large a number")
        _charge(value.bit_length())
    elif not (value is None or isinstance(value, float | jinja2.Undefined)):
        raise jinja2.TemplateRuntimeError("such a value is no text")  # its text could be of any length
    return 1


def _length(value: object) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict | range) else 1


# What an operation costs. Each takes the operation's arguments and charges for it before it is done.


def _flat(*_: object, **__: object) -> None:
    _charge(_STEP)


def _each(value: object = (), /, *_: object, **__: object) -> None:
    _charge(_length(value) if isinstance(value, str) else _STEP * (1 + _length(value)))


def _whole(*values: object, **more: object) -> None:
    _charge(_STEP)
    for value in (*values, *more.values()):
        _weigh(value)


def _join(value: object, d: object = "", *_: object, **__: object) -> None:
    _charge(_weigh(value) * len(_text(d)))


def _replace(value: object, old: object, new: object, *_: object, **__: object) -> None:
    text = _text(value)
    _charge(len(text) + text.count(_text(old)) * len(_text(new)))


def _indent(value: object, width: object = 4, *_: object, **__: object) -> None:
    text = _text(value)
    _charge(len(text) + (1 + text.count("\n")) * (_small(width) if isinstance(width, int) else len(_text(width))))


def _tojson(x: object, **options: Any) -> None:
    separators = options.get("separators") or ()
    if any(len(_text(separator)) > _INDENT for separator in separators):
        raise jinja2.TemplateRuntimeError("JSON of such a form is refused")
    _charge(_weigh(x) * (_MAX_DEPTH * _small(options.get("indent") or 0) + 2 * _INDENT))


def _formatted(text: object, *arguments: object, **_: object) -> None:
    form = _text(text)
    if "%" in _FORMAT.sub("", form):
        raise jinja2.TemplateRuntimeError("such a format is refused")
    _charge(len(form) + _FORMAT_WIDTH * form.count("%"))
    for argument in arguments:
        _weigh(argument)


def _stripped(text: str, characters: object = None) -> None:
    _charge(_STEP + len(text) * (1 if characters is None else len(_text(characters))))


def _strftime(form: object) -> None:
    _charge(256 * len(_text(form)))  # CPython gives up beyond as much


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise jinja2.TemplateRuntimeError("a text is needed here")
    return value


def _small(number: object) -> int:
    if not isinstance(number, int) or not 0 <= number <= _INDENT:
        raise jinja2.TemplateRuntimeError("such an indentation is refused")
    return number


_Cost = Callable[..., None]
_FILTERS: dict[str, _Cost] = {
    **dict.fromkeys(("abs", "count", "d", "default", "first", "float", "int", "items", "length", "safe"), _flat),
    **dict.fromkeys(("last", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr"), _each),
    **dict.fromkeys(("capitalize", "e", "escape", "lower", "string", "title", "upper"), _whole),
    **{"format": _formatted, "indent": _indent, "join": _join, "replace": _replace, "tojson": _tojson},
    "trim": _stripped,
}
_TESTS: dict[str, _Cost] = {
    **dict.fromkeys(("boolean", "defined", "divisibleby", "even", "false", "float", "integer", "iterable"), _flat),
    **dict.fromkeys(("mapping", "none", "number", "odd", "sameas", "sequence", "string", "true", "undefined"), _flat),
    **dict.fromkeys(("==", "eq", "equalto", "!=", "ne", "<", "lt", "lessthan", "<=", "le", ">", "gt"), _whole),
    **dict.fromkeys(("greaterthan", ">=", "ge", "in", "lower", "upper"), _whole),
}
_FUNCTIONS: dict[str, _Cost] = {
    "dict": _each,
    "namespace": _flat,
    "raise_exception": _flat,
    "range": _flat,
    "strftime_now": _strftime,
}
_METHODS: tuple[tuple[type, Mapping[str, _Cost]], ...] = (
    (
        str,
        {
            **dict.fromkeys(("capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha"), _whole),
            **dict.fromkeys(("isdigit", "islower", "isspace", "isupper", "lower", "partition", "removeprefix"), _whole),
            **dict.fromkeys(("removesuffix", "rfind", "rindex", "rpartition", "rsplit", "split"), _whole),
            **dict.fromkeys(("splitlines", "startswith", "title", "upper"), _whole),
            **dict.fromkeys(("lstrip", "rstrip", "strip"), _stripped),
            **{"join": lambda separator, items: _join(items, separator), "replace": _replace},
        },
    ),
    (dict, {"get": _flat, "items": _each, "keys": _each, "values": _each}),
    (list, {"count": _whole, "index": _whole}),
    (tuple, {"count": _whole, "index": _whole}),
    (runtime.LoopContext, {"changed": lambda _, *values: _whole(*values), "cycle": _flat}),
)


def _solid(value: Any) -> Any:
    """Return `value`, as a list if it is a generator or a view of a mapping: its items count."""
    return list(value) if isinstance(value, types.GeneratorType | KeysView | ValuesView | ItemsView) else value


def _made(value: Any) -> Any:
    """Charge for what an operation made beyond what it read: the items of a list take memory of their own."""
    if isinstance(value, list | tuple):
        _charge(4 * _STEP * len(value))
    return value


def _metered(function: Callable[..., Any], cost: _Cost) -> Callable[..., Any]:
    first = 0 if getattr(function, "jinja_pass_arg", None) is None else 1

    @functools.wraps(function)
    def metered(*arguments: Any, **more: Any) -> Any:
        values = [_solid(value) for value in arguments[first:]]
        cost(*values, **more)
        return _made(_solid(function(*arguments[:first], *values, **more)))

    return metered


@jinja2.pass_context
def _finalize(_: runtime.Context, value: Any) -> Any:
    _whole(value)
    return value


def _read(value: Any) -> Any:
    value = _solid(value)
    _whole(value)
    return value


def _sliced(value: Any) -> Any:
    _each(value)
    return value


def _searched(value: Any) -> Any:
    """Charge for `x in value`, which for a mapping is one look."""
    return value if isinstance(value, Mapping) else _read(value)


def _tick(cost: object) -> bool:
    if type(cost) is not int or cost < 0:  # a template can name this filter too
        raise jinja2.exceptions.SecurityError("a chat template may not call this")
    _charge(cost)
    return True


class _Environment(sandbox.ImmutableSandboxedEnvironment):
    """Compiles templates that pay as they go. Whatever they reach beyond the lists above is refused."""

    intercepted_binops = frozenset(sandbox.SandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        theirs = chat_template_utils._compile_jinja_template("").environment  # the dialect has no other source
        extensions = [type(extension) for extension in theirs.extensions.values()]
        super().__init__(
            # Nothing is worked out while a template is compiled, before there is a budget.
            optimized=False,
            finalize=_finalize,
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=extensions,
        )
        self.filters = {name: _metered(theirs.filters[name], cost) for name, cost in _FILTERS.items()}
        self.filters |= {"_read": _read, "_searched": _searched, "_sliced": _sliced, "_tick": _tick}
        self.tests = {name: _metered(theirs.tests[name], cost) for name, cost in _TESTS.items()}
        self.globals = {name: theirs.globals[name] for name in _FUNCTIONS}
        self._functions = {id(self.globals[name]): cost for name, cost in _FUNCTIONS.items()}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed = super()._parse(source, name, filename)
        _meter(parsed)
        return parsed

    def call(__self, __context: runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        arguments = [_solid(value) for value in args]
        # What compiled code adds for functions that want its context.
        named = {name: value for name, value in kwargs.items() if name not in {"_loop_vars", "_block_vars"}}
        owner = getattr(__obj, "__self__", None)
        if (cost := __self._functions.get(id(__obj))) is not None:
            cost(*arguments, **named)
        elif isinstance(__obj, types.BuiltinMethodType | types.MethodType):
            if owner not in __self.extensions.values():
                methods = next((methods for kind, methods in _METHODS if isinstance(owner, kind)), {})
                if __obj.__name__ not in methods:
                    raise jinja2.exceptions.SecurityError("a chat template may not call this")
                methods[__obj.__name__](owner, *arguments, **named)
        elif not isinstance(__obj, runtime.Macro | runtime.LoopContext | runtime.BlockReference | jinja2.Undefined):
            raise jinja2.exceptions.SecurityError("a chat template may not call this")
        return _made(_solid(super().call(__context, __obj, *arguments, **kwargs)))

    def call_binop(self, context: runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            _formatted(left, right)
        elif operator in {"*", "**"}:
            _multiplied(operator, left, right)
        else:
            _charge(_STEP + _length(left) + _length(right))
        return super().call_binop(context, operator, left, right)


def _multiplied(operator: str, left: Any, right: Any) -> None:
    for one, other in ((left, right), (right, left)):
        if isinstance(one, str | list | tuple) and isinstance(other, int):
            _charge(_STEP * (1 + len(one) * max(other, 0)))
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * max(right, 1) if operator == "**" else left.bit_length() + right.bit_length()
        if bits > _MAX_BITS:
            raise TooCostly("the template uses too large a number")
    _charge(_STEP)


def _meter(template: nodes.Template) -> None:
    """Put into a parsed template the charges for what no call of the environment's would see."""
    for node in list(template.find_all(nodes.Node)):
        if isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock | nodes.Block):
            cost = sum(_STEP + _static(part) for part in _within(node))
            tick = _filtered(nodes.Const(cost, lineno=node.lineno, environment=node.environment), "_tick")
            node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno, environment=node.environment))
            if isinstance(node, nodes.For) and node.test is not None:  # judged without a pass through the body
                node.test = nodes.And(tick, node.test, lineno=node.lineno, environment=node.environment)
        elif isinstance(node, nodes.Compare):
            node.expr = _filtered(node.expr, "_read")
            for operand in node.ops:
                operand.expr = _filtered(operand.expr, "_searched" if operand.op in {"in", "notin"} else "_read")
        elif isinstance(node, nodes.Concat):
            node.nodes = [_filtered(part, "_read") for part in node.nodes]
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            node.node = _filtered(node.node, "_sliced")


def _within(node: nodes.Node) -> Iterator[nodes.Node]:
    yield node
    for child in node.iter_child_nodes():
        yield from _within(child)


def _static(node: nodes.Node) -> int:
    text = node.data if isinstance(node, nodes.TemplateData) else getattr(node, "value", None)
    return len(text) if isinstance(text, str) else 0


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=node.environment)
