"""What a traced graph holds: short attentions written out, each on its own account."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ppap.compute import tracing
from ppap.compute.tracing import SHORT_ATTENTION, Traced, ValuesReadError, graph_of


def fused(traced: Traced) -> int:
    """How many of its attentions are fused."""
    return sum(
        "scaled_dot_product" in str(node.target) and "backward" not in str(node.target)
        for node in traced.graph.graph.nodes
    )


def attention(weights: list[Tensor], x: Tensor) -> list[Tensor]:
    found = F.scaled_dot_product_attention(x, x, weights[0])
    return [F.scaled_dot_product_attention(query=found, key=found, value=found)]


@pytest.mark.parametrize(("tokens", "expected"), [(8, 0), (SHORT_ATTENTION + 1, 2)])
def test_attention_is_written_out_where_it_is_short(tokens: int, expected: int) -> None:
    x = torch.randn(1, 2, tokens, 4)
    traced = Traced(attention, ([x], x), frozen=False)
    assert fused(traced) == expected
    torch.testing.assert_close(traced([x], x), attention([x], x))


def test_each_attention_counts_by_itself() -> None:
    def both(weights: list[Tensor], x: Tensor) -> list[Tensor]:
        few = x[:, :, :8]
        return [
            F.scaled_dot_product_attention(x, x, x),
            F.scaled_dot_product_attention(x, few, few),
        ]

    x = torch.randn(1, 2, SHORT_ATTENTION + 1, 4)
    traced = Traced(both, ([x], x), frozen=False)
    assert fused(traced) == 1
    torch.testing.assert_close(traced([x], x), both([x], x))


OPTIONS: list[dict[str, object]] = [
    {},
    {"scale": 0.3},
    {"is_causal": True},
    {"attn_mask": torch.tensor([[0.0, 1.0, -torch.inf, 2.0]]).expand(6, 4)},
    {"attn_mask": torch.ones(6, 4, dtype=torch.bool).tril()},
    {"enable_gqa": True},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_written_out_attention_is_attention(options: dict[str, object]) -> None:
    def run(weights: list[Tensor], x: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            found = F.scaled_dot_product_attention(x, *weights, **options)  # type: ignore[arg-type]
            (gradient,) = torch.autograd.grad(found.square().sum(), x)
        return [found.detach(), gradient]

    generator = torch.Generator().manual_seed(0)
    heads = 1 if "enable_gqa" in options else 2
    keys, values = (torch.randn(3, heads, 4, 5, generator=generator) for _ in range(2))
    inputs = [keys, values], torch.randn(3, 2, 6, 5, generator=generator)
    traced = Traced(run, inputs, frozen=False)
    assert fused(traced) == 0
    for ours, expected in zip(traced(*inputs), run(*inputs), strict=True):
        torch.testing.assert_close(ours, expected)


def test_a_function_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(weights: list[Tensor], x: Tensor) -> list[Tensor]:
        calls.append(1)
        return attention(weights, x)

    x = torch.randn(1, 2, 8, 4)
    Traced(counted, ([x], x), frozen=True)
    assert len(calls) == 1
    monkeypatch.setattr(tracing, "SHORT_ATTENTION", 0)
    assert fused(Traced(counted, ([x], x), frozen=True)) == 2


def test_short_attention_in_half_precision_is_computed_in_float32() -> None:
    """Whether the values are in half precision or autocast would make them so."""

    def run(weights: list[Tensor], x: Tensor) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return [F.scaled_dot_product_attention(x, x, weights[0])]

    x = torch.randn(1, 2, 8, 4)
    for given in (x, x.bfloat16()):
        traced = Traced(run, ([given], given), frozen=False)
        products = [n for n in traced.graph.graph.nodes if n.target is torch.ops.aten.bmm.default]
        assert {node.meta["val"].dtype for node in products} == {torch.float32}
        (found,) = traced([given], given)
        assert found.dtype == given.dtype
        wide = given.float()
        exact = F.scaled_dot_product_attention(wide, wide, wide)
        torch.testing.assert_close(found, exact.to(given.dtype), rtol=1e-2, atol=1e-5)


def test_all_values_of_a_graph_are_described_in_one_fake_mode() -> None:
    """For making a mode takes as long as tracing the operation whose value it describes."""

    def both(weights: list[Tensor], x: Tensor) -> list[Tensor]:
        return [torch.group_norm(F.conv2d(x, *weights), 2), x.softmax(1) @ x]

    arguments = ([torch.randn(4, 3, 1, 1)], torch.randn(2, 3, 8, 8))
    graph = Traced(both, arguments, frozen=False).graph
    described = [node.meta["val"] for node in graph.graph.nodes if "val" in node.meta]
    assert len(described) > 4
    assert len({id(value.fake_mode) for value in described if isinstance(value, Tensor)}) == 1


def test_what_is_drawn_and_not_used_is_drawn_all_the_same() -> None:
    """Else whoever draws next would draw other numbers than beside the plain function."""

    def wasteful(weights: list[Tensor], x: Tensor) -> list[Tensor]:
        torch.rand_like(x)
        return [x + weights[0]]

    x = torch.ones(3)
    traced = Traced(wasteful, ([x], x), frozen=False)
    drawn = []
    for function in (wasteful, traced):
        torch.manual_seed(0)
        function([x], x)
        drawn.append(torch.rand(2))
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=0)


READING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "tolist": lambda x, t: x * t.tolist()[0],
    "of what follows": lambda x, t: x * (2 * t + 1).tolist()[0],
    "numpy": lambda x, t: x * float(t.detach().cpu().numpy()[0]),
    "an array": lambda x, t: x * float(np.asarray(t)[0]),
    "a function of NumPy": lambda x, t: x * torch.as_tensor(np.sqrt(t)),
    "a list": lambda x, t: x * torch.tensor([t[0], t[1]]).sum(),
    "as a tensor": lambda x, t: x * torch.as_tensor([t[0]]),
    "a new tensor": lambda x, t: x * x.new_tensor([t[0]]),
    "an item": lambda x, t: x * t[0].item(),
    "a mask": lambda x, t: x * len(t[t > 1]),
    "a mask of its own": lambda x, t: x * len((t > 1)[t > 1]),
    "selected": lambda x, t: x * len(t.masked_select(t > 1)),
    "places": lambda x, t: x * len((t > 1).nonzero()),
}
TABLE, EVERY_OTHER = torch.arange(10.0), torch.tensor([True, False, True])
TRACED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "looked up": lambda x, t: x * TABLE[t],
    "chosen by places": lambda x, t: x[torch.arange(3), t % 3],
    "a mask that stays": lambda x, t: x[:, EVERY_OTHER] * t[EVERY_OTHER],
    "constants": lambda x, t: x * TABLE.tolist()[3] * float(torch.arange(4).numpy()[2]),
    "a mask that is filled": lambda x, t: x.masked_fill(t > 1, 0.0),
    "a tensor of a tensor": lambda x, t: x * torch.as_tensor(t),
}


@pytest.mark.parametrize("function", READING.values(), ids=READING)
def test_a_graph_of_values_that_were_read_is_refused(
    function: Callable[[Tensor, Tensor], Tensor],
) -> None:
    with pytest.raises((ValuesReadError, RuntimeError), match=r"value|tracing tensor"):
        graph_of(function, (torch.ones(3, 3), torch.tensor([0, 1, 2])))


@pytest.mark.parametrize("function", TRACED.values(), ids=TRACED)
def test_a_graph_is_of_all_values(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    x = torch.arange(9.0).view(3, 3)
    graph = graph_of(function, (x, torch.tensor([0, 1, 2])))
    for t in (torch.tensor([0, 1, 2]), torch.tensor([5, 4, 1])):
        assert torch.equal(graph(x, t), function(x, t))


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_what_draws_from_generators_that_no_graph_knows_is_refused(
    draw: Callable[[], float],
) -> None:
    """The graph would hold one draw; the generator is left as if nothing had been traced."""

    def dropping(weights: list[Tensor], x: Tensor) -> list[Tensor]:
        return [x if draw() < 0.5 else x + weights[0]]

    x = torch.randn(3)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    first = draw()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    with pytest.raises(RuntimeError, match=r"random numbers of (Python|NumPy)'s"):
        Traced(dropping, ([x], x), frozen=False)
    assert draw() == first
