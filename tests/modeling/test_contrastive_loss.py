import pytest
import torch

from contrastmask.modeling.contrastive_loss import loss_ramp, query_sharing_loss

TEMPERATURES = dict(temperature_easy=0.3, temperature_hard=0.7)


def cosine(a, b):
    return (a @ b) / (a.norm() * b.norm())


def loss_term_in_words(query, positive, negative, temperature, form):
    """The formula of the paper, one key at a time."""
    shift = query if form == "released" else 0 * query
    total = 0
    for k in positive:
        s = cosine(query, k - shift)
        rest = sum(torch.exp(cosine(query, j - shift) / temperature) for j in negative)
        own = torch.exp(s if form == "released" else s / temperature)
        total = total - torch.log(torch.exp(s / temperature) / (own + rest))
    return total / len(positive)


@pytest.mark.parametrize("form", ["released", "paper"])
def test_terms_follow_the_formula(form):
    queries, keys = torch.randn(2, 6), torch.randn(25, 6)
    sets = torch.rand(25, 4) > 0.6
    easy_pos, easy_neg, hard_pos, hard_neg = (keys[m] for m in sets.unbind(1))
    terms = query_sharing_loss(queries, keys, sets, form=form, **TEMPERATURES)
    expected = [
        loss_term_in_words(queries[0], easy_pos, easy_neg, 0.3, form),
        loss_term_in_words(queries[0], hard_pos, hard_neg, 0.7, form),
        loss_term_in_words(queries[1], easy_neg, easy_pos, 0.3, form),
        loss_term_in_words(queries[1], hard_neg, hard_pos, 0.7, form),
    ]
    torch.testing.assert_close(torch.stack(terms), torch.stack(expected))


@pytest.mark.parametrize("form", ["released", "paper"])
def test_gradients(form):
    """Against finite differences, in float32 as the loss computes."""
    queries = torch.randn(2, 5, requires_grad=True)
    keys = torch.randn(12, 5, requires_grad=True)
    sets = torch.rand(12, 4) > 0.4

    def loss(q, k):
        return sum(query_sharing_loss(q, k, sets, form=form, **TEMPERATURES))

    gradients = torch.autograd.grad(loss(queries, keys), (queries, keys))
    for x, gradient in zip((queries, keys), gradients):
        for i in range(x.numel()):
            step = torch.zeros(x.numel())
            step[i] = 1e-2
            step = step.view_as(x)
            with torch.no_grad():
                args = [(queries, keys), (queries, keys)]
                args = [
                    tuple(y + sign * step if y is x else y for y in pair)
                    for pair, sign in zip(args, (1, -1))
                ]
                slope = (loss(*args[0]) - loss(*args[1])) / 2e-2
            torch.testing.assert_close(gradient.flatten()[i], slope, atol=2e-3, rtol=2e-2)


@pytest.mark.parametrize("form", ["released", "paper"])
@pytest.mark.parametrize("num_keys", [0, 9])
def test_empty_sets_give_zero_and_finite_gradients(form, num_keys):
    queries = torch.zeros(2, 5, requires_grad=True)
    keys = torch.randn(num_keys, 5, requires_grad=True)
    sets = torch.zeros(num_keys, 4, dtype=torch.bool)
    terms = query_sharing_loss(queries, keys, sets, form=form, **TEMPERATURES)
    assert all(t == 0 for t in terms)
    sum(terms).backward()
    assert torch.equal(queries.grad, torch.zeros_like(queries))
    assert torch.equal(keys.grad, torch.zeros_like(keys))


@pytest.mark.parametrize("form", ["released", "paper"])
def test_finite_for_degenerate_features(form):
    """Zero keys, keys equal to the query, huge keys, a missing negative set."""
    query = torch.randn(5)
    queries = torch.stack([query, -query]).requires_grad_()
    keys = torch.stack([torch.zeros(5), query, -query, 1e15 * query, 1e-30 * query])
    keys = keys.detach().requires_grad_()
    for membership in (torch.ones(5, 4), torch.tensor([[1, 0, 1, 0]]).expand(5, 4)):
        terms = query_sharing_loss(queries, keys, membership.bool(), form=form, **TEMPERATURES)
        gradients = torch.autograd.grad(sum(terms), (queries, keys))
        assert all(torch.isfinite(x).all() for x in (*terms, *gradients))


def test_unknown_form_is_an_error():
    with pytest.raises(ValueError, match="thesis"):
        query_sharing_loss(
            torch.randn(2, 3),
            torch.randn(1, 3),
            torch.ones(1, 4).bool(),
            form="thesis",
            **TEMPERATURES,
        )


def ramp(iteration, **params):
    params = {"max_iter": 1200, "start": 0.25, "num_steps": 12, "full_step": 4, **params}
    return loss_ramp(iteration, **params)


def test_ramp_of_twelve_epochs():
    factors = [ramp(100 * epoch) for epoch in range(12)]
    assert factors == [0.25, 0.25, 0.5, 0.75] + [1.0] * 8
    assert ramp(199) == 0.25 and ramp(200) == 0.5


def test_each_parameter_of_the_ramp():
    assert ramp(0, start=0.1) == 0.1 and ramp(0, start=0) == 0 and ramp(0, start=1) == 1
    assert ramp(599, num_steps=6, full_step=5) == 0.4 and ramp(600, num_steps=6, full_step=5) == 0.6
    assert ramp(0, max_iter=1, num_steps=1, full_step=1) == 0.25


def test_longer_schedules_stretch_the_ramp():
    assert ramp(89999, max_iter=270000) == 0.75 and ramp(90000, max_iter=270000) == 1.0


@pytest.mark.parametrize(
    "broken",
    [{"max_iter": 0}, {"start": 1.01}, {"start": -0.01}, {"num_steps": 0}, {"full_step": 0}],
    ids=str,
)
def test_ramp_out_of_range(broken):
    with pytest.raises(ValueError, match="RAMP"):
        ramp(0, **broken)
