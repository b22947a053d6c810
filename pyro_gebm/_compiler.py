"""``torch.compile`` and what is beneath it, with a way back."""

import warnings
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar, final
from unittest import mock

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


@final
class Compiler:
    """``torch.compile`` of functions, until it fails for one; then none is compiled.

    Args:
        wanted: compile at all.
        what: what goes on without it, for the warning.
    """

    def __init__(self, wanted: bool, what: str) -> None:
        self.works = wanted
        """Functions are compiled, as far as is known."""
        self._what = what

    def compiled(self, function: F) -> F:
        """The function, compiled at its first call."""
        if not self.works:
            return function
        fast: list[Callable[..., Any]] = []

        def run(*inputs: Any) -> Any:
            if not self.works:
                return function(*inputs)
            try:
                if not fast:
                    fast.append(torch.compile(function, options=_for_this_processor()))
                return fast[0](*inputs)
            except Exception as error:
                # An error of the function itself comes again, as its own, from the line below.
                value = function(*inputs)
                self.give_up(error)
                return value

        return run  # type: ignore[return-value]

    def give_up(self, error: Exception) -> None:
        """From now on nothing is compiled, with a warning that says why."""
        self.works = False
        warnings.warn(
            f"torch.compile failed ({type(error).__name__}); {self._what} goes on without it; a "
            "C++ compiler may be missing",
            stacklevel=3,
        )


_kind = attrgetter("shape", "dtype", "device")


@final
class Traced:
    """A function of tensors, written down and compiled once for each kind of inputs.

    Unlike ``torch.compile`` it asks nothing at a call, which takes longer than a small network
    does: what Python decides within is decided once, and shapes, types and devices at the call
    are those of the kind. Tensors that the function knows from elsewhere may change in place.

    Args:
        function: of tensors, which gives a tuple of tensors. It may change those it is given, if
            they are contiguous.
        compiler: it is asked whether to, and told when it fails.
    """

    def __init__(self, function: Callable[..., Any], compiler: Compiler) -> None:
        self._function, self._compiler = function, compiler
        self._ready: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def at(self, *inputs: Tensor) -> Callable[..., Any] | None:
        """What does it for inputs of this kind; ``None`` where compiling has ever failed."""
        if not self._compiler.works:
            return None
        kind = torch.get_num_threads(), *map(_kind, inputs)
        if kind not in self._ready:
            try:
                self._ready[kind] = _compiled(self._function, inputs)
            except Exception as error:
                self._compiler.give_up(error)
                return None
        return self._ready[kind]


@torch.no_grad()
def _compiled(function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Callable[..., Any]:
    # Here, since they take two seconds to import.
    import torch._inductor
    from torch._guards import TracingContext, tracing
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # Tracing carries it out.
    copies = [x.detach().clone(memory_format=torch.contiguous_format) for x in inputs]
    graph = _written_down(function, copies)
    for node in graph.graph.nodes:
        node.meta.pop("val", None)  # of another mode than the one below
    # As torch.compile goes about it, or torch's cache of compiled graphs is left aside.
    mode = FakeTensorMode(shape_env=ShapeEnv())
    examples = [mode.from_tensor(x, static_shapes=True) for x in copies]
    with tracing(TracingContext(mode)):
        whole = torch._inductor.compile(graph, [*examples], options=_for_this_processor())
    call = _beneath(whole, copies)  # what fails at all fails here

    def run(*inputs: Any) -> Any:
        if torch.is_grad_enabled():  # asked, since setting it again takes longer
            with torch.no_grad():
                return run(*inputs)
        # It asserts the strides that it was compiled for.
        return call([x.contiguous() for x in inputs])

    return run


def _for_this_processor() -> dict[str, Any]:
    """Options of torch's compiler that have it look after the width of a processor's vectors.

    Its cache on disk does not tell processors apart; loops that were written down for wider vectors
    would leave out a part of the numbers, without a word.
    """
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    return {"cpp.simdlen": pick_vec_isa().bit_width()}


def _beneath(whole: Callable[..., Any], inputs: list[Tensor]) -> Callable[[list[Tensor]], Any]:
    """A compiled function of a list of tensors, without what torch has around it.

    That looks after views, gradients and caches at each call, which for a small network takes as
    long as computing it. What lies beneath wants the tensors that are known from elsewhere, too.
    It is called by itself where it is found to do the same, bit for bit.

    Args:
        whole: the function of tensors.
        inputs: tensors of the kind that it was compiled for.
    """

    def around(given: list[Tensor]) -> Any:
        return whole(*given)

    first, second = ([x.clone() for x in inputs] for _ in range(2))
    expected, calls = _watched(around, first)
    for graph, given in calls:
        known = given[: len(given) - len(first)]
        # Another thread's, or torch has put things in another order.
        if [*map(id, given[len(known) :])] != [*map(id, first)]:
            continue
        direct = partial(_call, graph, known)
        if _same([*direct(second), *second], [*expected, *first]):
            return direct
    return around


def _call(graph: Callable[..., Any], known: list[Any], given: list[Tensor]) -> Any:
    return graph([*known, *given])  # it empties the list


def _watched(function: Callable[[list[Tensor]], Any], inputs: list[Tensor]) -> tuple[Any, Any]:
    """What it gives, and which graphs inductor ran meanwhile, each with what it was given."""
    calls: list[tuple[Any, list[Any]]] = []
    try:
        from torch._inductor.output_code import CompiledFxGraph
    except ImportError:
        return function(inputs), calls
    honest = CompiledFxGraph.__call__

    def noted(self: Any, given: Any) -> Any:
        calls.append((self.current_callable, list(given)))
        return honest(self, given)

    with mock.patch.object(CompiledFxGraph, "__call__", noted):
        return function(inputs), calls


def _same(some: list[Any], others: list[Any]) -> bool:
    """Whether they are the same tensors, bit for bit."""
    return len(some) == len(others) and all(
        _kind(a) == _kind(b) and bool(((a == b) | (a.isnan() & b.isnan())).all())
        for a, b in zip(some, others, strict=True)
    )


def _written_down(function: Callable[..., Any], inputs: list[Tensor]) -> Any:
    """Its graph, with less to do where that is known to be the same."""
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.graph import CodeGen

    graph = make_fx(lambda tensors: function(*tensors), decomposition_table=_SPELT_OUT)(inputs)
    graph.graph.set_codegen(CodeGen())  # tensors in, not a list of them
    _merge_sigmoids(graph.graph)
    _add_biases_last(graph.graph)
    _multiply_outer_products(graph.graph)
    graph.recompile()
    return graph


_SPELT_OUT = {torch.ops.aten.silu.default: lambda x: x * x.sigmoid()}
"""So that its derivative, which has the same sigmoid, shares it: see ``_merge_sigmoids``."""


def _merge_sigmoids(graph: Any) -> None:
    """Of the same tensor, unless it or the sigmoid may change in place."""
    first: dict[Any, Any] = {}
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.sigmoid.default:
            twin = first.setdefault(node.args[0], node)
            touched = (*map(_is_aliased, (node, twin, node.args[0])), _is_view(node.args[0]))
            if twin is not node and not any(touched):
                node.replace_all_uses_with(twin)
                graph.erase_node(node)


def _is_aliased(node: Any) -> bool:
    """Something looks at its memory under another name, or writes to it."""
    for user in node.users:
        schema = getattr(user.target, "_schema", None)
        if schema is None:
            if user.op != "output":
                return True
            continue
        given = {a.name: v for a, v in zip(schema.arguments, user.args, strict=False)}
        given |= user.kwargs
        shared = {a.name for a in schema.arguments if a.alias_info is not None}
        if any(value is node and name in shared for name, value in given.items()):
            return True
    return False


def _is_view(node: Any) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(value.alias_info is not None for value in schema.returns)


def _add_biases_last(graph: Any) -> None:
    """On a CPU, let the loop after a matrix product add the bias, which costs nothing there.

    ``addmm`` first writes the bias to all rows. A difference, since torch's inductor would make
    an ``addmm`` of a sum again.
    """
    aten = torch.ops.aten
    products = {node for node in graph.nodes if node.target is aten.mm.default}
    for node in list(graph.nodes):
        if node.target is aten.addmm.default:
            bias, *factors = node.args
        elif node.target is aten.add.Tensor and node.args[0] in products:
            (product, bias), factors = node.args, ()
        else:
            continue
        if node.kwargs or not _is_bias(bias):
            continue
        with graph.inserting_before(node):
            if factors:
                product = graph.call_function(aten.mm.default, tuple(factors))
            node.args = product, graph.call_function(aten.neg.default, (bias,))
        node.target = aten.sub.Tensor


def _multiply_outer_products(graph: Any) -> None:
    """Elementwise, so that inductor fuses them with what follows.

    Such is the product at the energy's last layer on the way back: over one term.
    """
    aten = torch.ops.aten
    for node in graph.nodes:
        if node.target is aten.mm.default:
            left = _value(node.args[0])
            if left is not None and left.shape[1] == 1:
                node.target = aten.mul.Tensor


def _is_bias(node: Any) -> bool:
    value = _value(node)
    return value is not None and value.ndim == 1 and value.is_cpu and value.is_floating_point()


def _value(node: Any) -> Tensor | None:
    """The tensor that was seen there in tracing; a number has none."""
    value = getattr(node, "meta", {}).get("val")
    return value if isinstance(value, Tensor) else None
