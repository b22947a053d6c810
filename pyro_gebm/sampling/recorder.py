"""Writing tensor programs down operation by operation, below autograd and ``vmap``."""

from collections.abc import Callable, Iterable, Sequence
from operator import getitem
from typing import Any, final

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_gebm.sampling.tape import COMPUTED, Step, Tape, plain

aten: Any = torch.ops.aten

Args = tuple[Any, ...]
Kwargs = dict[str, Any]

SHAPE_ONLY = {
    getattr(aten, name).default
    for name in (
        *("zeros_like", "ones_like", "full_like", "empty_like"),
        *("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"),
    )
}
"""Operations whose results do not depend on the values of their arguments."""

FAST: dict[Any, Callable[..., Any]] = {
    aten.add.Tensor: torch.add,
    aten.div.Tensor: torch.div,
    aten.exp.default: torch.exp,
    aten.mm.default: torch.mm,
    aten.mul.Tensor: torch.mul,
    aten.pow.Tensor_Scalar: torch.pow,
    aten.sub.Tensor: torch.sub,
    aten.sum.dim_IntList: torch.sum,
}
"""The same operations by their compiled bindings, which take a microsecond or two less."""

BY_VALUE = {
    torch.Tag.nondeterministic_seeded,
    torch.Tag.dynamic_output_shape,
    torch.Tag.data_dependent_output,
}
"""What a replay could not repeat: noise, and what Python reads from values."""


class NotRecordableError(Exception):
    """The program is not one and the same list of operations for every input."""


def record(program: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> Tape:
    """The operations that ``program`` calls at its inputs, gradients and ``vmap`` seen through.

    What does not depend on inputs is computed now, once. Views become one ``as_strided`` of what
    they are views of. Every other operation is called again as it was, with the same strides,
    so that a replay has the same bits.

    Args:
        program: a pure function of its inputs; what else it reads must not change.
        *inputs: where it is run.

    Raises:
        NotRecordableError: an operation draws noise, writes to what is there before or depends on
            nothing, or gives Python something that depends on the values of inputs.

    Example:
        >>> tape = record(lambda u: (2 * torch.eye(2)[0] * u.exp(),), torch.zeros(3, 2))
        >>> tape(torch.ones(3, 2))[0][0], len(tape)
        (tensor([5.4366, 0.0000]), 2)
    """
    start = [plain(u) for u in inputs]
    recorder = _Recorder(start)
    with recorder:
        results = program(*start)
    outputs = [recorder.result(x) for x in results]
    return Tape(recorder.steps, recorder.values, outputs, recorder.checks, len(inputs))


@final
class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation below autograd and ``vmap``, and writes it down."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_inputs = len(inputs)
        self.steps: list[Step] = []
        self.values: list[Any] = []
        """By register: constants, and ``COMPUTED`` for what depends on u."""
        self._live: dict[int, int] = {}
        """Register by ``id`` of what depends on u."""
        self._constants: dict[int, int] = {}
        self._kept: list[Any] = []
        """Constants that ``id`` was taken of, so that none is used twice."""
        self._roots: dict[int, tuple[int, Tensor]] = {}
        """By storage that depends on u: register and tensor of which all others are views."""
        self._views: dict[tuple[Any, ...], int] = {}
        self._members: dict[int, list[Tensor]] = {}
        """All tensors of a storage that depends on u."""
        self._made: dict[int, list[Tensor]] = {}
        """By storage: constants made on the way, which may still be written to, and their views."""
        self.checks: list[int] = []
        """Steps that have no result, such as that a matrix is positive definite."""
        for u in inputs:
            self.values.append(COMPUTED)
            self._put(u, len(self.values) - 1)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else torch imports its compiler for this, which takes seconds.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None
    ) -> Any:
        """The operation, done and written down."""
        kwargs = kwargs or {}
        given = list(_tensors((args, kwargs)))
        for tensor in given:
            self._check_known(tensor)
        live = any(id(tensor) in self._live for tensor in given)
        if live:
            for tensor in _written(func, args, kwargs):
                self._adopt(tensor)
        out = func(*args, **kwargs)
        if not live or func in SHAPE_ONLY:
            self._note_constant(func, args, kwargs, out)
        else:
            self._note(func, args, kwargs, out)
        return out

    def result(self, x: Tensor) -> int:
        """The register of a result.

        Raises:
            NotRecordableError: it does not depend on u, so that a caller could write to a constant.
        """
        if id(x) not in self._live:
            raise NotRecordableError("a result does not depend on the input")
        return self._live[id(x)]

    def _check_known(self, tensor: Tensor) -> None:
        """Refuse a tensor that came by another way from one that depends on u, as ``.data``."""
        if id(tensor) not in self._live and _storage(tensor) in self._roots:
            raise NotRecordableError("a value was taken out of the program")

    def _adopt(self, x: Tensor) -> None:
        """Begin with a copy of a constant made on the way, which will depend on u from now on."""
        if made := self._made.pop(_storage(x), None):
            self._put(made[0], self._step(torch.clone, [self._constant(made[0].clone())], {}))
            for view in made[1:]:
                self._add_view(view)

    def _note_constant(self, func: OpOverload, args: Args, kwargs: Kwargs, out: Any) -> None:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise NotRecordableError(f"{func} draws noise")
        # What was made on the way, and has not been read, a replay does not start from.
        if any(_storage(x) not in self._made for x in _written(func, args, kwargs)):
            raise NotRecordableError(f"{func} writes in place")
        taken = {_storage(tensor) for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(out):
            self._kept.append(tensor)
            if _storage(tensor) in self._made:
                self._made[_storage(tensor)].append(tensor)
            elif _storage(tensor) not in taken and tensor.is_contiguous():
                self._made[_storage(tensor)] = [tensor]

    def _note(self, func: OpOverload, args: Args, kwargs: Kwargs, out: Any) -> None:
        if self._reads_values(func, args):
            raise NotRecordableError(f"{func} draws noise or reads values")
        if func._schema.is_mutable:
            self._note_in_place(func, args, kwargs)
            return
        if out is None:
            self.checks.append(self._call(func, args, kwargs))
            return
        outputs = list(out) if isinstance(out, tuple | list) else [out]
        if not all(isinstance(x, Tensor) for x in outputs):
            raise NotRecordableError(f"{func} gives Python a value")
        if not (rest := [x for x in outputs if not self._add_view(x)]):
            return
        register = self._call(func, args, kwargs)
        if isinstance(out, Tensor):
            self._put(out, register)
            return
        for place, x in enumerate(outputs):
            if any(x is other for other in rest):
                self._put(x, self._step(getitem, [register, self._constant(place)], {}))

    def _call(self, func: OpOverload, args: Args, kwargs: Kwargs) -> int:
        """A step that does the operation; the register of its result."""
        if any(id(tensor) in self._live for tensor in _tensors(kwargs)):
            raise NotRecordableError(f"{func} takes a tensor by name")
        for tensor in _tensors(kwargs):
            self._made.pop(_storage(tensor), None)
        return self._step(FAST.get(func, func), [self._argument(x) for x in args], kwargs)

    def _note_in_place(self, func: OpOverload, args: Args, kwargs: Kwargs) -> None:
        """What is written to has new registers from here on, so that later steps follow this."""
        written = _written(func, args, kwargs)
        storage = _storage(written[0])
        register, root = self._roots.get(storage, (0, args[0]))
        if len(written) > 1 or written[0] is not args[0] or register < self.num_inputs:
            raise NotRecordableError(f"{func} writes to what is not its own")
        done = self._call(func, args, kwargs)
        if self._live[id(args[0])] != register:
            done = self._step(_first, [register, done], {})
        self._roots[storage] = done, root
        for member in self._members[storage]:
            self._add_view(member)

    def _reads_values(self, func: OpOverload, args: Args) -> bool:
        if func == aten.index.Tensor:  # whose shape is in its indices
            return any(id(x) in self._live and x.dtype == torch.bool for x in _tensors(args[1]))
        return bool(BY_VALUE.intersection(func.tags))

    def _add_view(self, x: Tensor) -> bool:
        """Whether ``x`` is a view of what is known: it then needs no more than its strides."""
        if _storage(x) not in self._roots:
            return False
        register, root = self._roots[_storage(x)]
        if x.dtype != root.dtype or x.is_conj() or x.is_neg():
            raise NotRecordableError("a view of another type")
        where = (tuple(x.shape), x.stride(), x.storage_offset())
        if where != (tuple(root.shape), root.stride(), root.storage_offset()):
            key = (register, *where)
            if key not in self._views:
                arguments = [register, *(self._constant(part) for part in where)]
                self._views[key] = self._step(torch.as_strided, arguments, {})
            register = self._views[key]
        self._name(x, register)
        return True

    def _put(self, x: Tensor, register: int) -> None:
        self._name(x, register)
        if x.storage_offset() or x.is_complex():
            raise NotRecordableError("a result in the middle of its memory, or a complex one")
        self._roots[_storage(x)] = register, x

    def _name(self, x: Tensor, register: int) -> None:
        if id(x) not in self._live:
            self._members.setdefault(_storage(x), []).append(x)
        self._live[id(x)] = register

    def _step(self, call: Callable[..., Any], arguments: list[int], kwargs: dict[str, Any]) -> int:
        self.values.append(COMPUTED)
        self.steps.append(Step(call, tuple(arguments), kwargs, len(self.values) - 1))
        return len(self.values) - 1

    def _argument(self, x: Any) -> int:
        if isinstance(x, Tensor) and id(x) in self._live:
            return self._live[id(x)]
        if isinstance(x, tuple | list) and any(id(part) in self._live for part in _tensors(x)):
            return self._step(_as_list, [self._argument(part) for part in x], {})
        return self._constant(x)

    def _constant(self, x: Any) -> int:
        for tensor in _tensors(x):
            self._made.pop(_storage(tensor), None)
        if id(x) not in self._constants:
            self._constants[id(x)] = len(self.values)
            self.values.append(x)
            self._kept.append(x)
        return self._constants[id(x)]


def _as_list(*parts: Any) -> list[Any]:
    return list(parts)


def _first(*parts: Any) -> Any:
    return parts[0]


def _tensors(x: Any) -> Iterable[Tensor]:
    """All tensors in nested tuples, lists and dictionaries."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, tuple | list):
        for part in x:
            yield from _tensors(part)
    elif isinstance(x, dict):
        yield from _tensors(list(x.values()))


def _written(func: OpOverload, args: Args, kwargs: Kwargs) -> list[Tensor]:
    """The tensors that an operation writes to."""
    found = list[Tensor]()
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            by_name = kwargs.get(argument.name)
            found += _tensors(args[place] if place < len(args) else by_name)
    return found


def _storage(x: Tensor) -> int:
    storage = x.untyped_storage()
    # By address, so that memory that went through numpy is known again.
    return storage.data_ptr() or -storage._cdata
