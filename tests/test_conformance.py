"""The shape check against Python itself: it finds no problem exactly when every promised call works."""

from __future__ import annotations

import inspect
from itertools import accumulate
from typing import Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cjm_worker_ext.extensions.conformance import WORKER_STATE_KEYWORDS, check_protocol
from cjm_worker_ext.extensions.protocols import ResourceManagerProtocol

NAMES = "abcde"
KINDS = inspect.Parameter


def parameter(name: str, kind, optional: bool) -> inspect.Parameter:
    return KINDS(name, kind, default=0 if optional else KINDS.empty)


@st.composite
def signatures(draw, stars: bool):
    "A signature with up to three parameters by position and two by name, and the two kinds of stars if wanted."
    names = draw(st.permutations(NAMES))
    optional = accumulate(draw(st.lists(st.booleans(), max_size=3)), max)  # no default before one without
    positional_only = draw(st.integers(0, 3))
    parameters = [
        parameter(names[i], KINDS.POSITIONAL_ONLY if i < positional_only else KINDS.POSITIONAL_OR_KEYWORD, flag)
        for i, flag in enumerate(optional)
    ]
    if stars and draw(st.booleans()):
        parameters.append(KINDS("args", KINDS.VAR_POSITIONAL))
    for i, flag in enumerate(draw(st.lists(st.booleans(), max_size=2))):
        parameters.append(parameter(names[3 + i], KINDS.KEYWORD_ONLY, flag))
    if stars and draw(st.booleans()):
        parameters.append(KINDS("kwargs", KINDS.VAR_KEYWORD))
    return inspect.Signature(parameters)


def method(signature: inspect.Signature):
    "A function of this signature, with a `self` in front."
    own = KINDS(
        "self", KINDS.POSITIONAL_ONLY if signature_has_positional_only(signature) else KINDS.POSITIONAL_OR_KEYWORD
    )
    text = str(inspect.Signature([own, *signature.parameters.values()]))
    space: dict = {}
    exec(f"def method{text}: return 0", space)
    return space["method"]


def signature_has_positional_only(signature: inspect.Signature) -> bool:
    return any(p.kind is p.POSITIONAL_ONLY for p in signature.parameters.values())


def promised_calls(signature: inspect.Signature):
    "Arguments and keywords of the calls that a signature promises: optional ones absent, present, and one by one."
    parameters = signature.parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(p.default is p.empty for p in positional)
    always = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    sometimes = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty]
    for count in range(required, len(positional) + 1):
        for extra in ([], sometimes, *([name] for name in sometimes)):
            yield (0,) * count, dict.fromkeys([*always, *extra], 0)


def works(function, arguments, keywords) -> bool:
    "Whether Python makes the call; `Signature.bind` is wrong about some names in 3.11."
    try:
        return function(None, *arguments, **keywords) == 0
    except TypeError:
        return False


@settings(max_examples=600)
@given(signatures(stars=False), signatures(stars=True))
def test_no_problem_exactly_when_every_promised_call_works(promised, found):
    protocol = type("P", (Protocol,), {"method": method(promised), "__module__": __name__})
    implementation = type("Implementation", (), {"method": method(found)})
    fits = all(works(implementation.method, *call) for call in promised_calls(promised))
    for subject in (implementation, implementation()):
        problems = check_protocol(subject, protocol)
        assert (problems == []) == fits, f"{promised} promised, {found} found: {[str(p) for p in problems]}"


@settings(max_examples=300)
@given(st.sets(st.sampled_from(WORKER_STATE_KEYWORDS)), st.sets(st.sampled_from(WORKER_STATE_KEYWORDS)))
def test_the_keywords_that_are_missing_or_required_are_named(listed, required):
    listed |= required
    parameters = [
        parameter(name, KINDS.KEYWORD_ONLY, name not in required) for name in WORKER_STATE_KEYWORDS if name in listed
    ]
    update = method(inspect.Signature([parameter("pid", KINDS.POSITIONAL_OR_KEYWORD, False), *parameters]))

    class Resources:
        def register_worker(self, pid, worker_type): ...

        def unregister_worker(self, pid): ...

        update_worker_state = update

    expected = []
    if required:
        expected.append(f"must not require {', '.join(name for name in WORKER_STATE_KEYWORDS if name in required)}")
    if missing := [name for name in WORKER_STATE_KEYWORDS if name not in listed]:
        expected.append(f"must accept {', '.join(missing)} by keyword")
    assert [problem.rule for problem in check_protocol(Resources(), ResourceManagerProtocol)] == expected


@pytest.mark.parametrize("implementation", [3, None, "text", object(), int, len, pytest, Protocol])
def test_anything_can_be_checked(implementation):
    assert len(check_protocol(implementation, ResourceManagerProtocol)) == 3
