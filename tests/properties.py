"""Settings of tests of properties: examples are drawn, the same ones in every run."""

import functools

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = 60
PROFILE = dict(
    derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
property_of = functools.partial(settings, max_examples=EXAMPLES, **PROFILE)


SEEDS = st.integers(0, 2**32 - 1)
