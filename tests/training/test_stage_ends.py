"""Stages in shares of the steps: as many steps as asked, whatever the budget counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cramjax.budget.clock import Clock
from cramjax.config import stages
from cramjax.config.resolve import changed, get_config
from cramjax.errors import UserError
from cramjax.models.layers import FLOAT32
from cramjax.objectives import families
from cramjax.training import stage_ends, text_amount
from cramjax.training.loop import StepSchedule
from cramjax.training.session import AssumedVocabulary

VOCABULARY = AssumedVocabulary(vocab_size=32768)
N_STEPS = 400


def paper(*more):
    return get_config("bert_compoundgrow:paper", "budget.hours=None", *more)


def sequence_flops(config):
    """FLOPs of a sequence in each stage."""
    of_stages = [changed(config, stage.overrides) for stage in stages.of(config)]
    return [families.build(one, VOCABULARY, FLOAT32).flops for one in of_stages]


def steps_of_stages(config):
    """Plan steps until the budget is spent, as the loop does; returns how many each stage has."""
    clock = Clock(**config.budget.to_dict(), time_source=lambda: 0.0)
    counts = []
    since = 0.0
    flops = sequence_flops(config)
    for number, end in enumerate(stage_ends.of(config, VOCABULARY)):
        of_stage = changed(config, stages.of(config)[number].overrides)
        schedule = StepSchedule(
            config=of_stage,
            microbatch_size=of_stage.batch_size,
            flops_per_sequence=flops[number],
            since=since,
            until=end.until,
            rewarm=end.rewarm,
        )
        counts.append(0)
        while not clock.done() and not schedule.is_over(clock):
            plan = schedule.plan(1, clock)
            clock.advance(plan.n_tokens, plan.n_flops, plan.n_rows)
            counts[-1] += 1
        since = end.until
    return counts


def test_the_stages_of_the_paper_have_their_steps_under_every_budget():
    """35%, 35% and 30% of the steps; a stage ends with the first step at or after its share."""
    flops = sequence_flops(paper("budget.steps=1"))
    mean = 8192 * sum(share * cost for share, cost in zip((0.35, 0.35, 0.3), flops, strict=True))
    budgets = (
        f"budget.steps={N_STEPS}",
        f"budget.tokens={N_STEPS * 8192 * 128}",
        f"budget.flops={N_STEPS * mean}",
    )
    for budget in budgets:
        counts = steps_of_stages(paper(budget))
        assert sum(counts) == pytest.approx(N_STEPS, abs=2)
        for count, share in zip(counts, (0.35, 0.35, 0.3), strict=True):
            assert count == pytest.approx(share * N_STEPS, abs=1), budget
    # Shares of the budget: the steps at full size are few.
    by_budget = paper(budgets[2], "growth.until=budget")
    counts = steps_of_stages(by_budget)
    assert counts[2] / sum(counts) == pytest.approx(0.0825, abs=0.002)


def test_hours_are_converted_by_flops():
    hours = get_config("bert_compoundgrow:paper")
    flops = paper("budget.flops=1e20")
    assert stage_ends.of(hours, VOCABULARY) == stage_ends.of(flops, VOCABULARY)
    # The figures of the recipe's docstring.
    ends = stage_ends.of(hours, VOCABULARY)
    assert [round(end.until, 2) for end in ends] == [0.13, 0.34, 1.0]
    costs = sequence_flops(hours)
    assert [round(cost / costs[-1], 2) for cost in costs] == [0.17, 0.27, 1.0]
    # 1% of the steps, at the cost of a step of the stage.
    assert ends[2].rewarm / ends[0].rewarm == pytest.approx(costs[2] / costs[0])


def test_shares_of_the_budget_are_as_they_are_given():
    config = get_config("bert_compoundgrow", "growth.rewarm=0.02")
    ends = stage_ends.of(config, VOCABULARY)
    assert [(end.until, end.rewarm) for end in ends] == [(0.35, 0.02), (0.7, 0.02), (1.0, 0.02)]
    assert stage_ends.of(get_config("bert_1day"), VOCABULARY)[0].until == 1.0


@given(
    st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6),
    st.lists(st.floats(1e-3, 1e3), min_size=6, max_size=6),
)
def test_the_budgets_of_all_stages_together_are_the_whole(widths, costs):
    until = [sum(widths[: n + 1]) / sum(widths) for n in range(len(widths))]
    until[-1] = 1.0
    costs = costs[: len(until)]
    ends = stage_ends.by_steps(until, costs, 0.1)
    shares = [end.until for end in ends]
    assert shares == sorted(shares) and shares[-1] == 1.0
    # What a stage takes of the budget, over the cost of a step, is its share of the steps.
    steps = []
    for since, end, cost in zip([0.0, *shares], shares, costs, strict=False):
        steps.append((end - since) / cost)
    for since, end, n_steps in zip([0.0, *until], until, steps, strict=False):
        assert n_steps / sum(steps) == pytest.approx(end - since, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    "more, said",
    [
        (["budget.flops=1e20", "budget.tokens=1e9"], "needs one limit of the budget, there are"),
        (["budget.flops=1e20", "schedule.batch_ramp=0.6"], "set schedule.batch_ramp=0"),
    ],
)
def test_what_cannot_be_counted_is_one_sentence(more, said):
    with pytest.raises(UserError, match=said):
        paper(*more)
    # With a ramp, steps alone are still steps; and a run that does not grow has nothing to count.
    paper("budget.steps=10", "schedule.batch_ramp=0.6")
    get_config("bert_compoundgrow:paper+control", "schedule.batch_ramp=0.6")


def test_the_text_for_a_budget_follows_the_converted_shares():
    """More steps at full size read less text in the same time."""
    h100 = "NVIDIA H100 80GB HBM3"
    by_steps, by_time = (
        text_amount.expected(get_config("bert_compoundgrow:paper", until), h100, 1).tokens
        for until in ("growth.until=steps", "growth.until=budget")
    )
    flops = sequence_flops(get_config("bert_compoundgrow:paper"))
    mean = sum(share * cost for share, cost in zip((0.35, 0.35, 0.3), flops, strict=True))
    assert by_time / by_steps == pytest.approx(
        sum(share / cost for share, cost in zip((0.35, 0.35, 0.3), flops, strict=True)) * mean
    )


def test_large_is_the_size_of_bert_large_and_combines():
    config = get_config("bert_compoundgrow:large+paper")
    assert config.growth.until == "steps" and config.growth.moments == "reset"
    assert [stage.n_layers for stage in stages.of(config)] == [6, 12, 24]
    objective = families.build(config, VOCABULARY, FLOAT32)
    from cramjax.models import network

    assert network.count_params(objective.network) == 286_345_216
    assert get_config("bert_compoundgrow:large+control").growth.stages is None
    assert get_config("t5_grow:ntng").batch_size == 144
    assert get_config("bert_stack:ntng").growth.moments == "reset"
