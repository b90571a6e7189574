"""A pytest plugin: hypothesis stops at the first failure, since a mutation only has to be noticed, and not explained."""

from hypothesis import Phase, settings

settings.register_profile("mutations", phases=(Phase.explicit, Phase.generate), database=None)
settings.load_profile("mutations")
