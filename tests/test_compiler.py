"""What is compiled: as it is written down, and as it is called."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from test_compiled import needs_compiler, potential
from torch import nn

from pyro_gebm import _compiler
from pyro_gebm.mcmc import CompiledPotential
from pyro_gebm.mcmc.gradients import value_and_grad


@torch.no_grad()
def test_a_network_adds_biases_last_takes_sigmoids_once_and_multiplies_outer_products():
    layers = nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 1)
    net = nn.Sequential(*layers)
    potential_fn = CompiledPotential(lambda z: net(z)[:, 0])
    graph = _compiler._written_down(potential_fn._traceable.value_and_grad, [torch.randn(5, 4)])
    called = [node.target for node in graph.graph.nodes]
    assert torch.ops.aten.addmm.default not in called
    assert called.count(torch.ops.aten.sigmoid.default) == 2
    assert called.count(torch.ops.aten.sub.Tensor) == 3
    # Three on the way there and two on the way back: the first of these is over one term.
    assert called.count(torch.ops.aten.mm.default) == 5


def changed_within(z):
    h = z @ torch.eye(4).to(z)
    first = h.sigmoid()
    h[:, :2] += 1
    return (first * h.sigmoid()).sum(-1)


def changed_beside(z):
    h = z * 2
    first = h.sigmoid().detach()
    first *= 3
    return (first * h.sigmoid()).sum(-1)


def seen_through_a_view(z):
    whole = (z * 2).clone()
    part = whole[:, :2]
    first = part.sigmoid()
    whole += 1
    return (first * part.sigmoid()).sum(-1)


ADDED = [torch.tensor([1, 2, 3], dtype=torch.uint8), torch.tensor([True, False, True])]


@pytest.mark.parametrize(
    "potential_fn",
    [
        changed_within,
        changed_beside,
        seen_through_a_view,
        *(lambda z, more=more: (z[:, :3] @ torch.ones(3, 3) + more).sum(-1) for more in ADDED),
        lambda z: torch.add(z @ torch.ones(4, 3), torch.arange(3.0), alpha=2).sum(-1),
        lambda z: F.silu(z[:, :1] @ torch.arange(3.0)[None]).sum(-1),
        lambda z: (torch.arange(3.0) - z @ torch.ones(4, 3)).square().sum(-1),
        lambda z: F.silu((z @ torch.ones(4, 3)).add(torch.arange(3.0)), inplace=True).sum(-1),
    ],
)
@torch.no_grad()
def test_what_is_written_down_is_what_was_asked_for(potential_fn):
    z = torch.randn(5, 4)
    traceable = CompiledPotential(potential_fn)._traceable
    graph = _compiler._written_down(traceable.value_and_grad, [z])
    for made, plain in zip(graph(z), value_and_grad(potential_fn, z), strict=True):
        torch.testing.assert_close(made, plain)


@needs_compiler
@pytest.mark.parametrize("beneath", ["the same", "another order", "other values", "more values"])
def test_what_torch_has_around_it_is_left_out_where_it_does_the_same(beneath, monkeypatch):
    graphs = pytest.importorskip("torch._inductor.output_code").CompiledFxGraph
    honest, watched, whole = graphs.__call__, _compiler._watched, []

    def counted(self, given):
        whole.append(self)
        return honest(self, given)

    def tampered(function, inputs):
        expected, ((graph, given),) = watched(function, inputs)
        changed = {
            "the same": (graph, given),
            "another order": (graph, given[::-1]),
            "other values": (lambda given: [2 * x for x in graph(given)], given),
            "more values": (lambda given: 2 * [*graph(given)], given),
        }
        return expected, [changed[beneath]]

    monkeypatch.setattr(_compiler, "_watched", tampered)
    plain, z = potential(), torch.randn(5, 4, dtype=torch.float64)
    fast = CompiledPotential(plain)
    value_and_grad(fast, z)
    monkeypatch.setattr(graphs, "__call__", counted)
    for found, expected in zip(value_and_grad(fast, z), value_and_grad(plain, z), strict=True):
        torch.testing.assert_close(found, expected)
    assert len(whole) == (beneath != "the same")


ANOTHER_PROCESSOR = """
import torch
from pyro_gebm.mcmc import CompiledPotential
from pyro_gebm.mcmc.gradients import value_and_grad

torch.set_num_threads(1)
z = torch.arange(20.0).view(5, 4)
value, gradient = value_and_grad(CompiledPotential(lambda z: z.square().sum(-1)), z)
assert torch.equal(gradient, 2 * z), gradient
torch.testing.assert_close(value, z.square().sum(-1))
"""


@needs_compiler
def test_torchs_cache_on_disk_is_of_one_width_of_vectors(tmp_path):
    pick = pytest.importorskip("torch._inductor.cpu_vec_isa").pick_vec_isa
    if pick().bit_width() != 512:
        pytest.skip("this processor has no wider vectors than AVX2's to leave out")
    for isa in ("avx512", "avx2"):
        places = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "ATEN_CPU_CAPABILITY": isa}
        command = [sys.executable, "-c", ANOTHER_PROCESSOR]
        done = subprocess.run(
            command, env={**os.environ, **places}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
