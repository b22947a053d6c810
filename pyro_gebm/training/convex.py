"""The energy problem solved exactly, where it is convex: a ball of an approximate RKHS."""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_gebm._checks import check_batch, check_finite, check_in_range
from pyro_gebm.nets import FourierEnergy

MAX_MULTIPLIERS = 200
MAX_NEWTON_STEPS = 200
"""Per multiplier; one to five are usual."""

INNER_SHARE = 1e-4
"""Share of the tolerance that Newton's method may leave, so that |w| is a function of λ."""

LEAST_CURVATURE = 1e-14
"""Added to the Hessian in place of a smaller λ: below it, a covariance is rounding error."""


class SolverError(RuntimeError):
    """The solver did not reach its tolerance; the message says how near it came."""


class EnergySolution(NamedTuple):
    """The optimum of the energy problem, in float64."""

    weights: Tensor
    """w, (m,), of norm <= radius."""
    value: float
    """L(w), nats: KALE of the samples within the class."""
    log_partition: float
    """log Z of the base samples, nats; the optimal c."""
    multiplier: float
    """λ of the constraint, nats; 0 where the ball does not bind."""
    iterations: int
    """Newton steps, over all multipliers."""
    residual: float
    """Norm of what is left of the KKT conditions."""


def solve_energy(
    energy: FourierEnergy,
    real: Tensor,
    base: Tensor,
    *,
    base_log_weights: Tensor | None = None,
    tolerance: float = 1e-8,
) -> EnergySolution:
    """The best energy of the ball for given samples: deterministic, by Newton's method.

    Maximises, over |w| <= r, the generalised log-likelihood of E = <w, φ>,

        L(w) = -<w, mean φ(x)> - log Σ_i p_i exp(-<w, φ(y_i)>),

    with x the data, y the base samples and p_i = 1/n, or the weights given. L is concave: with
    q_i ∝ p_i exp(-E(y_i)) its gradient is Σ q_i φ(y_i) - mean φ(x), its Hessian minus the
    covariance of the features under q. As L(E) = max_c F(E, c) with F of ``kale_bound``, the
    maximum is KALE(P, B) of the samples restricted to this class, and c = log Z. Training on the
    same samples must come to the same value. With E* the optimum and Q the base reweighted by
    exp(-E*), KALE(P, Q) <= KALE(P, B), and it is 0 where the ball does not bind: solve again
    with ``base_log_weights`` = -E*(y).

    For each λ, a damped Newton's method solves ∇L(w) = λw. The norm of its solution falls with λ,
    so a bracketed search finds the λ >= 0 of the KKT conditions

        |∇L(w) - λw| = 0,  |w| <= r,  λ(r - |w|) = 0,

    downwards from one that surely suffices, as |∇L(0)|/r does. ``residual`` is the norm of the
    two equations' left sides together; so L(w) is within 3 r · residual of the maximum, and where
    the ball binds r - |w| <= residual/λ. Of several optimal w it finds one near the shortest.

    The bandwidth is taken as it stands. Memory is O((B + n + m) m) in float64, a Newton step
    takes O(n m² + m³), for m features, B data and n base samples.

    Args:
        energy: the class; left unchanged, see ``FourierEnergy.set_weight``.
        real: data (B, *data_shape).
        base: samples of the base (n, *data_shape).
        base_log_weights: log p_i of the base samples (n,) up to a constant; equal if ``None``.
        tolerance: on ``residual``.

    Returns:
        The optimum; tensors are on the energy's device.

    Raises:
        ValueError: a shape is wrong, there is no sample, or an entry is not finite.
        SolverError: the tolerance was not reached.

    Example:
        >>> energy = FourierEnergy((1,), num_features=32, radius=2.0)
        >>> real, base = torch.linspace(0, 1, 50)[:, None], torch.linspace(-1, 1, 50)[:, None]
        >>> solution = solve_energy(energy, real, base)
        >>> energy.set_weight(solution.weights)
        >>> round(solution.value, 3), round(solution.weights.norm().item(), 6)
        (0.473, 2.0)
    """
    check_in_range("tolerance", tolerance, 0.0, open_low=True)
    problem = _problem(energy, real, base, base_log_weights)
    return _Search(problem, energy.radius, tolerance).run()


class _Point(NamedTuple):
    """A weight vector, and what L is there."""

    weights: Tensor
    gradient: Tensor
    """Of -L, (m,)."""
    tilted: Tensor
    """q, (n,)."""
    log_partition: Tensor


class _Problem(NamedTuple):
    real_mean: Tensor
    """mean φ(x), (m,)."""
    features: Tensor
    """φ(y), (n, m)."""
    log_weights: Tensor
    """log p, (n,)."""

    def at(self, weights: Tensor) -> _Point:
        logits = self.log_weights - self.features @ weights
        log_partition = logits.logsumexp(0)
        tilted = (logits - log_partition).exp()
        return _Point(weights, self.real_mean - tilted @ self.features, tilted, log_partition)

    def value(self, point: _Point) -> Tensor:
        """L, nats."""
        return -(self.real_mean @ point.weights) - point.log_partition

    def penalised(self, point: _Point, multiplier: float) -> Tensor:
        """What Newton's method minimises, -L + λ|w|²/2."""
        return multiplier / 2 * point.weights.square().sum() - self.value(point)

    def factor(self, point: _Point, multiplier: float) -> Tensor:
        """Cholesky factor of the Hessian of -L + λ|w|²/2."""
        centred = self.features - point.tilted @ self.features
        hessian = centred.T @ (centred * point.tilted[:, None])
        hessian.diagonal().add_(max(multiplier, LEAST_CURVATURE))
        factor: Tensor = torch.linalg.cholesky(hessian)
        return factor


class _Search:
    """The λ at which the ball just binds, or 0."""

    def __init__(self, problem: _Problem, radius: float, tolerance: float) -> None:
        self.problem, self.radius, self.tolerance = problem, radius, tolerance
        # Newton's method leaves an error of INNER_SHARE (or rounding) over λ in the norm.
        self.window = 100 * INNER_SHARE * tolerance
        self.iterations = 0

    def run(self) -> EnergySolution:
        point = self.problem.at(torch.zeros_like(self.problem.real_mean))
        # λ|w| <= |∇L(0)| by monotonicity of the gradient: the ball holds at the first λ, and where
        # the radius is large |w| <= 1 there, so that no first step is a wild one.
        multiplier = high = point.gradient.norm().item() / min(self.radius, 1.0)
        low = 0.0
        for _ in range(MAX_MULTIPLIERS):
            point = self.newton(point, multiplier)
            room = self.radius - point.weights.norm().item()
            if room >= 0 and multiplier * (self.radius - room) <= self.tolerance / 2:
                return self.solution(point, 0.0)
            if abs(room) * (1 + multiplier) <= self.tolerance / 10:
                return self.solution(self.onto_sphere(point), multiplier)
            if 0 <= room * multiplier <= self.window:
                return self.solution(point, multiplier)
            low, high = (multiplier, high) if room < 0 else (low, multiplier)
            multiplier, point = self.next_guess(point, multiplier, low, high)
        raise self.failure(f"{MAX_MULTIPLIERS} multipliers were tried; the last was {multiplier}")

    def newton(self, point: _Point, multiplier: float) -> _Point:
        """The solution of ∇L(w) = λw, from a nearby point."""
        for _ in range(MAX_NEWTON_STEPS):
            residual = _residual(point, multiplier)
            size = residual.norm().item()
            if size <= INNER_SHARE * self.tolerance:
                return point
            factor = self.problem.factor(point, multiplier)
            step = -torch.cholesky_solve(residual[:, None], factor)[:, 0]
            self.iterations += 1
            moved = self.line_search(point, step, multiplier)
            if moved is None:
                if size <= self.tolerance / 2:
                    return point  # rounding stands in the way of more
                raise self.failure(f"at λ = {multiplier} the residual stays at {size}")
            point = moved
        raise self.failure(f"at λ = {multiplier} {MAX_NEWTON_STEPS} Newton steps did not do")

    def line_search(self, point: _Point, step: Tensor, multiplier: float) -> _Point | None:
        """A better point along a Newton step; ``None`` if there is none.

        Better is a lower -L + λ|w|²/2 (Armijo), or, where that is flat to rounding, a residual
        that is clearly smaller: so near the optimum, Newton's method squares it.
        """
        residual = _residual(point, multiplier)
        size, promise = residual.norm(), -(residual @ step)
        before = self.problem.penalised(point, multiplier)
        flat = bool(promise <= 1e-10 * before.abs().clamp(min=1))
        share = 1.0
        while share > (0.1 if flat else 1e-10):
            moved = self.problem.at(point.weights + share * step)
            if flat:
                better = _residual(moved, multiplier).norm() <= (1 - share / 2) * size
            else:
                after = self.problem.penalised(moved, multiplier)
                better = after <= before - 1e-4 * share * promise
            if better:
                return moved
            share /= 2
        return None

    def next_guess(
        self, point: _Point, multiplier: float, low: float, high: float
    ) -> tuple[float, _Point]:
        """The next λ, and a first-order guess of its w.

        A Newton step on 1/|w| = 1/r, which is nearly linear in λ (Moré and Sorensen, 1983),
        where it stays in the bracket; dw/dλ = -(H + λ)⁻¹ w. It aims at the middle of the window.
        """
        weights = point.weights
        factor = self.problem.factor(point, multiplier)
        slope = torch.cholesky_solve(weights[:, None], factor)[:, 0]
        norm = weights.norm().item()
        aim = max(self.radius - self.window / (2 * multiplier), self.radius / 2)
        change = norm**2 / (weights @ slope).item() * (norm - aim) / aim
        guess = max(multiplier + change, multiplier / 100)
        if not low < guess < high:
            guess = math.sqrt(low * high) if low > 0 else high / 100
        predicted = self.problem.at(weights + (multiplier - guess) * slope)
        better = _residual(predicted, guess).norm() < _residual(point, guess).norm()
        return guess, predicted if better else point

    def onto_sphere(self, point: _Point) -> _Point:
        """The point, which is next to the sphere, on it."""
        return self.problem.at(point.weights * (self.radius / point.weights.norm()))

    def solution(self, point: _Point, multiplier: float) -> EnergySolution:
        slack = multiplier * (self.radius - point.weights.norm().item())
        residual = math.hypot(_residual(point, multiplier).norm().item(), slack)
        if not residual <= self.tolerance:
            raise self.failure(f"the residual stays at {residual}")
        return EnergySolution(
            point.weights,
            self.problem.value(point).item(),
            point.log_partition.item(),
            multiplier,
            self.iterations,
            residual,
        )

    def failure(self, what: str) -> SolverError:
        return SolverError(
            f"solve_energy: no convergence to {self.tolerance} after {self.iterations} Newton "
            f"steps: {what}; raise the tolerance, or lower the radius"
        )


def _residual(point: _Point, multiplier: float) -> Tensor:
    """λw - ∇L(w), (m,)."""
    return point.gradient + multiplier * point.weights


@torch.no_grad()
def _problem(
    energy: FourierEnergy, real: Tensor, base: Tensor, base_log_weights: Tensor | None
) -> _Problem:
    double = copy.deepcopy(energy).double()
    features = [
        double.features(_samples(name, given, energy.data_shape).to(double.direction))
        for name, given in (("real", real), ("base", base))
    ]
    log_weights = torch.zeros_like(features[1][:, 0])
    if base_log_weights is not None:
        log_weights = _log_weights(base_log_weights, len(base)).to(log_weights)
    return _Problem(features[0].mean(0), features[1], log_weights.log_softmax(0))


def _samples(name: str, given: Tensor, data_shape: tuple[int, ...]) -> Tensor:
    check_batch(name, given, data_shape)
    if len(given) == 0:
        raise ValueError(f"{name}: expected at least one sample; got an empty batch")
    return check_finite(name, given)


def _log_weights(given: Tensor, count: int) -> Tensor:
    if given.shape != (count,):
        raise ValueError(
            f"base_log_weights: expected shape ({count},), one per base sample; got "
            f"{tuple(given.shape)}"
        )
    return check_finite("base_log_weights", given)
