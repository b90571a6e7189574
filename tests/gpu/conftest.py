"""A card for each test."""

import pytest
from cards import Card


@pytest.fixture
def card():
    found = Card()
    yield found
    found.close()
