"""Plans follow from what was topped up in all."""

import pytest

from farebox.billing.plans import Plan, Plans

FREE = Plan("free", 10, 40_000, 2, 0)
STARTER = Plan("starter", 60, 200_000, 10, 5 * 10**9)
PRO = Plan("pro", 300, 1_000_000, 50, 50 * 10**9)
ENTERPRISE = Plan("enterprise", 10_000, 10**8, 500)


@pytest.mark.parametrize("order", [(FREE, STARTER, PRO, ENTERPRISE), (FREE, ENTERPRISE, PRO, STARTER)])
@pytest.mark.parametrize(
    ("topped_up", "plan"),
    [
        (-1, FREE),
        (0, FREE),
        (5 * 10**9 - 1, FREE),
        (5 * 10**9, STARTER),
        (50 * 10**9 - 1, STARTER),
        (50 * 10**9, PRO),
        (2**62, PRO),  # the custom plan is never earned
    ],
)
def test_top_ups_earn_the_best_plan_they_reach(order: tuple[Plan, ...], topped_up: int, plan: Plan) -> None:
    assert Plans(order).earned(topped_up) is plan


def test_an_account_whose_plan_is_no_longer_offered_gets_the_first_one() -> None:
    assert Plans([FREE, PRO]).get("starter") is FREE


def test_there_is_always_a_plan() -> None:
    with pytest.raises(ValueError, match="at least one plan"):
        Plans([])


def test_plans_are_found_and_listed_by_their_names_in_their_order() -> None:
    plans = Plans([FREE, PRO])
    assert plans.get("pro") is PRO
    assert plans.names() == ["free", "pro"]


def test_a_plan_that_a_nano_dollar_earns_is_better_than_one_that_nothing_does() -> None:
    cheap = Plan("cheap", 1, 1, 1, 1)
    assert Plans([FREE, cheap]).earned(1) is cheap
    assert Plans([cheap, FREE]).earned(1) is cheap
