"Hypothesis measures by the clock how long an example takes, and a loaded machine makes it fail: imported, it does not."

from hypothesis import HealthCheck, settings

# What is set already, as by the mutations, stays.
settings.register_profile("no deadlines", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no deadlines")
