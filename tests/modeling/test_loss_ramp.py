import pytest

from contrastmask.modeling.loss_ramp import LossRamp


def test_twelve_epochs():
    ramp = LossRamp(max_iter=1200, start=0.25, num_steps=12, full_step=4)
    factors = [ramp(100 * epoch) for epoch in range(12)]
    assert factors == [0.25, 0.25, 0.5, 0.75] + [1.0] * 8
    assert ramp(199) == 0.25 and ramp(200) == 0.5


def test_longer_schedules_stretch_the_ramp():
    ramp = LossRamp(max_iter=270000, start=0.25, num_steps=12, full_step=4)
    assert ramp(89999) == 0.75 and ramp(90000) == 1.0


@pytest.mark.parametrize("broken", [{"max_iter": 0}, {"start": 2}, {"full_step": 0}])
def test_out_of_range(broken):
    params = dict(max_iter=10, start=0.25, num_steps=12, full_step=4)
    with pytest.raises(ValueError, match="RAMP"):
        LossRamp(**{**params, **broken})
