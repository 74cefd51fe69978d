"""Claims that say nothing are none."""

import math

import numpy as np
import pytest
import torch

from lipbench.method import Claim
from lipbench.norm import Norm


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"constant": math.nan}, "a number of at least 0, got nan"),
        ({"constant": math.inf}, "got inf"),
        ({"constant": -1.0}, "got -1.0"),
        ({"constant": "1"}, "got '1'"),
        ({"constant": True}, "got True"),
        ({"constant": torch.tensor(1.0)}, r"got tensor\(1.\)"),
        ({"tolerance": math.nan}, "less than 1, got nan"),
        ({"tolerance": -1e-9}, "less than 1, got -1e-09"),
        ({"tolerance": 1.0}, "less than 1, got 1.0"),
        ({"tolerance": 1e9}, "less than 1, got 1000000000.0"),
        ({"tolerance": "0.1"}, "less than 1, got '0.1'"),
        ({"constant": 1.7e308, "tolerance": 0.5}, "says nothing"),
        ({"norm": 3}, "norm must be 1, 2 or inf, got 3"),
        ({"domain": (1.0, 0.0)}, "a box lo < hi or on all of space"),
        ({"domain": (0.0, math.nan)}, "a box lo < hi"),
        ({"domain": (-math.inf, math.inf)}, "a box lo < hi"),
    ],
)
def test_a_claim_that_says_nothing_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Claim(**{"norm": Norm(2), "constant": 1.0} | fields)


@pytest.mark.parametrize("constant", [0.0, 0, 1, np.float64(2.5), np.float32(2.5), 1e300])
def test_a_claim_says_what_the_constant_may_be(constant):
    assert Claim(norm=Norm(2), constant=constant, tolerance=0.5).allowed == 1.5 * constant
